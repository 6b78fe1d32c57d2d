"""The measurements of a run: `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxtl.errors import UserError
from jaxtl.files import write_whole


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Lets imports go as if a package were not installed, unless it is imported already."""
    hidden = package not in sys.modules
    if hidden:
        sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules[package]


with _without("torch"):  # tensorboardX would import it, to know its tensors
    from tensorboardX import SummaryWriter
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.summary import scalar


class MetricsLog:
    """Writes one JSON object a line, and the same to TensorBoard.

    Args:
        path: of the JSON lines.
        tensorboard: the folder for TensorBoard.
        until: the training step that the run stood at when it was last saved. What an interrupted
            run logged after it will be measured again, and is dropped.
    """

    def __init__(self, path: Path, tensorboard: Path, *, until: int):
        if path.exists():
            kept = [line for line in read_metrics(path) if line["step"] <= until]
            write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._lines = path.open("a")
        self._tensorboard = SummaryWriter(str(tensorboard), purge_step=until + 1)

    def write(
        self, phase: str, epoch: int, step: int, split: str, metrics: Mapping[str, float]
    ) -> None:
        """Logs the measurements of one split after an epoch.

        Args:
            phase: its name.
            epoch: epochs of the phase that are complete.
            step: training steps since the run began.
            split: `train` or `val`.
            metrics: name and value.
        """
        line = {"phase": phase, "epoch": epoch, "step": step, "split": split, **metrics}
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        summary = Summary()
        for name, value in metrics.items():
            summary.MergeFrom(scalar(f"{split}/{name}", value))
        # One event for all of them: each goes through a queue between processes.
        self._tensorboard.file_writer.add_summary(summary, step)

    def close(self) -> None:
        """Writes what is left to disk."""
        self._lines.close()
        self._tensorboard.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the measurements of a run; a last line that a crash cut off does not count.

    Raises:
        UserError: another line is damaged.
    """
    lines = path.read_text().split("\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
