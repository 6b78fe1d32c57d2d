"""The most confident wrong answers, by a loop over all answers."""

import numpy as np
import pytest

from jaxtl.metrics import Evaluation, Sums
from jaxtl.reports.mistakes import wrong_images, wrong_labels

RNG = np.random.default_rng(0)
IMAGES, CLASSES = 60, 5
P = RNG.random((IMAGES, CLASSES))
HAS = RNG.integers(0, 2, (IMAGES, CLASSES))
THRESHOLDS = RNG.uniform(0.1, 0.9, CLASSES)


def evaluation(labels, predicted, probabilities):
    sums = Sums(0.0, 0, 0, len(labels))
    return Evaluation(sums, labels, predicted, np.log(probabilities).astype(np.float32))


def same(found, expected):
    """Whether answers are these of (confidence, image, true, predicted)."""
    assert [answer[:3] for answer in found] == [answer[1:] for answer in expected]
    confidences = [answer.confidence for answer in found]
    assert confidences == pytest.approx([answer[0] for answer in expected], rel=1e-5)


def worst_labels(thresholds):
    """The labels that are wrongly given, and those missed, each the worst first."""
    given, missed = [], []
    for image in range(IMAGES):
        for label in range(CLASSES):
            p, has = P[image, label], HAS[image, label]
            if p >= thresholds[label] and not has:
                given.append((p, image, None, label))
            if p < thresholds[label] and has:
                missed.append((1 - p, image, label, None))
    return [sorted(found, key=lambda answer: -answer[0]) for found in (given, missed)]


def test_half_of_the_wrong_labels_are_given_ones_that_are_absent_and_half_missed_ones():
    given, missed = worst_labels(THRESHOLDS)
    found = wrong_labels(evaluation(HAS, (P >= 0.5).astype(int), P), THRESHOLDS)
    same(found, given[:6] + missed[:6])


def test_there_are_more_of_one_kind_where_the_other_has_fewer():
    thresholds = np.full(CLASSES, np.sort(P[HAS == 1])[4])
    given, missed = worst_labels(thresholds)
    assert len(missed) == 4
    found = wrong_labels(evaluation(HAS, (P >= 0.5).astype(int), P), thresholds)
    same(found, given[:8] + missed)


def test_labels_that_are_certain_are_told_apart_by_the_logarithm_of_the_rest():
    """Probabilities of 1 - exp(-20) and 1 - exp(-40), both 1 as float32: -exp(-20) is log(p)."""
    logs = -np.exp(-np.array([[20.0], [40.0]])).astype(np.float32)
    none = np.zeros((2, 1), int)
    of_images = Evaluation(Sums(0.0, 0, 0, 2), none, none, logs)
    assert [answer.image for answer in wrong_labels(of_images, np.array([0.5]))] == [1, 0]


def test_labels_that_are_all_predicted_correctly_are_no_mistakes():
    almost = 0.01 + 0.98 * HAS
    assert wrong_labels(evaluation(HAS, HAS, almost), THRESHOLDS) == []


def test_wrong_images_are_those_of_another_class():
    labels, p = RNG.integers(0, CLASSES, IMAGES), P / P.sum(axis=1, keepdims=True)
    expected = [
        (max(row), image, label, int(np.argmax(row)))
        for image, (row, label) in enumerate(zip(p, labels.tolist(), strict=True))
        if np.argmax(row) != label
    ]
    expected = sorted(expected, key=lambda answer: -answer[0])[:12]
    same(wrong_images(evaluation(labels, p.argmax(axis=1), p)), expected)
