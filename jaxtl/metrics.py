"""Loss and accuracy as exact sums over images."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

Scalar = int | float | Array

CLASS_METRICS = frozenset({"balanced_accuracy", "macro_f1", "auroc", "mAP"})
"""The metrics in which all classes count the same; sums over images do not give them."""


class Sums(NamedTuple):
    """Metrics as sums over images; adding two gives the sums over both sets of images.

    Attributes:
        loss: the sum of the cross-entropies, in nats.
        top1: the number of images whose predicted class is correct.
        top5: the number of images whose class is among the five likeliest.
        images: the number of images.
    """

    loss: Scalar
    top1: Scalar
    top5: Scalar
    images: Scalar

    def __add__(self, other: tuple) -> Sums:
        return Sums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def means(self, num_classes: int) -> dict[str, float]:
        """Loss, accuracy and, with more than five classes, top-5 accuracy."""
        loss, top1, top5 = (float(total) / float(self.images) for total in self[:3])
        return {"loss": loss, "accuracy": top1} | ({"top5": top5} if num_classes > 5 else {})


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The predictions of a network on labelled images.

    Attributes:
        sums: the exact sums over every image once.
        labels: the true classes, in the order of the source; of several labels (images, classes).
        predicted: the predicted classes, likewise.
        log_probabilities: natural logarithms of the probabilities, (images, classes); None if
            nobody asked for them.
    """

    sums: Sums
    labels: Int[np.ndarray, "images *classes"]
    predicted: Int[np.ndarray, "images *classes"]
    log_probabilities: Float[np.ndarray, "images classes"] | None = None

    @property
    def probabilities(self) -> Float[np.ndarray, "images classes"]:
        """The probabilities of all classes, as `Predictor.predict` gives them."""
        assert self.log_probabilities is not None, "an evaluation without probabilities"
        return np.exp(self.log_probabilities)

    def metrics(self, num_classes: int, monitor: str | None = "accuracy") -> dict[str, float]:
        """The means over the images, and what a phase monitors if that is none of them.

        Without a finite loss the latter is NaN.
        """
        means = self.sums.means(num_classes)
        if monitor not in CLASS_METRICS:
            return means
        finite = np.isfinite(means["loss"])
        return means | {monitor: class_metric(monitor, self) if finite else np.nan}


class Proportion(NamedTuple):
    """A fraction with its 95% interval, all in 0..1."""

    value: float
    low: float
    high: float


def proportion(correct: int, images: int) -> Proportion:
    """A fraction with its Wilson score interval (Wilson 1927, JASA 22, pages 209-212).

    SciPy has it too, and takes a second to be imported.

    Args:
        correct: 0..images.
        images: at least 1.
    """
    fraction, z = correct / images, statistics.NormalDist().inv_cdf(0.975)
    centre = fraction + z**2 / (2 * images)
    half = z * math.sqrt(fraction * (1 - fraction) / images + (z / (2 * images)) ** 2)
    low, high = ((centre + side) / (1 + z**2 / images) for side in (-half, half))
    return Proportion(fraction, max(low, 0.0), min(high, 1.0))


def class_metric(name: str, evaluation: Evaluation) -> float:
    """A metric in which all classes count the same, 0..1, as scikit-learn computes it.

    It is a mean over the classes that the labels have. Images that are classified as another one
    count as wrong.

    Args:
        name: `balanced_accuracy`, the mean recall; `macro_f1`, the mean F1; or `auroc`, the mean
            area under the ROC curves of each class against all others, of two classes that of the
            second one.
        evaluation: the predictions; for `auroc` with log probabilities, and of two classes at
            least.
    """
    from sklearn import metrics

    labels, predicted = evaluation.labels, evaluation.predicted
    present = np.unique(labels)
    if name == "auroc":
        assert evaluation.log_probabilities is not None, "an evaluation without probabilities"
        probabilities = np.exp(evaluation.log_probabilities.astype(np.float64))
        if probabilities.shape[1] == 2:
            return float(metrics.roc_auc_score(labels, probabilities[:, 1]))
        return float(metrics.roc_auc_score(labels[:, None] == present, probabilities[:, present]))
    of_class = {"balanced_accuracy": metrics.recall_score, "macro_f1": metrics.f1_score}[name]
    return float(of_class(labels, predicted, labels=present, average="macro", zero_division=0))


