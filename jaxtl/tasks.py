"""What a classifier is to say of an image: its one class, or which of several labels it has.

A task is how labels become targets, losses, probabilities and metrics; nothing else asks for it.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxtl.labels import class_counts, is_multi_label
from jaxtl.metrics import Evaluation, Sums, correct_top_k, cross_entropy, score
from jaxtl.multilabel import (
    DEFAULT_THRESHOLD,
    best_thresholds,
    label_results,
    log_complements,
    mean_metrics,
)

TaskName = Literal["single-label", "multi-label"]
Activation = Literal["softmax", "sigmoid"]

Logits = Float[Array, "batch classes"]
DeviceLabels = Int[Array, "batch *classes"]
HostLabels = Int[np.ndarray, "batch *classes"]
Weights = Float[Array | np.ndarray, "classes"]
Thresholds = Float[np.ndarray, "classes"] | None


class Task(abc.ABC):
    """How labels become targets, losses, probabilities and metrics.

    Attributes:
        name: what `run.json` calls it.
        activation: what makes probabilities of logits.
        monitors: what a phase may monitor, the default first, by which runs are ranked too.
    """

    name: ClassVar[TaskName]
    activation: ClassVar[Activation]
    monitors: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def log_probabilities(self, logits: Logits) -> Logits:
        """Natural logarithms of the probabilities of the classes."""

    @abc.abstractmethod
    def targets(self, labels: DeviceLabels, classes: int) -> Logits:
        """What each output is to be, 0..1, before smoothing."""

    @abc.abstractmethod
    def losses(
        self,
        logits: Logits,
        targets: Logits,
        *,
        smoothing: float | Float[Array | np.ndarray, ""],
        class_weights: Weights | None,
        focal: float,
    ) -> Float[Array, "batch"]:
        """The loss of each image in training, in nats; the arguments are keys of `Phase`."""

    @abc.abstractmethod
    def weight(self, targets: Logits, class_weights: Weights) -> Float[Array, "batch"]:
        """How much each image counts in the mean of the losses of a batch."""

    @abc.abstractmethod
    def automatic_weights(
        self, labels: Int[np.ndarray, "images *classes"], num_classes: int
    ) -> Float[np.ndarray, "num_classes"]:
        """What `Phase.class_weights="auto"` means for these training images."""

    @abc.abstractmethod
    def sums_of(self, logits: Logits, labels: DeviceLabels, valid: Bool[Array, "batch"]) -> Sums:
        """The metrics of the valid images on a device, without what training adds to the loss."""

    @abc.abstractmethod
    def score(
        self,
        log_probabilities: Float[np.ndarray, "batch classes"],
        labels: HostLabels,
        valid: Bool[np.ndarray, "batch"],
    ) -> Sums:
        """The same on the host."""

    @abc.abstractmethod
    def predicted(self, log_probabilities: Float[np.ndarray, "batch classes"]) -> HostLabels:
        """The likeliest class, or the labels that are more likely than not."""

    @abc.abstractmethod
    def needs_probabilities(self, monitor: str | None) -> bool:
        """Whether the metrics take the probabilities of all images."""

    @abc.abstractmethod
    def means(self, sums: Sums, num_classes: int) -> dict[str, float]:
        """The metrics that sums over images give."""

    @abc.abstractmethod
    def metrics(
        self,
        evaluation: Evaluation,
        num_classes: int,
        monitor: str | None = None,
        thresholds: Thresholds = None,
    ) -> dict[str, float]:
        """All metrics of an evaluation, with what a phase monitors; those of classes are NaN
        without a finite loss.

        `thresholds` are those of the labels; None takes the best for these images.
        """

    @abc.abstractmethod
    def thresholds(self, evaluation: Evaluation) -> Thresholds:
        """The thresholds that are best on these images; None where there is nothing to choose."""


class SingleLabel(Task):
    """Each image has one class."""

    name = "single-label"
    activation = "softmax"
    monitors = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "loss")

    def log_probabilities(self, logits: Logits) -> Logits:
        """Softmax."""
        return jax.nn.log_softmax(logits)

    def targets(self, labels: DeviceLabels, classes: int) -> Logits:
        """One class."""
        return jax.nn.one_hot(labels, classes)

    def losses(
        self,
        logits: Logits,
        targets: Logits,
        *,
        smoothing: float | Float[Array | np.ndarray, ""],
        class_weights: Weights | None,
        focal: float,
    ) -> Float[Array, "batch"]:
        """Cross-entropy."""
        weighted = optax.smooth_labels(targets, smoothing)
        if class_weights is not None:
            weighted = weighted * class_weights
        losses = optax.softmax_cross_entropy(logits, weighted)
        if not focal:
            return losses
        certainty = jnp.sum(targets * jax.nn.softmax(logits), axis=-1)
        # A root has no slope at zero.
        return jnp.maximum(1 - certainty, jnp.finfo(jnp.float32).tiny) ** focal * losses

    def weight(self, targets: Logits, class_weights: Weights) -> Float[Array, "batch"]:
        """The weight of the class."""
        # No matrix product, which some devices round.
        return jnp.sum(targets * class_weights, axis=-1)

    def automatic_weights(
        self, labels: Int[np.ndarray, "images *classes"], num_classes: int
    ) -> Float[np.ndarray, "num_classes"]:
        """N / (C n), with which all classes count the same."""
        counts = class_counts(labels, num_classes)
        return (len(labels) / (num_classes * np.maximum(counts, 1))).astype(np.float32)

    def sums_of(self, logits: Logits, labels: DeviceLabels, valid: Bool[Array, "batch"]) -> Sums:
        """Cross-entropy, and how many are right."""
        top1, top5 = correct_top_k(logits, labels)
        counts = (jnp.sum(chosen & valid) for chosen in (top1, top5, valid))
        return Sums(jnp.sum(cross_entropy(logits, labels), where=valid), *counts)

    def score(
        self,
        log_probabilities: Float[np.ndarray, "batch classes"],
        labels: HostLabels,
        valid: Bool[np.ndarray, "batch"],
    ) -> Sums:
        """See `metrics.score`."""
        return score(log_probabilities, labels, valid)

    def predicted(self, log_probabilities: Float[np.ndarray, "batch classes"]) -> HostLabels:
        """The likeliest class."""
        return log_probabilities.argmax(axis=1)

    def needs_probabilities(self, monitor: str | None) -> bool:
        """Only for the ROC curves."""
        return monitor == "auroc"

    def means(self, sums: Sums, num_classes: int) -> dict[str, float]:
        """See `Sums.means`."""
        return sums.means(num_classes)

    def metrics(
        self,
        evaluation: Evaluation,
        num_classes: int,
        monitor: str | None = None,
        thresholds: Thresholds = None,
    ) -> dict[str, float]:
        """See `Evaluation.metrics`."""
        return evaluation.metrics(num_classes, monitor)

    def thresholds(self, evaluation: Evaluation) -> None:
        """The likeliest class needs none."""
        return


class MultiLabel(Task):
    """Each image has any number of labels; each class has a probability of its own.

    The loss of an image is the mean over the classes, as of Keras' `BinaryCrossentropy` and
    PyTorch's `MultiLabelSoftMarginLoss`. An image is correct where every label is, each predicted
    from a probability of 0.5 on: scikit-learn's `accuracy_score` of such labels.
    """

    name = "multi-label"
    activation = "sigmoid"
    monitors = ("mAP", "macro_f1", "accuracy", "loss")

    def log_probabilities(self, logits: Logits) -> Logits:
        """Sigmoid."""
        return jax.nn.log_sigmoid(logits)

    def targets(self, labels: DeviceLabels, classes: int) -> Logits:
        """Ones and zeros, as they are."""
        return labels.astype(jnp.float32)

    def losses(
        self,
        logits: Logits,
        targets: Logits,
        *,
        smoothing: float | Float[Array | np.ndarray, ""],
        class_weights: Weights | None,
        focal: float,
    ) -> Float[Array, "batch"]:
        """Binary cross-entropies; `class_weights` are PyTorch's `pos_weight`."""

        def of_positives(logits: Logits) -> Logits:
            losses = -jax.nn.log_sigmoid(logits)
            # Not `optax.losses.sigmoid_focal_loss`, whose slope is NaN where a probability is 1.
            return losses * jnp.exp(focal * jax.nn.log_sigmoid(-logits)) if focal else losses

        smoothed = targets * (1 - smoothing) + smoothing / 2  # as Keras' `BinaryCrossentropy`
        positive = smoothed if class_weights is None else smoothed * class_weights
        losses = positive * of_positives(logits) + (1 - smoothed) * of_positives(-logits)
        return jnp.mean(losses, axis=-1)

    def weight(self, targets: Logits, class_weights: Weights) -> Float[Array, "batch"]:
        """Each image counts the same, as with `pos_weight`."""
        return jnp.ones(len(targets))

    def automatic_weights(
        self, labels: Int[np.ndarray, "images *classes"], num_classes: int
    ) -> Float[np.ndarray, "num_classes"]:
        """Images without the label for each with it, at least one in all."""
        counts = class_counts(labels, num_classes)
        without = np.maximum(len(labels) - counts, 1)
        return (without / np.maximum(counts, 1)).astype(np.float32)

    def sums_of(self, logits: Logits, labels: DeviceLabels, valid: Bool[Array, "batch"]) -> Sums:
        """Binary cross-entropy, and how many have every label right."""
        losses = optax.sigmoid_binary_cross_entropy(logits, labels.astype(jnp.float32))
        right = jnp.all((logits >= 0) == (labels > 0), axis=-1) & ~jnp.any(jnp.isnan(logits), -1)
        images = jnp.sum(valid)
        loss = jnp.sum(jnp.mean(losses, axis=-1), where=valid)
        return Sums(loss, jnp.sum(right & valid), jnp.zeros_like(images), images)

    def score(
        self,
        log_probabilities: Float[np.ndarray, "batch classes"],
        labels: HostLabels,
        valid: Bool[np.ndarray, "batch"],
    ) -> Sums:
        """The same on the host, see `log_complements`."""
        own, has = log_probabilities[valid], labels[valid] > 0
        losses = -np.where(has, own.astype(np.float64), log_complements(own)).mean(axis=1)
        # Of float32: as float64 the logarithm that one half is rounded to is below one half.
        right = (self.predicted(own) == has).all(axis=1) & ~np.isnan(own).any(axis=1)
        return Sums(float(losses.sum()), int(right.sum()), 0, int(valid.sum()))

    def predicted(self, log_probabilities: Float[np.ndarray, "batch classes"]) -> HostLabels:
        """The labels that are more likely than not."""
        return (np.exp(log_probabilities) >= DEFAULT_THRESHOLD).astype(np.int32)

    def needs_probabilities(self, monitor: str | None) -> bool:
        """All metrics but the loss order the images."""
        return True

    def means(self, sums: Sums, num_classes: int) -> dict[str, float]:
        """Loss and accuracy; there is no top-5 of labels."""
        return sums.means(0)

    def metrics(
        self,
        evaluation: Evaluation,
        num_classes: int,
        monitor: str | None = None,
        thresholds: Thresholds = None,
    ) -> dict[str, float]:
        """Loss, accuracy, mean average precision and macro F1."""
        means = self.means(evaluation.sums, num_classes)
        if not np.isfinite(means["loss"]):
            return means | {"mAP": np.nan, "macro_f1": np.nan}
        if thresholds is None:
            thresholds = self.thresholds(evaluation)
        results = label_results(evaluation.labels, evaluation.probabilities, thresholds)
        return means | mean_metrics(results)

    def thresholds(self, evaluation: Evaluation) -> Float[np.ndarray, "classes"]:
        """Those with the best F1 of each class, see `best_thresholds`."""
        if not np.isfinite(evaluation.sums.loss):
            return np.full(evaluation.labels.shape[1], DEFAULT_THRESHOLD)
        return best_thresholds(evaluation.labels, evaluation.probabilities)


SINGLE_LABEL, MULTI_LABEL = SingleLabel(), MultiLabel()


def task_of(labels: Int[Array | np.ndarray, "images *classes"]) -> Task:
    """The task of these labels: (N,) or (N, C)."""
    return MULTI_LABEL if is_multi_label(labels) else SINGLE_LABEL


def ranked_by(result: Mapping[str, float]) -> str:
    """The metric that a result is ranked by: `mAP` of several labels, which no other result has."""
    return "mAP" if "mAP" in result else "accuracy"


def task_named(name: TaskName) -> Task:
    """The task that `run.json` names."""
    return {task.name: task for task in (SINGLE_LABEL, MULTI_LABEL)}[name]
