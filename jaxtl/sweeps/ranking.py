"""The runs of a sweep, best first: a table for the terminal and a CSV file."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

_SHOWN = 20  # rows on the terminal


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A run of a sweep.

    Attributes:
        name: of its directory.
        varied: the values of the keys that vary, the same keys for all runs.
        result: what `run.json` says; None for a run whose loss was no number in the end.
    """

    name: str
    varied: Mapping[str, Any]
    result: Mapping[str, float] | None


def ranked(runs: Sequence[Ranked]) -> list[Ranked]:
    """Sorts runs by validation accuracy, then loss, then as they were; the best is first."""

    def rank(run: Ranked) -> tuple[float, float]:
        if run.result is None:
            return math.inf, math.inf
        return -run.result["accuracy"], run.result["loss"]

    return sorted(runs, key=rank)


def ranking_table(runs: Sequence[Ranked], rest: Path) -> Table:
    """The best runs as a table.

    Args:
        runs: from `ranked`.
        rest: the file that holds them all.
    """
    more = len(runs) - _SHOWN
    table = Table(caption=f"and {more:,} more in {rest}" if more > 0 else None)
    for key in runs[0].varied:
        table.add_column(key)
    for column in ("val_accuracy", "val_loss", "steps"):
        table.add_column(column, justify="right")
    table.add_column("run")
    for run in runs[:_SHOWN]:
        result = ("diverged", "", "")
        if run.result is not None:
            accuracy, loss = f"{run.result['accuracy']:.4f}", f"{run.result['loss']:.4f}"
            result = (accuracy, loss, f"{run.result['step']:,}")
        varied = (f"{v:g}" if isinstance(v, float) else str(v) for v in run.varied.values())
        table.add_row(*varied, *result, run.name)
    return table


def write_ranking(path: Path, runs: Sequence[Ranked]) -> None:
    """Writes all runs as CSV; a metric that a run does not have is `nan`.

    Args:
        path: of the file; one that is there is replaced.
        runs: from `ranked`.
    """
    known = frozenset().union(*(run.result for run in runs if run.result is not None))
    metrics = [name for name in ("accuracy", "loss", "top5") if name in known]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *runs[0].varied, *(f"val_{name}" for name in metrics), "steps"])
        for run in runs:
            result = run.result or {}
            steps = int(result["step"]) if result else ""
            measured = [result.get(name, math.nan) for name in metrics]
            writer.writerow([run.name, *run.varied.values(), *measured, steps])
