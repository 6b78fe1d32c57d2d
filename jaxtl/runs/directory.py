"""The run directory: its config, its metadata, and how an unfinished run is found again."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.metadata
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import pydantic

from jaxtl.config import Config, Phase
from jaxtl.config.config_file import differences
from jaxtl.errors import UserError
from jaxtl.files import is_unfinished, write_json
from jaxtl.runs.records import Model, read_record, reason
from jaxtl.tasks import TaskName, task_named
from jaxtl.weights import WeightsRecord

_log = logging.getLogger("jaxtl")

# Those whose versions decide the numbers of a run, and others.
_NUMERICAL = ("python", "jax", "jaxlib", "flax", "optax", "pillow")
_PACKAGES = ("jaxtl", *_NUMERICAL[1:], "orbax-checkpoint", "grain", "numpy")


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="allow")


class SplitMetadata(_Part):
    """One split of the data: number of images, and the SHA-256 of its fingerprint."""

    images: int
    sha256: str


class DataMetadata(_Part):
    """The data that a run trains on, is validated on and, if there is such a split, tested on."""

    train: SplitMetadata
    val: SplitMetadata
    test: SplitMetadata | None = None

    @pydantic.model_serializer(mode="wrap")
    def _as_it_was(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Without a test the record is that of older versions, which know of none."""
        return {name: part for name, part in serialize(self).items() if part is not None}


class RunMetadata(_Part):
    """What `run.json` holds.

    Attributes:
        classes: the names of the classes, in the order of the logits.
        data: the fingerprints of the data.
        source: the data source; an absolute path if it is a path.
        skipped: the first thousand images that were left out: `path`, and the `reason`.
        skipped_images: how many were left out.
        weights: where the initial weights came from; None for random parameters.
        versions: the versions of Python and of the packages, by name.
        continued: the versions each time that the run was continued with others.
        devices: the devices that the run began on.
        task: whether an image has one class or several labels.
        thresholds: by class, the probability from which on an image has the label: that with the
            best F1 on the validation images. Empty until the run is complete, and of one class an
            image.
        averaged: by phase, the epochs, from 1, whose average its best variables are.
        learning_rates: by phase, the one that was found where the config says `auto`.
        result: steps, best epoch and validation metrics, and those of the test, whose names begin
            with `test_`; None until the run is complete.
    """

    classes: tuple[str, ...] = pydantic.Field(min_length=1)
    data: DataMetadata
    source: str = ""
    skipped: tuple[dict[str, str], ...] = ()
    skipped_images: int = 0
    weights: WeightsRecord | None = None
    versions: dict[str, str] = {}
    continued: tuple[dict[str, str], ...] = ()
    devices: tuple[str, ...] = ()
    task: TaskName = "single-label"
    thresholds: dict[str, float] = {}
    averaged: dict[str, tuple[int, ...]] = {}
    learning_rates: dict[str, float] = {}
    result: dict[str, float] | None = None

    @property
    def convention(self) -> str:
        """The convention of the initial weights: `keras` or `torch`."""
        return self.weights.convention if self.weights else "keras"

    def correct(self, split: Literal["val", "test"]) -> tuple[int, int] | None:
        """How many images of a split the result classifies correctly, and how many there are.

        None before there is a result, and where the run has no test.
        """
        key, part = {"val": "accuracy", "test": "test_accuracy"}[split], getattr(self.data, split)
        if part is None or self.result is None or key not in self.result:
            return None
        return round(self.result[key] * part.images), part.images


