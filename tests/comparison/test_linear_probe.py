"""The linear probe: against a loop by hand, and where the answer is known."""

import statistics

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from jaxtl.comparison.linear_probe import folds_for, linear_probe
from jaxtl.errors import UserError

CLASSES = ("cat", "dog", "emu")


def clouds(*, apart, each=30, features=8):
    """Three clouds whose centres lie so far apart, on axes of very different scales."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), each).astype(np.int32)
    centres = apart * np.eye(3, features)
    noise = rng.normal(size=(len(labels), features))
    scales = 10.0 ** np.arange(-4, features - 4)
    return ((centres[labels] + noise) * scales).astype(np.float32), labels


def test_classes_that_lie_apart_are_told_apart():
    probe = linear_probe(*clouds(apart=20))
    assert (probe.accuracy, probe.spread) == (100.0, 0.0)


def test_features_that_say_nothing_are_worth_a_guess():
    probe = linear_probe(*clouds(apart=0, each=300))
    assert probe.accuracy == pytest.approx(100 / 3, abs=6)


@pytest.mark.parametrize("seed", [0, 3])
def test_it_is_logistic_regression_on_features_scaled_by_the_other_folds(seed):
    features, labels = clouds(apart=1.5)
    scores = []
    for fit, held_out in StratifiedKFold(4, shuffle=True, random_state=seed).split(
        features, labels
    ):
        mean, std = features[fit].mean(axis=0), features[fit].std(axis=0)
        classifier = LogisticRegression(max_iter=2000)
        classifier.fit((features[fit] - mean) / std, labels[fit])
        predicted = classifier.predict((features[held_out] - mean) / std)
        scores.append(np.mean(predicted == labels[held_out]))
    probe = linear_probe(features, labels, folds=4, seed=seed)
    assert 50 < probe.accuracy < 95  # neither is trivial
    assert probe.accuracy == pytest.approx(100 * np.mean(scores), abs=1e-6)
    assert probe.spread == pytest.approx(100 * statistics.stdev(scores), abs=1e-6)


def test_a_rare_class_makes_fewer_folds():
    assert folds_for(np.repeat([0, 1, 2], [9, 5, 7]), CLASSES) == 5
    assert folds_for(np.repeat([0, 1, 2], [9, 3, 7]), CLASSES) == 3


def test_a_class_with_one_image_is_named():
    with pytest.raises(UserError, match="'dog' has a single image"):
        folds_for(np.repeat([0, 1, 2], [9, 1, 7]), CLASSES)


def test_one_class_alone_is_refused():
    with pytest.raises(UserError, match="at least two"):
        folds_for(np.zeros(9, np.int32), CLASSES)
