"""What is learnt from the predictions for the validation images, once a run has ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jaxtl.config import Config
from jaxtl.data.sources import Source
from jaxtl.metrics import Evaluation, Proportion, Sums, confusion
from jaxtl.models import Network, Variables
from jaxtl.multilabel import label_results, mean_metrics
from jaxtl.reports.bootstrap import f1_intervals
from jaxtl.reports.measures import (
    Calibration,
    ClassRow,
    LabelRow,
    calibration,
    class_rows,
    label_calibration,
    label_rows,
)
from jaxtl.reports.mistakes import Mistake, show, wrong_images, wrong_labels


@dataclass(frozen=True)
class Findings:
    """What a page says of the predictions.

    Attributes:
        sums: the exact sums over the validation images.
        rows: the result of each class.
        calibration: how far the probabilities can be trusted.
        mistakes: the most confident ones, the worst first.
        means: of several labels the means over the rows, `mAP` and `macro_f1`.
        macro_f1: the mean F1 of the classes, with its interval; None of several labels.
        counts: how many images of each class (row) were classified as each class (column); None of
            several labels.
    """

    sums: Sums
    rows: Sequence[ClassRow | LabelRow]
    calibration: Calibration
    mistakes: tuple[Mistake, ...]
    means: Mapping[str, float] = dataclasses.field(default_factory=dict)
    macro_f1: Proportion | None = None
    counts: Int[np.ndarray, "classes classes"] | None = None

    @property
    def of_labels(self) -> bool:
        """Whether an image has several labels."""
        return self.counts is None


def find(
    config: Config,
    evaluation: Evaluation,
    source: Source,
    network: Network,
    variables: Variables,
    thresholds: Float[np.ndarray, "classes"] | None = None,
) -> Findings:
    """Draws the conclusions from a validation.

    Args:
        config: the config of the run.
        evaluation: the validation of its result, with log probabilities.
        source: the images, in the same order.
        network, variables: what classified them.
        thresholds: of several labels, from which probability on an image has each.

    Raises:
        UserError: an image cannot be read any more.
    """
    logs, labels = evaluation.log_probabilities, evaluation.labels
    assert logs is not None, "an evaluation without log probabilities"
    shown = config, source, network, variables
    if thresholds is not None:
        results = label_results(labels, evaluation.probabilities, thresholds)
        return Findings(
            evaluation.sums,
            label_rows(results, thresholds, len(labels)),
            label_calibration(logs, labels),
            show(wrong_labels(evaluation, thresholds), *shown),
            means=mean_metrics(results),
        )
    counts = confusion(labels, evaluation.predicted, len(source.classes))
    f1 = f1_intervals(counts)
    return Findings(
        evaluation.sums,
        class_rows(counts, f1.classes),
        calibration(logs, labels),
        show(wrong_images(evaluation), *shown),
        macro_f1=f1.macro,
        counts=counts,
    )
