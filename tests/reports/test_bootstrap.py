"""Intervals of F1 against scipy's bootstrap over images, image by image."""

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB

from jaxtl.metrics import confusion
from jaxtl.reports.bootstrap import f1_intervals


@pytest.fixture(scope="module")
def predictions():
    """Labels of digits, and what a poor classifier says."""
    digits = load_digits()
    x, held_out, y, labels = train_test_split(
        digits.data, digits.target, test_size=150, random_state=0
    )
    return labels, GaussianNB().fit(x, y).predict(held_out)


def f1s(labels, predicted):
    """F1 of each class (C, ...) of images along the last axis; NaN without any."""
    each = []
    for c in range(11):
        true, said = labels == c, predicted == c
        with np.errstate(invalid="ignore"):
            each.append(2 * (true & said).sum(-1) / (true.sum(-1) + said.sum(-1)))
    return np.stack(each)


def macro(labels, predicted, axis):
    assert axis == -1
    there = np.stack([(labels == c).any(-1) for c in range(11)])
    return np.where(there, f1s(labels, predicted), 0).sum(0) / there.sum(0)


def of_scipy(predictions, statistic):
    options = {"n_resamples": 4000, "method": "percentile", "vectorized": True, "paired": True}
    return bootstrap(predictions, statistic, rng=np.random.default_rng(1), axis=-1, **options)


def test_macro_f1_and_its_interval_are_those_of_scikit_learn_and_scipy(predictions):
    found = f1_intervals(confusion(*predictions, 11)).macro
    assert found.value == pytest.approx(f1_score(*predictions, average="macro"))
    assert 0.7 < found.value < 0.97
    expected = of_scipy(predictions, macro)
    bias = expected.bootstrap_distribution.mean() - found.value
    interval = np.array(expected.confidence_interval) - bias
    assert found.high - found.low > 0.05
    assert (found.low, found.high) == pytest.approx(interval.tolist(), abs=0.006)


def test_the_interval_of_many_rare_classes_is_about_their_mean():
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(200), 5)
    predicted = np.where(draw.random(1000) < 0.7, labels, draw.integers(0, 200, 1000))
    value, low, high = f1_intervals(confusion(labels, predicted, 200)).macro
    assert value == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert 0.01 < value - low < 0.04
    assert 0.01 < high - value < 0.04


def test_f1_of_each_class_has_the_interval_of_scipy(predictions):
    found = f1_intervals(confusion(*predictions, 11)).classes
    assert found[10] is None  # no image is of that class, or said to be
    values = f1_score(*predictions, average=None)
    for c in (2, 8):
        own = of_scipy(predictions, lambda labels, said, axis, c=c: f1s(labels, said)[c])
        assert found[c].value == pytest.approx(values[c])
        assert (found[c].low, found[c].high) == pytest.approx(
            tuple(own.confidence_interval), abs=0.015
        )


def test_a_class_that_most_resamples_lack_has_the_interval_of_the_others():
    counts = np.array([[60, 0], [1, 1]])
    rare = f1_intervals(counts).classes[1]
    assert rare.value == pytest.approx(2 / 3)
    assert 0 == rare.low < rare.high == 1


def test_the_same_counts_have_the_same_intervals_and_perfect_ones_have_no_width():
    counts = np.array([[6, 1, 0], [2, 5, 1], [0, 0, 9]])
    assert f1_intervals(counts) == f1_intervals(counts)
    assert f1_intervals(np.diag([3, 4])).macro == (1, 1, 1)
