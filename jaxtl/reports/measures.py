"""What a page says of the predictions: intervals, classes, confusions and calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxtl.metrics import Proportion, proportion
from jaxtl.multilabel import LabelResult, log_complements
from jaxtl.reports.bootstrap import f1_intervals

BINS = 15  # as Guo et al. 2017 take
COOLEST, HOTTEST = 0.05, 20.0  # temperatures that are looked for
_ROUNDING = 1e-7  # of a loss: a gain that is smaller chooses no temperature


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
        predictions: how many there are in each of 15 bins of equal width: of images by the
            probability of the predicted class, of labels of images by that of the label.
        probability: its mean in each bin, 0 in an empty one.
        fraction: how many of each bin are correct, or have the label, 0..1, likewise.
        error: the expected calibration error, 0..1.
        temperature: what the logits are divided by for the least loss on these images, 0.05..20.
        error_at_temperature: the error with the logits divided by it.
        loss, loss_at_temperature: the mean cross-entropies without and with it, in nats.
    """

    predictions: Int[np.ndarray, "bins"]
    probability: Float[np.ndarray, "bins"]
    fraction: Float[np.ndarray, "bins"]
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
    from scipy.special import log_softmax

    def scaled(temperature: float) -> np.ndarray:
        return log_softmax(log_probabilities / temperature, axis=1)

    def loss(temperature: float) -> float:
        of_labels = scaled(temperature)[np.arange(len(labels)), labels]
        return -float(np.mean(of_labels, dtype=np.float64))

    correct = log_probabilities.argmax(axis=1) == labels
    return _calibration(loss, lambda t: np.exp(scaled(t).max(axis=1).astype(np.float64)), correct)


def label_calibration(
    log_probabilities: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, "images classes"],
) -> Calibration:
    """Calibration of all labels of all images, each a prediction of its own.

    The bins are those of a binary classifier (Niculescu-Mizil and Caruana 2005,
    doi:10.1145/1102351.1102430): by the probability of the label, whether or not it is predicted.

    Args:
        log_probabilities: natural logarithms (N, C).
        labels: ones and zeros (N, C).
    """
    from scipy.special import expit, log_expit

    has = labels.ravel() > 0
    logits = (log_probabilities.astype(np.float64) - log_complements(log_probabilities)).ravel()
    of_answers = np.where(has, logits, -logits)
    return _calibration(
        lambda temperature: -float(np.mean(log_expit(of_answers / temperature))),
        lambda temperature: expit(logits / temperature),
        has,
    )


def _calibration(
    loss: Callable[[float], float],
    probability: Callable[[float], Float[np.ndarray, "predictions"]],
    came_true: Bool[np.ndarray, "predictions"],
) -> Calibration:
    """Calibration of predictions whose loss and probabilities are known at each temperature."""
    from scipy.optimize import minimize_scalar

    best = minimize_scalar(
        lambda log_temperature: loss(float(np.exp(log_temperature))),
        bounds=np.log([COOLEST, HOTTEST]),
        method="bounded",
    )
    # The search ends near a bound, not at it, and anywhere where the loss is 0.
    temperature = min((float(np.exp(best.x)), COOLEST, HOTTEST), key=loss)
    if loss(1.0) - loss(temperature) < _ROUNDING:
        temperature = 1.0
    temperature = COOLEST if best.fun == 0 else temperature
    predictions, means, fractions = _bins(probability(1.0), came_true)
    return Calibration(
        predictions,
        means,
        fractions,
        _error(predictions, means, fractions),
        temperature,
        _error(*_bins(probability(temperature), came_true)),
        loss(1.0),
        loss(temperature),
    )


def _bins(
    probability: np.ndarray, came_true: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean probability and fraction of each bin; a bin includes its upper edge."""
    bins = np.clip(np.ceil(probability * BINS).astype(int) - 1, 0, BINS - 1)
    predictions = np.bincount(bins, minlength=BINS)
    sums = (
        np.bincount(bins, weights=values, minlength=BINS) for values in (probability, came_true)
    )
    means, fractions = (total / np.maximum(predictions, 1) for total in sums)
    return predictions, means, fractions


def _error(predictions: np.ndarray, means: np.ndarray, fractions: np.ndarray) -> float:
    return float(np.average(np.abs(fractions - means), weights=predictions))
