"""How each class fares, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from jaxtl.console import interval_text
from jaxtl.metrics import ClassResult, Evaluation, Proportion, class_results, confusion, proportion
from jaxtl.reports.bootstrap import f1_intervals

_INTERVAL = "95 % interval"
_COLUMNS = ("images", "correct", "recall", _INTERVAL, "precision", "F1", _INTERVAL)


def class_lines(classes: Sequence[str], evaluation: Evaluation) -> Iterator[Table | str]:
    """A table with a row for each class, and the mean F1.

    Args:
        classes: their names.
        evaluation: the predictions.
    """
    counts = confusion(evaluation.labels, evaluation.predicted, len(classes))
    f1s = f1_intervals(counts)
    table = Table("class")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for name, found, f1 in zip(classes, class_results(counts), f1s.classes, strict=True):
        table.add_row(name, *_cells(found), *_f1_cells(f1))
    yield table
    value, interval = _f1_cells(f1s.macro)
    yield f"macro_f1 {value}  (95 % interval {interval})"


def _cells(found: ClassResult) -> tuple[str, ...]:
    interval = "-"
    if found.images:
        interval = interval_text(*proportion(found.correct, found.images)[1:])
    recall, precision = ("-" if f is None else f"{f:.4f}" for f in (found.recall, found.precision))
    return str(found.images), str(found.correct), recall, interval, precision


def _f1_cells(f1: Proportion | None) -> tuple[str, str]:
    if f1 is None:
        return "-", "-"
    return f"{f1.value:.4f}", interval_text(f1.low, f1.high) if f1.low < f1.high else "-"
