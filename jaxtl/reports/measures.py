"""What a page says of the predictions: intervals, classes, confusions and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxtl.metrics import Proportion, proportion
from jaxtl.multilabel import LabelResult
from jaxtl.reports.bootstrap import f1_intervals

BINS = 15  # as Guo et al. 2017 take
COOLEST, HOTTEST = 0.05, 20.0  # temperatures that are looked for


class ClassRow(NamedTuple):
    """How well one class is recognised.

    Attributes:
        images: the number of images of the class (its support).
        precision, recall: None without images to divide by.
        f1: their harmonic mean; None where the class was neither there nor predicted.
    """

    images: int
    precision: Proportion | None
    recall: Proportion | None
    f1: Proportion | None


class LabelRow(NamedTuple):
    """How well one of several labels is predicted.

    Attributes:
        images, precision, recall, f1: as of a class; it is predicted from its threshold on.
        average_precision: the area under its precision-recall curve; None without images.
        threshold: the probability from which on it is predicted.
    """

    images: int
    precision: Proportion | None
    recall: Proportion | None
    f1: Proportion | None
    average_precision: float | None
    threshold: float


class Pair(NamedTuple):
    """Two classes, by index, and how many images of one were classified as the other."""

    true: int
    predicted: int
    images: int
    of: int


@dataclass(frozen=True)
class Calibration:
    """Whether the network is as often right as it says.

    Attributes:
        images: the number of images in each of 15 bins of equal width by confidence, which is the
            probability of the predicted class.
        confidence, accuracy: their means in each bin, 0 in an empty one.
        error: the expected calibration error, 0..1.
        temperature: what the logits are divided by for the least loss on these images, 0.05..20.
        error_at_temperature: the error with the logits divided by it.
        loss, loss_at_temperature: the mean cross-entropies without and with it, in nats.
    """

    images: Int[np.ndarray, "bins"]
    confidence: Float[np.ndarray, "bins"]
    accuracy: Float[np.ndarray, "bins"]
    error: float
    temperature: float
    error_at_temperature: float
    loss: float
    loss_at_temperature: float


def class_rows(
    counts: Int[np.ndarray, "classes classes"], f1s: Sequence[Proportion | None]
) -> list[ClassRow]:
    """The result of each class, from the counts of `metrics.confusion` and the F1 of each."""
    parts = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    columns = zip(*(part.tolist() for part in parts), f1s, strict=True)
    return [_class_row(*each) for each in columns]


def label_rows(
    results: Sequence[LabelResult], thresholds: Float[np.ndarray, "classes"], images: int
) -> list[LabelRow]:
    """The result of each of several labels, from those of `multilabel.label_results`.

    Args:
        results: those of each label.
        thresholds: the probability from which on each is predicted.
        images: the number of images.
    """
    rows = []
    for found, threshold in zip(results, thresholds.tolist(), strict=True):
        missed, wrong = found.images - found.correct, found.predicted - found.correct
        neither = images - found.correct - missed - wrong
        f1 = f1_intervals(np.asarray([[neither, wrong], [missed, found.correct]])).classes[1]
        row = _class_row(found.correct, found.images, found.predicted, f1)
        rows.append(LabelRow(*row, found.average_precision, threshold))
    return rows


def _class_row(correct: int, images: int, predicted: int, f1: Proportion | None) -> ClassRow:
    return ClassRow(
        images,
        proportion(correct, predicted) if predicted else None,
        proportion(correct, images) if images else None,
        f1,
    )


def most_confused(counts: Int[np.ndarray, "classes classes"], most: int) -> list[Pair]:
    """The pairs of classes with the most wrong images, the worst first.

    Args:
        counts: the counts of `metrics.confusion`.
        most: the largest number of pairs.
    """
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        Pair(int(true), int(predicted), int(wrong[true, predicted]), int(counts[true].sum()))
        for true, predicted in pairs
        if wrong[true, predicted]
    ]


def calibration(
    log_probabilities: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, "images"]
) -> Calibration:
    """Calibration as in Guo et al. 2017, arXiv:1706.04599, with the temperature of section 4.2.

    Args:
        log_probabilities: natural logarithms (N, C).
        labels: class indices (N,).
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def scaled(temperature: float) -> np.ndarray:
        return log_softmax(log_probabilities / temperature, axis=1)

    def loss(logs: np.ndarray) -> float:
        return -float(np.mean(logs[np.arange(len(labels)), labels], dtype=np.float64))

    best = minimize_scalar(
        lambda log_temperature: loss(scaled(np.exp(log_temperature))),
        bounds=np.log([COOLEST, HOTTEST]),
        method="bounded",
    )
    # The search ends near a bound, not at it, and anywhere where the loss is 0.
    candidates = float(np.exp(best.x)), COOLEST, HOTTEST
    temperature = min(candidates, key=lambda temperature: loss(scaled(temperature)))
    temperature = COOLEST if best.fun == 0 else temperature
    after = scaled(temperature)
    images, confidence, accuracy = _bins(log_probabilities, labels)
    return Calibration(
        images,
        confidence,
        accuracy,
        _error(images, confidence, accuracy),
        temperature,
        _error(*_bins(after, labels)),
        loss(log_probabilities),
        loss(after),
    )


def _bins(logs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, mean confidence and accuracy of each bin; a bin includes its upper edge."""
    confidence = np.exp(logs.max(axis=1).astype(np.float64))
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    correct = logs.argmax(axis=1) == labels
    sums = (np.bincount(bins, weights=values, minlength=BINS) for values in (confidence, correct))
    mean_confidence, accuracy = (total / np.maximum(images, 1) for total in sums)
    return images, mean_confidence, accuracy


def _error(images: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray) -> float:
    return float(np.average(np.abs(accuracy - confidence), weights=images))
