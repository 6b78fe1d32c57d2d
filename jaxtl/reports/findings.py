"""What is learnt from the predictions for the validation images, once a run has ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jaxtl.config import Config
from jaxtl.data.decoding import decode
from jaxtl.data.sources import Source
from jaxtl.metrics import Evaluation, Proportion, Sums, confusion
from jaxtl.models import Network, Variables
from jaxtl.multilabel import label_results, mean_metrics
from jaxtl.reports.bootstrap import f1_intervals
from jaxtl.reports.gradcam import grad_cam
from jaxtl.reports.measures import (
    Calibration,
    ClassRow,
    LabelRow,
    calibration,
    class_rows,
    label_rows,
)
from jaxtl.reports.thumbnails import overlay, thumbnail

_MISTAKES = 12


@dataclass(frozen=True)
class Mistake:
    """An image of which the network was sure, and wrong.

    Attributes:
        name: what the source calls it.
        true, predicted: indices of classes.
        confidence: the probability of the predicted class, 0..1.
        image: the image as the network sees it, as a `data:` URI.
        overlay: the same with the Grad-CAM of the predicted class.
    """

    name: str
    true: int
    predicted: int
    confidence: float
    image: str
    overlay: str


@dataclass(frozen=True)
class Findings:
    """What a page says of the predictions.

    Attributes:
        sums: the exact sums over the validation images.
        rows: the result of each class.
        means: of several labels the means over these, `mAP` and `macro_f1`.
        macro_f1: the mean F1 of the classes, with its interval; None of several labels, as the
            rest.
        counts: how many images of each class (row) were classified as each class (column).
        calibration: how far the probabilities can be trusted.
        mistakes: the most confident ones, the worst first.
    """

    sums: Sums
    rows: Sequence[ClassRow | LabelRow]
    means: Mapping[str, float] = dataclasses.field(default_factory=dict)
    macro_f1: Proportion | None = None
    counts: Int[np.ndarray, "classes classes"] | None = None
    calibration: Calibration | None = None
    mistakes: tuple[Mistake, ...] = ()


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
    logs = evaluation.log_probabilities
    assert logs is not None, "an evaluation without log probabilities"
    if thresholds is not None:
        results = label_results(evaluation.labels, evaluation.probabilities, thresholds)
        rows = label_rows(results, thresholds, len(evaluation.labels))
        return Findings(evaluation.sums, rows, mean_metrics(results))
    counts = confusion(evaluation.labels, evaluation.predicted, len(source.classes))
    f1 = f1_intervals(counts)
    return Findings(
        evaluation.sums,
        class_rows(counts, f1.classes),
        macro_f1=f1.macro,
        counts=counts,
        calibration=calibration(logs, evaluation.labels),
        mistakes=_mistakes(config, evaluation, logs, source, network, variables),
    )


def _mistakes(
    config: Config,
    evaluation: Evaluation,
    logs: np.ndarray,
    source: Source,
    network: Network,
    variables: Variables,
) -> tuple[Mistake, ...]:
    wrong = np.flatnonzero(evaluation.predicted != evaluation.labels)
    confidence = np.exp(logs[wrong, evaluation.predicted[wrong]])
    worst = wrong[np.argsort(-confidence, kind="stable")[:_MISTAKES]]
    if not len(worst):
        return ()
    size, resize = config.model.image_size, config.data.resize
    images = np.stack([decode(source[int(index)], size, resize) for index in worst])
    cams = grad_cam(network, variables, images, evaluation.predicted[worst])
    return tuple(
        Mistake(
            source.describe(int(index)),
            int(evaluation.labels[index]),
            int(evaluation.predicted[index]),
            float(np.exp(logs[index, evaluation.predicted[index]])),
            thumbnail(image),
            overlay(image, cam),
        )
        for index, image, cam in zip(worst, images, cams, strict=True)
    )