def monitored(monitor: str | None, metrics: Mapping[str, float]) -> float:
    """What a phase orders its epochs by, better ones higher.

    Args:
        monitor: a name from `Evaluation.metrics`; None for the accuracy.
        metrics: what that returns.
    """
    return -metrics["loss"] if monitor == "loss" else metrics[monitor or "accuracy"]


def quality(score: float, loss: float) -> tuple[float, float]:
    """Orders validation results, better ones last: by what is monitored, as a number that is higher
    where it is better, and by loss between equals.
    """
    return score, -loss


def to_host(sums: Sums) -> list[Sums]:
    """Fetches the sums (S,) of S steps as Python numbers: float64, and integers of any size."""
    return [
        Sums(float(loss), *map(int, counts))
        for loss, *counts in zip(*jax.device_get(sums), strict=True)
    ]


def score(
    log_probabilities: Float[np.ndarray, "batch classes"],
    labels: Int[np.ndarray, "batch"],
    valid: Bool[np.ndarray, "batch"],
) -> Sums:
    """The sums of a batch on the host.

    Args:
        log_probabilities: (B, C).
        labels: class indices (B,).
        valid: False for padding (B,).
    """
    of_labels = log_probabilities[np.arange(len(labels)), labels][valid]
    top1, top5 = (
        np.asarray(correct)[valid] for correct in _correct_top_k(log_probabilities, labels)
    )
    return Sums(
        -float(of_labels.sum(dtype=np.float64)), int(top1.sum()), int(top5.sum()), int(valid.sum())
    )


NONE = Sums(0.0, 0, 0, 0)


def cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    smoothing: float | Float[Array | np.ndarray, ""] = 0.0,
) -> Float[Array, "batch"]:
    """Softmax cross-entropy of each image, in nats.

    Args:
        logits: (B, C).
        labels: class indices (B,).
        smoothing: fraction of each label that is spread evenly over all classes (Szegedy et al.
            2016, arXiv:1512.00567, section 7).
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def correct_top_k(
    logits: Float[Array, "batch classes"], labels: Int[Array | np.ndarray, "batch"]
) -> tuple[Bool[Array, "batch"], Bool[Array, "batch"]]:
    """Whether the true class is the likeliest, and whether it is among the five likeliest.

    NaN logits count as incorrect.
    """
    best_logits, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    found = (best == labels[:, None]) & ~jnp.isnan(best_logits)
    return found[:, 0], jnp.any(found, axis=1)


_correct_top_k = jax.jit(correct_top_k)


def confusion(
    labels: Int[np.ndarray, "images"], predicted: Int[np.ndarray, "images"], num_classes: int
) -> Int[np.ndarray, "classes classes"]:
    """How many images of each class (row) were classified as each class (column)."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


class ClassResult(NamedTuple):
    """How well one class is recognised.

    Attributes:
        images: the number of images of the class.
        correct: the number of these that are classified as the class.
        recall: the fraction of the images of the class that are correct; None without images.
        precision: the fraction of the images classified as the class that are correct; None if no
            image is.
    """

    images: int
    correct: int
    recall: float | None
    precision: float | None


def class_results(counts: Int[np.ndarray, "classes classes"]) -> Iterator[ClassResult]:
    """Yields the result of each class, from the counts of `confusion`."""
    sums = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    for images, predicted, correct in zip(*(part.tolist() for part in sums), strict=True):
        recall, precision = (correct / all if all else None for all in (images, predicted))
        yield ClassResult(images, correct, recall, precision)
