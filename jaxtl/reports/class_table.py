"""How each class fares, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from rich.table import Table

from jaxtl.metrics import ClassResult, Evaluation, class_results, confusion, proportion
from jaxtl.multilabel import LabelResult, label_results

_COLUMNS = ("images", "correct", "recall", "95 % interval", "precision")


def class_table(
    classes: Sequence[str],
    evaluation: Evaluation,
    thresholds: Float[np.ndarray, "classes"] | None,
) -> Table:
    """A row for each class.

    Args:
        classes: their names.
        evaluation: the predictions.
        thresholds: of several labels, from which probability on an image has each; None of one
            class an image.
    """
    own = () if thresholds is None else ("F1", "average precision", "threshold")
    table = Table("class")
    for column in (*_COLUMNS, *own):
        table.add_column(column, justify="right")
    if thresholds is None:
        counts = confusion(evaluation.labels, evaluation.predicted, len(classes))
        for name, found in zip(classes, class_results(counts), strict=True):
            table.add_row(name, *_cells(found))
        return table
    results = label_results(evaluation.labels, evaluation.probabilities, thresholds)
    for name, label, threshold in zip(classes, results, thresholds.tolist(), strict=True):
        more = (label.f1 if label.images else None, label.average_precision, threshold)
        table.add_row(name, *_cells(_as_class(label)), *map(_number, more))
    return table


def _as_class(label: LabelResult) -> ClassResult:
    recall, precision = (
        label.correct / all if all else None for all in (label.images, label.predicted)
    )
    return ClassResult(label.images, label.correct, recall, precision)


def _cells(found: ClassResult) -> tuple[str, ...]:
    _, *bounds = proportion(found.correct, found.images) if found.images else (None,)
    interval = " to ".join(map(_number, bounds)) or "-"
    recall, precision = map(_number, (found.recall, found.precision))
    return str(found.images), str(found.correct), recall, interval, precision


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
