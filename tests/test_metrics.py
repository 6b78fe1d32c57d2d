"""Metrics against scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from jaxtl.metrics import (
    NONE,
    Evaluation,
    Sums,
    class_metric,
    confusion,
    correct_top_k,
    cross_entropy,
    score,
    to_host,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(40, 7)).astype(np.float32)
LABELS = np.concatenate([np.arange(7), RNG.integers(0, 7, 33)])


def test_scores_are_those_of_scikit_learn():
    logs = log_softmax(LOGITS, axis=1)
    means = score(logs, LABELS, np.ones(40, bool)).means(num_classes=7)
    assert means["loss"] == pytest.approx(log_loss(LABELS, np.exp(logs)), rel=1e-5)
    assert means["accuracy"] == top_k_accuracy_score(LABELS, LOGITS, k=1)
    assert means["top5"] == top_k_accuracy_score(LABELS, LOGITS, k=5)


def test_padding_does_not_count():
    logs = log_softmax(LOGITS, axis=1)
    valid = np.arange(40) < 13
    assert score(logs, LABELS, valid) == score(logs[:13], LABELS[:13], np.ones(13, bool))


def test_sums_of_parts_are_the_sums_of_the_whole():
    logs = log_softmax(LOGITS, axis=1)
    parts = NONE
    for rows in np.split(np.arange(40), [3, 20]):
        parts += score(logs[rows], LABELS[rows], np.ones(len(rows), bool))
    whole = score(logs, LABELS, np.ones(40, bool))
    assert parts[1:] == whole[1:]
    assert parts.loss == pytest.approx(whole.loss)


def test_the_sums_of_many_steps_come_to_the_host_as_numbers_that_add_up_exactly():
    """In float32 the loss of a long epoch would lose its last digits, and 2**24 + 1 is 2**24."""
    on_device = Sums(
        jnp.asarray([2.0**24, 1.0, 0.5]),
        *jnp.asarray([[2**24, 1, 0], [2**24, 1, 1], [2**24, 1, 2]]),
    )
    one, two, three = to_host(on_device)
    assert one + two + three == Sums(2**24 + 1.5, 2**24 + 1, 2**24 + 2, 2**24 + 3)


def test_top5_is_left_out_where_it_says_nothing():
    assert "top5" not in Sums(1.0, 1, 2, 2).means(num_classes=5)
    assert Sums(1.0, 1, 2, 2).means(num_classes=6)["top5"] == 1.0


def test_top_5_works_with_fewer_than_five_classes():
    top1, top5 = correct_top_k(jnp.asarray([[0.1, 0.9], [0.8, 0.2]]), jnp.asarray([1, 1]))
    assert top1.tolist() == [True, False]
    assert top5.tolist() == [True, True]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_mixes_the_label_with_all_classes(smoothing):
    logs = log_softmax(LOGITS.astype(np.float64), axis=1)
    of_labels = -logs[np.arange(40), LABELS]
    expected = (1 - smoothing) * of_labels + smoothing * -logs.mean(axis=1)
    losses = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), smoothing)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_confusion_is_that_of_scikit_learn():
    predicted = LOGITS.argmax(axis=1)
    np.testing.assert_array_equal(
        confusion(LABELS, predicted, 7), confusion_matrix(LABELS, predicted, labels=range(7))
    )


def test_nan_logits_count_as_incorrect():
    logits = np.full((2, 7), np.nan, np.float32)
    sums = score(logits, np.array([0, 3]), np.ones(2, bool))
    assert (sums.top1, sums.top5, sums.images) == (0, 0, 2)


def evaluated(logits, labels):
    logs = log_softmax(logits.astype(np.float64), axis=1).astype(np.float32)
    sums = score(logs, labels, np.ones(len(labels), bool))
    return Evaluation(sums, labels, logs.argmax(axis=1), logs)


def test_metrics_of_classes_are_those_of_scikit_learn():
    logits = LOGITS + np.eye(7)[LABELS]
    evaluation, exact = evaluated(logits, LABELS), np.exp(log_softmax(logits, axis=1))
    predicted = exact.argmax(axis=1)
    expected = {
        "balanced_accuracy": balanced_accuracy_score(LABELS, predicted),
        "macro_f1": f1_score(LABELS, predicted, average="macro"),
        "auroc": roc_auc_score(LABELS, exact, multi_class="ovr"),
    }
    assert {name: class_metric(name, evaluation) for name in expected} == pytest.approx(expected)


def test_classes_without_an_image_are_left_out_of_the_mean_and_their_predictions_are_wrong():
    labels = LABELS % 5
    evaluation, predicted = evaluated(LOGITS, labels), LOGITS.argmax(axis=1)
    assert {5, 6} & set(predicted.tolist())
    values = {"balanced_accuracy": [], "macro_f1": [], "auroc": []}
    for c in range(5):
        true, said = labels == c, predicted == c
        values["balanced_accuracy"].append(said[true].mean())
        values["macro_f1"].append(2 * (true & said).sum() / (true.sum() + said.sum()))
        values["auroc"].append(roc_auc_score(true, np.exp(evaluation.log_probabilities[:, c])))
    for name, of_class in values.items():
        assert class_metric(name, evaluation) == pytest.approx(np.mean(of_class)), name


def test_of_two_classes_the_area_is_that_of_the_second_one():
    labels = LABELS % 2
    evaluation = evaluated(LOGITS[:, :2], labels)
    expected = roc_auc_score(labels, LOGITS[:, 1] - LOGITS[:, 0])
    assert class_metric("auroc", evaluation) == pytest.approx(expected)


def test_a_loss_that_is_not_finite_has_no_metric_of_classes():
    logits = LOGITS.copy()
    logits[3] = np.nan
    assert np.isnan(evaluated(logits, LABELS).metrics(7, "auroc")["auroc"])
