"""The metrics of a run: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic

from jaxtl.errors import UserError
from jaxtl.files import write_whole
from jaxtl.runs.records import reason
from jaxtl.runs.trackers import Trackers


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Makes an import of a package fail, unless it is imported already."""
    hidden = package not in sys.modules
    if hidden:
        sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[package]


with _hidden("torch"):  # tensorboardX imports it if it is installed, which takes 600 MB
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.summary import scalar


_log = logging.getLogger("jaxtl")

_SECONDS_BETWEEN_FLUSHES = 10.0  # for TensorBoard's file
_LONGEST_LINE = 10_000  # bytes; ours have some 250
_MOST_BYTES = 256_000_000  # half a million epochs


class MetricsLine(pydantic.BaseModel):
    """One line of `metrics.jsonl`: the metrics of a split after an epoch."""

    model_config = pydantic.ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    phase: str
    epoch: int
    step: int
    split: Literal["train", "val"]
    loss: float
    accuracy: float


class MetricsLog:
    """Writes one JSON object a line, and the same to TensorBoard and other trackers.

    Args:
        path: the file for the JSON lines.
        tensorboard: the folder for TensorBoard.
        until: the training step at which the run was last saved. Later lines are removed, since a
            run that continues measures them again. So are damaged ones, and a warning says so.
        trackers: others that get the metrics; None for none.
    """

    def __init__(
        self, path: Path, tensorboard: Path, *, until: int, trackers: Trackers | None = None
    ):
        self._path, self._trackers = path, trackers
        self._remove_after(until)
        tensorboard.mkdir(parents=True, exist_ok=True)
        # Not a SummaryWriter, which starts a thread and a queue between processes for each run.
        self._tensorboard = EventsWriter(str(tensorboard / "events"))
        self._opened = contextlib.ExitStack()
        self._opened.callback(self._tensorboard.close)
        self._lines = path.open("a")
        self._flush_at = time.monotonic() + _SECONDS_BETWEEN_FLUSHES
        self._restart(until)

    def write(
        self, phase: str, epoch: int, step: int, split: str, metrics: Mapping[str, float]
    ) -> None:
        """Logs the metrics of one split after an epoch.

        Args:
            phase: the name of the phase.
            epoch: the number of complete epochs of the phase.
            step: the number of training steps since the run began.
            split: `train` or `val`.
            metrics: the metrics by name; at least `loss` and `accuracy`.
        """
        line = {"phase": phase, "epoch": epoch, "step": step, "split": split, **metrics}
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        summary = Summary()
        for name, value in metrics.items():
            summary.MergeFrom(scalar(f"{split}/{name}", value))
        self._add(Event(step=step, summary=summary))
        if self._trackers is not None:
            self._trackers.write(epoch, step, split, metrics)

    def forget(self, until: int) -> None:
        """Removes all lines after a training step, since the run goes back there."""
        self._lines.close()
        self._remove_after(until)
        self._lines = self._path.open("a")
        self._restart(until)

    def _remove_after(self, until: int) -> None:
        if self._path.exists():
            lines, damage = _read(self._path)
            if damage:
                _log.warning("%s is damaged: %s; its other lines are kept", self._path, damage)
            kept = [line for line in lines if line["step"] <= until]
            write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def _restart(self, until: int) -> None:
        """Makes TensorBoard forget what it has after a step."""
        restart = SessionLog(status=SessionLog.START)
        self._add(Event(step=until + 1, session_log=restart))

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._tensorboard.write_event(event)
        if time.monotonic() >= self._flush_at:  # a flush waits for the disk
            self._tensorboard.flush()
            self._flush_at = time.monotonic() + _SECONDS_BETWEEN_FLUSHES

    def close(self) -> None:
        """Writes the rest to disk; nothing stays open, also after an error."""
        try:
            self._lines.close()
        finally:
            self._opened.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`, without a last line that a crash cut off.

    Raises:
        UserError: another line is damaged, or the file or a line is larger than a run makes it.
    """
    lines, damage = _read(path)
    if damage:
        raise UserError(f"{path} is damaged: {damage}")
    return lines


def _read(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The lines that are whole, and what is wrong with the first that is not, but for the last."""
    lines, damage = [], None
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > _MOST_BYTES:
            raise UserError(f"{path} is damaged: it is larger than {_MOST_BYTES:,} bytes")
        while line := file.readline(_LONGEST_LINE):
            if line.endswith(b"\n"):
                try:
                    lines.append(MetricsLine.model_validate_json(line).model_dump())
                except pydantic.ValidationError as error:
                    damage = damage or reason(error)
            elif len(line) == _LONGEST_LINE:
                damage = damage or f"a line has more than {_LONGEST_LINE:,} bytes"
    return lines, damage
