"""Metrics of images with several labels, from scikit-learn's: each class against all else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

DEFAULT_THRESHOLD = 0.5
"""That of a class for which there is nothing to choose it by."""


def log_complements(
    log_probabilities: Float[np.ndarray, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    """log(1 - p) of log(p), in float64; 1 - p counts as 1e-38 at least.

    The logarithm of a probability near 1 keeps what the probability itself rounds away.
    """
    others = -np.expm1(log_probabilities.astype(np.float64))
    return np.log(np.maximum(others, np.finfo(np.float32).tiny))


class LabelResult(NamedTuple):
    """How well one label is predicted.

    Attributes:
        images: the number of images that have it (its support).
        predicted: the number of images for which it is predicted.
        correct: the number of images that have it and for which it is predicted.
        average_precision: the area under its precision-recall curve, 0..1; None without images.
    """

    images: int
    predicted: int
    correct: int
    average_precision: float | None

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; 0 where the label is nowhere."""
        return 2 * self.correct / max(self.images + self.predicted, 1)


def average_precisions(
    labels: Int[np.ndarray, "images classes"], probabilities: Float[np.ndarray, "images classes"]
) -> Float[np.ndarray, "classes"]:
    """The average precision of each class (`sklearn.metrics.average_precision_score`).

    Args:
        labels: ones and zeros (N, C).
        probabilities: (N, C).

    Returns:
        (C,); NaN for a class that no image has.
    """
    from sklearn.metrics import average_precision_score

    columns = zip(labels.T, probabilities.T, strict=True)
    found = [average_precision_score(own, p) if own.any() else np.nan for own, p in columns]
    return np.asarray(found, np.float64)


def best_thresholds(
    labels: Int[np.ndarray, "images classes"], probabilities: Float[np.ndarray, "images classes"]
) -> Float[np.ndarray, "classes"]:
    """The threshold of each class with the best F1 on these images; of several the lowest.

    It lies half-way between two probabilities, so that rounding rarely moves an image over it.

    Args:
        labels: ones and zeros (N, C).
        probabilities: (N, C).

    Returns:
        (C,); `DEFAULT_THRESHOLD` for a class that no image has.
    """
    from sklearn.metrics import precision_recall_curve

    found = np.full(labels.shape[1], DEFAULT_THRESHOLD)
    for index in np.flatnonzero(labels.any(axis=0)).tolist():
        own = probabilities[:, index].astype(np.float64)
        precision, recall, scores = precision_recall_curve(labels[:, index], own)
        # As counts, which are equal where the F1 is: the numbers of the curve are rounded.
        positives = labels[:, index].sum()
        correct = np.rint(recall[:-1] * positives)
        given = np.rint(correct / np.where(correct, precision[:-1], 1))
        best = int(np.argmax(2 * correct / (positives + given)))
        found[index] = (scores[best] + (scores[best - 1] if best else 0.0)) / 2
    return found


def label_results(
    labels: Int[np.ndarray, "images classes"],
    probabilities: Float[np.ndarray, "images classes"],
    thresholds: Float[np.ndarray, "classes"],
) -> list[LabelResult]:
    """The result of each class: images whose probability is at its threshold or above have it."""
    given, has = probabilities >= thresholds, labels > 0
    counts = (part.sum(axis=0).tolist() for part in (has, given, has & given))
    precisions = average_precisions(labels, probabilities).tolist()
    return [
        LabelResult(images, predicted, correct, None if np.isnan(precision) else precision)
        for images, predicted, correct, precision in zip(*counts, precisions, strict=True)
    ]


def mean_metrics(results: list[LabelResult]) -> dict[str, float]:
    """Mean average precision and macro F1: means over the classes that an image has."""
    there = [result for result in results if result.images]
    precisions = [result.average_precision or 0.0 for result in there]
    return {
        "mAP": float(np.mean(precisions)),
        "macro_f1": float(np.mean([result.f1 for result in there])),
    }
