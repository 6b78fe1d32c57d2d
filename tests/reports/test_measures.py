"""Intervals, classes, confusions and calibration against closed forms, scikit-learn and loops."""

import math

import numpy as np
import pytest
from scipy.special import expit, log_expit, log_softmax
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss, precision_recall_fscore_support

from jaxtl.metrics import confusion, proportion
from jaxtl.reports.bootstrap import f1_intervals
from jaxtl.reports.measures import calibration, class_rows, label_calibration, most_confused

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 300)
LOGITS = 3 * (np.eye(6)[LABELS] + RNG.normal(size=(300, 6)))  # nothing is of the last class
LOGS = log_softmax(LOGITS, axis=1)
HAS = (RNG.random((200, 4)) < (0.5, 0.2, 0.05, 0)).astype(np.int32)  # none has the last label
OF_LABELS = 2 * (2 * HAS - 1) + RNG.normal(scale=4, size=HAS.shape)


@pytest.mark.parametrize(("correct", "images"), [(0, 7), (7, 7), (352, 359), (1, 2)])
def test_intervals_are_those_of_wilson(correct, images):
    bounds = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    expected = (correct / images, bounds.low, bounds.high)
    assert proportion(correct, images) == pytest.approx(expected, abs=1e-12)


def test_classes_fare_as_scikit_learn_says():
    predicted = LOGS.argmax(axis=1)
    counts = confusion(LABELS, predicted, 6)
    rows = class_rows(counts, f1_intervals(counts).classes)
    expected = precision_recall_fscore_support(
        LABELS, predicted, labels=range(6), zero_division=np.nan
    )
    found = [[*(np.nan if p is None else p.value for p in row[1:]), row.images] for row in rows]
    np.testing.assert_allclose(found, np.transpose(expected))
    assert rows[5].recall is None


def test_a_class_that_is_neither_there_nor_predicted_has_no_results():
    counts = np.diag([3, 0])
    assert class_rows(counts, f1_intervals(counts).classes)[1] == (0, None, None, None)


def test_the_most_confused_pairs_come_first_and_right_ones_never():
    counts = np.array([[90, 1, 3], [0, 80, 0], [2, 3, 70]])
    pairs = [(0, 2, 3, 94), (2, 1, 3, 75), (2, 0, 2, 75), (0, 1, 1, 94)]
    assert most_confused(counts, 10) == pairs
    assert most_confused(counts, 2) == pairs[:2]


def expected_error(predictions):
    """The expected calibration error of probabilities and what came true."""
    total = 0.0
    for k in range(15):
        inside = [(p, true) for p, true in predictions if k / 15 < p <= (k + 1) / 15]
        total += abs(sum(p for p, _ in inside) - sum(true for _, true in inside))
    return total / len(predictions)


def of_images(logs):
    """The probability of the predicted class of each image, and whether it is correct."""
    return [
        (math.exp(row.max()), row.argmax() == label)
        for row, label in zip(logs, LABELS, strict=True)
    ]


def of_labels(logits):
    """The probability of each label of each image, and whether it is there."""
    return list(zip(expit(logits).ravel().tolist(), HAS.ravel().tolist(), strict=True))


def test_the_calibration_error_is_that_of_a_loop_over_the_images():
    found = calibration(LOGS, LABELS)
    assert found.error == pytest.approx(expected_error(of_images(LOGS)))
    assert found.predictions.sum() == 300
    after = log_softmax(LOGITS / found.temperature, axis=1)
    assert found.error_at_temperature == pytest.approx(expected_error(of_images(after)))


def test_the_calibration_error_of_labels_is_that_of_a_loop_over_all_of_them():
    found = label_calibration(log_expit(OF_LABELS).astype(np.float32), HAS)
    assert found.error == pytest.approx(expected_error(of_labels(OF_LABELS)))
    after = of_labels(OF_LABELS / found.temperature)
    assert found.error_at_temperature == pytest.approx(expected_error(after), rel=1e-5)


def test_the_bins_of_labels_are_those_of_scikit_learn():
    found = label_calibration(log_expit(OF_LABELS).astype(np.float32), HAS)
    assert found.predictions.sum() == HAS.size
    expected = calibration_curve(HAS.ravel(), expit(OF_LABELS).ravel(), n_bins=15)
    filled = found.predictions > 0
    np.testing.assert_allclose((found.fraction[filled], found.probability[filled]), expected, 1e-5)


def test_no_other_temperature_has_less_loss():
    def loss(temperature):
        return -log_softmax(LOGITS / temperature, axis=1)[np.arange(300), LABELS].mean()

    found = calibration(LOGS, LABELS)
    assert found.loss == pytest.approx(loss(1))
    least = min(map(loss, np.geomspace(0.05, 20, 2000)))
    assert found.loss_at_temperature == pytest.approx(loss(found.temperature))
    assert found.loss_at_temperature == pytest.approx(least, abs=1e-6)
    assert found.loss_at_temperature < found.loss - 0.01


def test_a_network_that_is_sure_and_right_has_no_calibration_error():
    sure = log_softmax(1000 * np.eye(5)[LABELS], axis=1)
    assert calibration(sure, LABELS).error == pytest.approx(0)
    assert label_calibration(log_expit(1000.0 * (2 * HAS - 1)), HAS).error == pytest.approx(0)


def test_no_other_temperature_of_labels_has_less_loss():
    def loss(temperature):
        return log_loss(HAS.ravel(), expit(OF_LABELS / temperature).ravel())

    found = label_calibration(log_expit(OF_LABELS).astype(np.float32), HAS)
    assert found.loss == pytest.approx(loss(1))
    assert found.loss_at_temperature == pytest.approx(loss(found.temperature))
    least = min(map(loss, np.linspace(0.9, 1.1, 41) * found.temperature))
    assert found.loss_at_temperature == pytest.approx(least, abs=1e-9)
    assert found.loss_at_temperature < found.loss - 0.01


def test_a_wrong_label_whose_probability_rounds_to_one_has_the_loss_of_its_logit():
    logits = np.array([[20.0, 40.0, 80.0, -80.0]])
    logs = log_expit(logits).astype(np.float32)
    assert np.exp(logs[0, 1]) == 1
    found = label_calibration(logs, np.array([[0, 0, 0, 1]]))
    assert found.loss == pytest.approx(np.abs(logits).mean(), rel=1e-6)
    assert found.temperature == 20


def test_where_all_temperatures_have_the_same_loss_the_logits_stay_as_they_are():
    found = label_calibration(np.full((10, 3), np.log(0.5), np.float32), np.eye(10, 3, dtype=int))
    assert found.temperature == 1