class RunDirectory:
    """The files of one run.

    Attributes:
        path: the directory.
        checkpoints, metrics, tensorboard, trackers, report: paths inside it.

    Raises:
        UserError: the path is not UTF-8, as Orbax needs, or on an object store.
    """

    def __init__(self, path: Path):
        scheme = path.parts[0] if path.parts else ""
        if scheme in ("gs:", "s3:"):  # a `Path` has one slash of two
            raise UserError(
                f"{scheme}//{'/'.join(path.parts[1:])}: a run directory is on a disk, since object "
                "stores have no locks; name a folder, and copy it there in the end"
            )
        try:
            str(path.resolve()).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{path}: the path of a run directory must be UTF-8") from error
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.trackers = path / "trackers"
        self.report = path / "report.html"
        self._config = path / "config.json"
        self._run = path / "run.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the directory and keeps other processes out until the block or the process ends.

        A directory that stays empty is removed again.

        Raises:
            UserError: another process trains here, or the path has characters that Orbax takes for
                a pattern.
        """
        if set("[]*?") & set(str(self.path.resolve())):
            raise UserError(f"{self.path}: a --workdir cannot have any of [ ] * ? in its path")
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process trains in {self.path}; name another --workdir"
                ) from None
            yield
        finally:
            os.close(handle)
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def exists(self) -> bool:
        """Whether a run began here."""
        return self._run.exists()

    def check_empty(self) -> None:
        """Refuses to begin a run among other files.

        Raises:
            UserError: the directory holds files that no run wrote, or a complete run that lost its
                checkpoints.
        """
        if self.exists() and self.metadata().result is not None:
            raise UserError(
                f"{self.path} is a complete run without a checkpoint: copy its checkpoints/ back "
                "from a backup, or name another --workdir"
            )
        # A run that died before its first checkpoint leaves these behind.
        own = {self._config, self._run, self.metrics, self.checkpoints, self.tensorboard}
        own |= {self.trackers, self.report}
        if any(not is_unfinished(path) for path in set(self.path.iterdir()) - own):
            raise UserError(f"{self.path} holds other files; name a new directory with --workdir")

    def begin(self, config: Config, metadata: RunMetadata) -> None:
        """Writes down what the run is; from then on it exists."""
        write_json(self._config, config.model_dump())
        write_json(self._run, metadata.model_copy(update=_machine()).model_dump())

    def check_same(self, config: Config, metadata: RunMetadata) -> None:
        """Refuses to continue a run with another config, other data or, if given, other weights.

        A run of an older version has no test, where its source has images for one: it goes on
        without.

        Raises:
            UserError: something differs, and the message names it; or there is no run.
        """
        default = task_named(metadata.task).monitors[0]
        known_config = self.config().with_monitor(default)
        if changed := differences(known_config, config.with_monitor(default)):
            raise UserError(
                f"{self.path} is a run of another config ({'; '.join(changed)}); "
                "name another --workdir, or give the same command to continue it"
            )
        known, new = (m.model_dump(mode="json") for m in (self.metadata(), metadata))
        if "test" not in known["data"] and not config.data.test_fraction:
            new["data"].pop("test", None)
        compared = ("classes", "data", *(["weights"] if metadata.weights else []))
        if changed := [key for key in compared if known[key] != new[key]]:
            raise UserError(
                f"{self.path} cannot be continued: its {' and '.join(changed)} changed since it "
                "began, or an older version of jaxtl wrote it; it stays as it is: put back what it "
                "began with to continue it, or name another --workdir to train anew"
            )

    def note_versions(self) -> None:
        """Says, and writes down, that a run goes on with other versions than it had until now."""
        metadata, now = self.metadata(), _versions()
        before = (metadata.versions, *metadata.continued)[-1]
        changed = [
            f"{name} {before[name]}, now {now[name]}"
            for name in _NUMERICAL
            if before.get(name, now[name]) != now[name]
        ]
        if changed:
            began = "was continued" if metadata.continued else "began"
            text = "this run %s with %s: its numbers may differ from here on"
            _log.warning(text, began, "; ".join(changed))
            noted = metadata.model_copy(update={"continued": (*metadata.continued, now)})
            write_json(self._run, noted.model_dump())

    def note_average(self, phase: str, epochs: Sequence[int]) -> None:
        """Writes down which epochs a phase ends with the average of."""
        metadata = self.metadata()
        averaged = metadata.averaged | {phase: tuple(epochs)}
        write_json(self._run, metadata.model_copy(update={"averaged": averaged}).model_dump())

    def note_rate(self, phase: str, lr: float) -> None:
        """Writes down the learning rate that a phase found."""
        metadata = self.metadata()
        rates = metadata.learning_rates | {phase: lr}
        write_json(self._run, metadata.model_copy(update={"learning_rates": rates}).model_dump())

    def config(self) -> Config:
        """The run's config.

        Raises:
            UserError: there is no run here, the file is damaged, or another version of this
                package wrote it.
        """
        for file in (self._run, self._config):
            if not file.exists():
                raise UserError(f"no run in {self.path}: it has no {file.name}")
        return _read(self._config, Config)

    def phase(self, index: int) -> Phase:
        """The phase that a checkpoint is in.

        Raises:
            UserError: the run has no phase `index`: the checkpoint is damaged.
        """
        phases = self.config().phases
        if index not in range(len(phases)):
            raise UserError(f"{self.path} is damaged: its checkpoint is in phase {index}")
        return phases[index]

    def metadata(self) -> RunMetadata:
        """What `begin` and `finish` wrote.

        Raises:
            UserError: the file is damaged.
        """
        return _read(self._run, RunMetadata)

    def finish(self, result: Mapping[str, float], thresholds: Sequence[float] = ()) -> None:
        """Writes down the result of a complete run, and of several labels their thresholds."""
        metadata = self.metadata()
        named = dict(zip(metadata.classes, thresholds, strict=True)) if thresholds else {}
        done = metadata.model_copy(update={"result": dict(result), "thresholds": named})
        write_json(self._run, done.model_dump())


def find_unfinished(folder: Path, config: Config, metadata: RunMetadata) -> Path | None:
    """Finds the newest unfinished run of the same config and data that no process trains now.

    Args:
        folder: the folder of the run directories.
        config: the config to look for.
        metadata: the classes and data to look for.

    Returns:
        Its directory, or None.
    """
    candidates = []
    for file in folder.glob("*/run.json"):
        with contextlib.suppress(OSError):  # another process removed it
            candidates.append((file.stat().st_mtime, file))
    for _, file in sorted(candidates, reverse=True):
        with contextlib.suppress(UserError, OSError):
            run = RunDirectory(file.parent)
            run.check_same(config, metadata)
            if run.metadata().result is None:
                with run.locked():
                    return run.path
    return None


def _read(path: Path, model: type[Model]) -> Model:
    """Reads a JSON file of a known schema."""
    try:
        return read_record(path, model)
    except (ValueError, UserError) as error:  # a config refuses its keys by a UserError
        raise UserError(
            f"{path} is damaged, or from another version of jaxtl: {reason(error)}"
        ) from error


@functools.cache
def _machine() -> dict[str, object]:
    """What this process runs on."""
    return {
        "versions": _versions(),
        "devices": tuple(f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()),
    }


@functools.cache
def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version()} | versions
