"""The run directory of a run on several hosts: the first one reads and writes it for all."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import pydantic

from jaxtl.config import Config
from jaxtl.errors import UserError
from jaxtl.files import unfinished
from jaxtl.models import Variables
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.directory import RunDirectory, RunMetadata
from jaxtl.runs.metrics_log import MetricsLog
from jaxtl.runs.progress import Progress
from jaxtl.training import hosts

_SECONDS_FOR_A_NEW_FILE = 10.0  # until a network file system shows it to other hosts
_PROGRESS: pydantic.TypeAdapter[Progress | None] = pydantic.TypeAdapter(
    Progress | None, config=pydantic.ConfigDict(arbitrary_types_allowed=True)
)


class SharedCheckpoints:
    """The checkpoints of a run on several hosts. All hosts call each method at the same point.

    Args:
        own: those of the run on the first host; None on the others.
    """

    def __init__(self, own: Checkpoints | None = None):
        self._own = own

    def save(self, progress: Progress, changed: Variables, optimizer: Any) -> None:
        """The first host starts to write a checkpoint."""
        hosts.from_first(lambda: self._first.save(progress, changed, optimizer))

    def newest(self, before_step: int | None = None) -> Progress | None:
        """The progress at the newest checkpoint that the first host finds."""
        return as_progress(
            hosts.from_first(lambda: progress_as_json(self._first.newest(before_step)))
        )

    def changed(self, number: int, like: Variables) -> Variables:
        """The variables that the run had changed, from the first host."""
        return hosts.from_first(lambda: self._first.changed(number, like))

    def optimizer(self, number: int, like: Any) -> Any:
        """The state of the optimizer, from the first host."""
        leaves = hosts.from_first(lambda: jax.tree.leaves(self._first.optimizer(number, like)))
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def forget(self, after: int) -> None:
        """The first host removes the checkpoints with higher numbers."""
        hosts.from_first(lambda: self._first.forget(after))

    def close(self) -> None:
        """Waits, on the first host, until everything is on disk; alone it may be called at any
        point."""
        if self._own is not None:
            self._own.close()

    @property
    def _first(self) -> Checkpoints:
        assert self._own is not None
        return self._own


class NoLog:
    """The log on a host that writes none."""

    def write(
        self, phase: str, epoch: int, step: int, split: str, metrics: Mapping[str, float]
    ) -> None:
        """Does nothing."""

    def forget(self, until: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


RunCheckpoints = Checkpoints | SharedCheckpoints
RunLog = MetricsLog | NoLog


def progress_as_json(progress: Progress | None) -> str:
    """A progress as text that hosts can send."""
    return json.dumps(_PROGRESS.dump_python(progress))  # pydantic's own has no infinity


def as_progress(text: str) -> Progress | None:
    """The progress that `progress_as_json` wrote."""
    return _PROGRESS.validate_python(json.loads(text))


def check_same_everywhere(config: Config, metadata: RunMetadata) -> None:
    """Refuses to train on hosts that were not given the same.

    Raises:
        UserError: config or data of a host differ from the first host's.
    """
    own = {
        "config": config.model_dump_json(),
        "data": metadata.model_dump_json(include={"classes", "data"}),
    }
    first = hosts.from_first(lambda: own)

    def compare() -> None:
        if differing := [name for name, value in own.items() if first[name] != value]:
            raise UserError(
                f"{' and '.join(differing)} differ from those of the first host: give all hosts "
                "the same command and the same images"
            )

    hosts.together(compare)


def check_shared(run: RunDirectory) -> None:
    """Looks, on every host, for a file that the first host writes into the run directory.

    Raises:
        UserError: a host has another directory there, or none. Another host may come first when
            the run is continued, and would not find it.
    """
    if not hosts.several():
        return

    def wait_for(name: str) -> None:
        deadline = time.monotonic() + _SECONDS_FOR_A_NEW_FILE
        while not (run.path / name).exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{run.path} is not the directory that the first host writes to: give all of "
                    "them a --workdir on storage that they share"
                )
            time.sleep(0.1)

    with contextlib.ExitStack() as held:

        def place() -> str:
            path = held.enter_context(unfinished(run.path / "host"))
            path.touch()
            return path.name

        name = hosts.from_first(place)
        hosts.together(lambda: wait_for(name))
