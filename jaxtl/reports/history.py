"""The metrics log of a run as curves over all epochs of its phases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtl.reports.charts import Chart, Line, chart

Row = dict[str, Any]

_COLOURS = {"train": 1, "val": 2}
_RESULTS = ("loss", "accuracy")
_TITLES = {
    "loss": "loss (nats)",
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "mAP": "mean average precision",
    "macro_f1": "macro F1",
    "images_per_second": "training speed (images/s)",
    "input_wait": "waiting for input (fraction of the time)",
    "memory_gb": "peak device memory (GB)",
    "mfu": "model FLOPs utilisation",
}
_MACHINE = ("images_per_second", "input_wait", "memory_gb", "mfu")


def begins(rows: Sequence[Row]) -> dict[str, int]:
    """The number of epochs before each phase, by its name, in order."""
    epochs: dict[str, int] = {}
    for row in rows:
        epochs[row["phase"]] = max(epochs.get(row["phase"], 0), row["epoch"])
    starts, before = {}, 0
    for phase, count in epochs.items():
        starts[phase], before = before, before + count
    return starts


def series(rows: Sequence[Row], split: str, column: str) -> list[tuple[float, float]]:
    """A column of a split over the epochs since the run began."""
    starts = begins(rows)
    return [
        (starts[row["phase"]] + row["epoch"], row[column])
        for row in rows
        if row["split"] == split and row.get(column) is not None
    ]


def curves(rows: Sequence[Row]) -> tuple[list[Chart], list[Chart]]:
    """A chart of each column of the log: of results, and of the machine."""
    marks = [(start + 0.5, phase) for phase, start in begins(rows).items()]
    splits = list(dict.fromkeys(row["split"] for row in rows))
    columns = dict.fromkeys(key for row in rows for key in row)
    named = [*_RESULTS, *(key for key in columns if key not in _RESULTS)]
    results: list[Chart] = []
    machine: list[Chart] = []
    for column in named:
        if column in ("phase", "epoch", "step", "split"):
            continue
        lines = [
            Line(split, _COLOURS.get(split, 3), points)
            for split in splits
            if (points := series(rows, split, column))
        ]
        if lines:
            drawn = chart(title_of(column), lines, marks)
            (machine if column in _MACHINE else results).append(drawn)
    return results, machine


def title_of(column: str) -> str:
    """What a chart of a column is called."""
    return _TITLES.get(column, column.replace("_", " "))
