"""How each class fares, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from rich.table import Table

from jaxtl.console import interval_text
from jaxtl.metrics import Evaluation, Proportion, confusion
from jaxtl.multilabel import label_results
from jaxtl.reports.bootstrap import f1_intervals
from jaxtl.reports.measures import ClassRow, LabelRow, class_rows, label_rows

_INTERVAL = "95 % interval"
_COLUMNS = ("images", "correct", "recall", _INTERVAL, "precision", "F1", _INTERVAL)


def class_lines(
    classes: Sequence[str],
    evaluation: Evaluation,
    thresholds: Float[np.ndarray, "classes"] | None,
) -> Iterator[Table | str]:
    """A table with a row for each class, and of one class an image the mean F1.

    Args:
        classes: their names.
        evaluation: the predictions.
        thresholds: of several labels, from which probability on an image has each; None of one
            class an image.
    """
    own = () if thresholds is None else ("average precision", "threshold")
    table = Table("class")
    for column in (*_COLUMNS, *own):
        table.add_column(column, justify="right")
    if thresholds is not None:
        results = label_results(evaluation.labels, evaluation.probabilities, thresholds)
        for name, label in zip(
            classes, label_rows(results, thresholds, len(evaluation.labels)), strict=True
        ):
            more = (label.average_precision, label.threshold)
            table.add_row(name, *_cells(label), *map(_number, more))
        yield table
        return
    counts = confusion(evaluation.labels, evaluation.predicted, len(classes))
    f1 = f1_intervals(counts)
    for name, row in zip(classes, class_rows(counts, f1.classes), strict=True):
        table.add_row(name, *_cells(row))
    yield table
    value, interval = _with_interval(f1.macro)
    yield f"macro_f1 {value}  (95 % interval {interval})"


def _cells(row: ClassRow | LabelRow) -> tuple[str, ...]:
    correct = 0 if row.recall is None else round(row.recall.value * row.images)
    precision = _with_interval(row.precision)[0]
    shown = (*_with_interval(row.recall), precision, *_with_interval(row.f1))
    return str(row.images), str(correct), *shown


def _with_interval(found: Proportion | None) -> tuple[str, str]:
    if found is None:
        return "-", "-"
    interval = interval_text(found.low, found.high) if found.low < found.high else "-"
    return _number(found.value), interval


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
