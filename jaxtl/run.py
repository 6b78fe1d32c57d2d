"""The run directory: what a run is, what it measured, and how it is found again."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pydantic

from jaxtl.config import Config, differences
from jaxtl.errors import UserError

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

    def exists(self) -> bool:
        """Whether a run began here."""
        return self._run.exists()

    def check_empty(self) -> None:
        """Refuses to begin a run among other files.

        Raises:
            UserError: the directory holds something that no run left behind.
        """
        left_behind = {self.checkpoints, self._config}  # by a run that died before it began
        if self.path.exists() and set(self.path.iterdir()) - left_behind:
            raise UserError(f"{self.path} holds other files; name a new directory with --workdir")

    def begin(self, config: Config, facts: Mapping[str, Any]) -> None:
        """Writes down what the run is, which is when it exists.

        Args:
            config: all of it.
            facts: JSON-friendly facts: classes, weights, data.
        """
        _write(self._config, config.model_dump())
        machine = {
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in _PACKAGES},
            "devices": [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
        }
        _write(self._run, {**facts, **machine})

    def check_same(self, config: Config, facts: Mapping[str, Any]) -> None:
        """Refuses to continue a run as something that it is not.

        Raises:
            UserError: the config or the data changed; the differences are named.
        """
        if changed := differences(self.config(), config):
            raise UserError(
                f"{self.path} is a run of another config ({'; '.join(changed)}); "
                "name another --workdir, or give the same command to continue it"
            )
        known = self.facts()
        if changed := [key for key in facts if known.get(key) != facts[key]]:
            raise UserError(
                f"{self.path} cannot be continued: its {' and '.join(changed)} changed since it "
                "began; name another --workdir"
            )

    def config(self) -> Config:
        """The run's config.

        Raises:
            UserError: there is no run here, or a newer or older version of this package wrote it.
        """
        if not self.exists():
            raise UserError(f"no run in {self.path}: it has no {self._run.name}")
        try:
            return Config.model_validate_json(self._config.read_text())
        except pydantic.ValidationError as error:
            raise UserError(f"{self._config} is not a config of this version: {error}") from error

    def facts(self) -> dict[str, Any]:
        """What `begin` and `finish` wrote."""
        return json.loads(self._run.read_text())

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes down the result of a complete run."""
        _write(self._run, {**self.facts(), "result": dict(result)})


def _write(path: Path, content: Any) -> None:
    """Writes JSON so that a crash leaves either the old file or the new one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(part, path)
