"""Losses, probabilities and metrics of several labels, against optax and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    log_loss,
    precision_recall_curve,
)

from jaxtl.metrics import NONE, Evaluation
from jaxtl.multilabel import average_precisions, best_thresholds, label_results, mean_metrics
from jaxtl.tasks import MULTI_LABEL, SINGLE_LABEL, task_of

RNG = np.random.default_rng(0)
CLASSES = 6
LABELS = (RNG.random((80, CLASSES)) < np.linspace(0.05, 0.7, CLASSES)).astype(np.int32)
LOGITS = (2 * RNG.normal(size=LABELS.shape) + LABELS - 0.5).astype(np.float32)
PROBABILITIES = np.asarray(jax.nn.sigmoid(LOGITS))
TARGETS = LABELS.astype(np.float32)
ALL = np.ones(len(LABELS), bool)


def losses(logits=LOGITS, targets=TARGETS, smoothing=0.0, class_weights=None, focal=0.0):
    options = {"smoothing": smoothing, "class_weights": class_weights, "focal": focal}
    return MULTI_LABEL.losses(jnp.asarray(logits), jnp.asarray(targets), **options)


def evaluated(labels=LABELS, logits=LOGITS):
    logs = np.asarray(MULTI_LABEL.log_probabilities(jnp.asarray(logits)))
    sums = MULTI_LABEL.score(logs, labels, np.ones(len(labels), bool))
    return Evaluation(sums, labels, MULTI_LABEL.predicted(logs), logs)


def test_labels_of_one_axis_are_classes_and_those_of_two_are_several():
    assert task_of(LABELS) is MULTI_LABEL
    assert task_of(LABELS[:, :1]) is MULTI_LABEL
    assert task_of(LABELS[:, 0]) is SINGLE_LABEL


def test_the_loss_is_the_mean_of_binary_cross_entropies():
    expected = optax.sigmoid_binary_cross_entropy(LOGITS, TARGETS).mean(axis=1)
    np.testing.assert_allclose(losses(), expected, rtol=1e-5)
    by_scikit_learn = np.mean([log_loss(t, p) for t, p in zip(TARGETS.T, PROBABILITIES.T)])  # noqa: B905
    assert float(losses().mean()) == pytest.approx(by_scikit_learn, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_is_that_of_optax(gamma):
    expected = optax.losses.sigmoid_focal_loss(LOGITS, TARGETS, gamma=gamma).mean(axis=1)
    np.testing.assert_allclose(losses(focal=gamma), expected, rtol=1e-4)


def test_a_focal_loss_has_a_slope_where_nothing_is_left_to_learn():
    """A root has none at zero, which is what the probability of the other class rounds to."""
    slopes = jax.grad(lambda z: losses(z, np.ones((1, 2)), focal=0.5).sum())(
        jnp.asarray([[40.0, -40.0]])
    )
    assert np.isfinite(slopes).all()
    assert slopes[0, 1] < -0.4  # of two classes: one half in each


def test_smoothing_draws_labels_towards_one_half():
    smoothed = TARGETS * 0.8 + 0.1
    expected = optax.sigmoid_binary_cross_entropy(LOGITS, smoothed).mean(axis=1)
    np.testing.assert_allclose(losses(smoothing=0.2), expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_multiply_the_loss_of_positives(smoothing):
    """The definition of `pos_weight` in PyTorch's documentation of `BCEWithLogitsLoss`."""
    weights = np.linspace(0.5, 4, CLASSES).astype(np.float32)
    y, p = TARGETS * (1 - smoothing) + smoothing / 2, PROBABILITIES.astype(np.float64)
    expected = -(weights * y * np.log(p) + (1 - y) * np.log(1 - p)).mean(axis=1)
    found = losses(class_weights=weights, smoothing=smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_array_equal(MULTI_LABEL.weight(jnp.asarray(TARGETS), weights), ALL)


def test_automatic_weights_make_positives_weigh_as_much_as_negatives():
    weights = MULTI_LABEL.automatic_weights(LABELS, CLASSES)
    np.testing.assert_allclose(weights * LABELS.sum(axis=0), (1 - LABELS).sum(axis=0), rtol=1e-6)
    with_each = np.concatenate([LABELS, np.ones_like(LABELS)])[:, :1].repeat(2, axis=1)
    with_each[:, 1] = 1
    assert (MULTI_LABEL.automatic_weights(with_each, 2) > 0).all()


@pytest.mark.parametrize("images", [80, 13, 0])
def test_sums_on_the_device_and_on_the_host_count_valid_images_alone(images):
    valid = np.arange(80) < images
    on_device = MULTI_LABEL.sums_of(*map(jnp.asarray, (LOGITS, LABELS, valid)))
    on_host = MULTI_LABEL.score(evaluated().log_probabilities, LABELS, valid)
    np.testing.assert_allclose(on_device, on_host, rtol=1e-5, atol=1e-6)
    if images:
        expected = optax.sigmoid_binary_cross_entropy(LOGITS[:images], TARGETS[:images]).mean(1)
        assert on_host.loss == pytest.approx(float(expected.sum()), rel=1e-5)
        right = accuracy_score(LABELS[:images], LOGITS[:images] >= 0)
        assert on_host.means(0)["accuracy"] == right
    else:
        assert on_host == NONE


def test_a_label_at_one_half_is_given_on_the_device_and_on_the_host():
    labels, logits = np.asarray([[1, 1], [1, 1], [0, 0]], np.int32), np.zeros((3, 2), np.float32)
    found = evaluated(labels, logits)
    on_device = MULTI_LABEL.sums_of(*map(jnp.asarray, (logits, labels, np.ones(3, bool))))
    assert found.sums.top1 == on_device.top1
    assert found.sums.means(0)["accuracy"] == accuracy_score(labels, found.probabilities >= 0.5)
    assert accuracy_score(labels, found.predicted) == pytest.approx(2 / 3)


@pytest.mark.parametrize("logit", [90.0, 500.0, -500.0])
def test_a_sure_answer_that_is_wrong_costs_much_and_not_infinity(logit):
    labels = np.asarray([[int(logit < 0)]], np.int32)
    loss = evaluated(labels, np.full((1, 1), logit, np.float32)).sums.loss
    assert 80 < loss <= abs(logit)


def test_nan_is_never_right():
    logits = np.full((2, CLASSES), np.nan, np.float32)
    labels = np.zeros((2, CLASSES), np.int32)
    found = evaluated(labels, logits)
    assert found.sums.top1 == 0
    assert int(MULTI_LABEL.sums_of(*map(jnp.asarray, (logits, labels, ALL[:2]))).top1) == 0
    metrics = MULTI_LABEL.metrics(found, CLASSES)
    assert np.isnan([metrics["loss"], metrics["mAP"], metrics["macro_f1"]]).all()
    np.testing.assert_array_equal(MULTI_LABEL.thresholds(found), 0.5)


def test_metrics_are_those_of_scikit_learn():
    found = evaluated()
    metrics = MULTI_LABEL.metrics(found, CLASSES)
    given = found.probabilities >= MULTI_LABEL.thresholds(found)
    assert metrics["mAP"] == average_precision_score(LABELS, found.probabilities, average="macro")
    assert metrics["macro_f1"] == pytest.approx(f1_score(LABELS, given, average="macro"))
    assert metrics["accuracy"] == accuracy_score(LABELS, LOGITS >= 0)
    assert "top5" not in metrics
    fixed = np.full(CLASSES, 0.3)
    by_fixed = MULTI_LABEL.metrics(found, CLASSES, thresholds=fixed)["macro_f1"]
    assert by_fixed == pytest.approx(f1_score(LABELS, PROBABILITIES >= 0.3, average="macro"))


def test_labels_that_no_image_has_are_left_out_of_means():
    labels = LABELS.copy()
    labels[:, [1, 4]] = 0
    kept = [0, 2, 3, 5]
    metrics = MULTI_LABEL.metrics(evaluated(labels), CLASSES)
    alone = MULTI_LABEL.metrics(evaluated(labels[:, kept], LOGITS[:, kept]), 4)
    assert (metrics["mAP"], metrics["macro_f1"]) == (alone["mAP"], alone["macro_f1"])
    assert np.isnan(average_precisions(labels, PROBABILITIES)).nonzero()[0].tolist() == [1, 4]
    assert best_thresholds(labels, PROBABILITIES)[[1, 4]].tolist() == [0.5, 0.5]
    assert label_results(labels, PROBABILITIES, np.full(CLASSES, 0.5))[1].average_precision is None


@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_has_a_better_f1(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((40, 3)) < [0.1, 0.5, 0.95]).astype(np.int32)
    labels[0] = 1
    # Few different probabilities: many images have the same.
    probabilities = (rng.integers(0, 12, labels.shape) / 11).astype(np.float32)
    thresholds = best_thresholds(labels, probabilities)
    for own, p, threshold in zip(labels.T, probabilities.T, thresholds, strict=True):
        every = [f1_score(own, p >= at, zero_division=0) for at in [*np.unique(p), 2.0]]
        assert f1_score(own, p >= threshold) == max(every)
        precision, recall, _ = precision_recall_curve(own, p)
        with np.errstate(invalid="ignore"):
            best = np.nanmax(2 * precision * recall / (precision + recall))
        assert f1_score(own, p >= threshold) == pytest.approx(best)
        assert not np.isin(threshold, p) or threshold == 0  # between two probabilities


def test_results_of_labels_are_counts():
    thresholds = np.linspace(0.2, 0.8, CLASSES)
    results = label_results(LABELS, PROBABILITIES, thresholds)
    given = thresholds <= PROBABILITIES
    assert [r.images for r in results] == LABELS.sum(axis=0).tolist()
    assert [r.predicted for r in results] == given.sum(axis=0).tolist()
    expected = f1_score(LABELS, given, average=None)
    np.testing.assert_allclose([r.f1 for r in results], expected)
    assert mean_metrics(results)["macro_f1"] == pytest.approx(expected.mean())
