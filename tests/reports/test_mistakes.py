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
    """Whether answers are the first 12 of (confidence, image, true, predicted), the worst first."""
    worst = sorted(expected, key=lambda answer: -answer[0])[:12]
    assert [answer[:3] for answer in found] == [answer[1:] for answer in worst]
    confidences = [answer.confidence for answer in found]
    assert confidences == pytest.approx([answer[0] for answer in worst], rel=1e-5)


def test_wrong_labels_are_given_ones_that_are_absent_and_missed_ones_that_are_there():
    expected = []
    for image in range(IMAGES):
        for label in range(CLASSES):
            p, has = P[image, label], HAS[image, label]
            if p >= THRESHOLDS[label] and not has:
                expected.append((p, image, None, label))
            if p < THRESHOLDS[label] and has:
                expected.append((1 - p, image, label, None))
    found = wrong_labels(evaluation(HAS, (P >= 0.5).astype(int), P), THRESHOLDS)
    same(found, expected)
    assert {answer.true is None for answer in found} == {True, False}


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
    same(wrong_images(evaluation(labels, p.argmax(axis=1), p)), expected)
