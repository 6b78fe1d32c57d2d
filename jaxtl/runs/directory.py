"""The run directory: what a run is, what it measured, and how it is found again."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import pydantic

from jaxtl.config.config_file import Config, differences
from jaxtl.errors import UserError
from jaxtl.files import part_of, write_whole

_PACKAGES = ("jaxtl", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class RunDirectory:
    """The files of one run; see the names below.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.report = path / "report.html"
        self._config = path / "config.json"
        self._run = path / "run.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the directory and keeps other processes out until the block or the process ends.

        A directory in which nothing came to be is removed again.

        Raises:
            UserError: another process trains here, or the path is none that Orbax can write to.
        """
        if set("[]*?") & set(str(self.path.resolve())):  # Orbax takes it for a pattern
            raise UserError(f"{self.path}: a --workdir cannot have any of [ ] * ? in its path")
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                wanted = f"another process trains in {self.path}; name another --workdir"
                raise UserError(wanted) from None
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
            UserError: the directory holds something that no run left behind.
        """
        # What a run leaves behind that died before its first checkpoint.
        own = {self._config, self._run, self.metrics, self.checkpoints}
        own |= {self.tensorboard} | {part_of(path) for path in (self._config, self._run)}
        if set(self.path.iterdir()) - own:
            raise UserError(f"{self.path} holds other files; name a new directory with --workdir")

    def begin(self, config: Config, metadata: Mapping[str, Any]) -> None:
        """Writes down what the run is, which is when it exists.

        Args:
            config: all of it.
            metadata: JSON-friendly metadata: classes, weights, data, and where these lie.
        """
        write_json(self._config, config.model_dump())
        write_json(self._run, {**metadata, **_machine()})

    def check_same(self, config: Config, metadata: Mapping[str, Any]) -> None:
        """Refuses to continue a run as something that it is not.

        Raises:
            UserError: the config or the data changed; the differences are named.
        """
        if changed := differences(self.config(), config):
            raise UserError(
                f"{self.path} is a run of another config ({'; '.join(changed)}); "
                "name another --workdir, or give the same command to continue it"
            )
        known = self.metadata()
        if changed := [key for key in metadata if known.get(key) != metadata[key]]:
            raise UserError(
                f"{self.path} cannot be continued: its {' and '.join(changed)} changed since it "
                "began; name another --workdir"
            )

    def config(self) -> Config:
        """The run's config.

        Raises:
            UserError: there is no run here, or a newer or older version of this package wrote it.
        """
        if not (self.exists() and self._config.exists()):
            raise UserError(f"no run in {self.path}: it has no {self._run.name}")
        try:
            return Config.model_validate_json(self._config.read_text())
        except pydantic.ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UserError(f"{self._config} is no config of this version: {reason}") from error

    def metadata(self) -> dict[str, Any]:
        """What `begin` and `finish` wrote.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return json.loads(self._run.read_text())
        except ValueError as error:
            raise UserError(f"{self._run} is damaged: {error}") from error

    def convention(self) -> str:
        """The convention of the weights that the run began with."""
        weights = self.metadata()["weights"]
        return weights["convention"] if weights else "keras"

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes down the result of a complete run."""
        write_json(self._run, {**self.metadata(), "result": dict(result)})


@functools.cache
def _machine() -> dict[str, Any]:
    """What this process runs on."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
    }


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that a crash leaves either the old file or the new one."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_whole(path, text.encode())
