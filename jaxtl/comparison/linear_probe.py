"""A linear probe: how well a network's features, as they are, tell the classes apart."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jaxtl.errors import UserError

FOLDS = 5
_MOST_STEPS = 2000  # of the solver; scikit-learn warns if they are too few


@dataclasses.dataclass(frozen=True)
class Probe:
    """The accuracy of a linear classifier on images that it was not fitted to.

    Attributes:
        accuracy: the mean over the folds, in percent.
        spread: the sample standard deviation of the folds' accuracies, in percentage points. It
            says how far one fold lies from another, not how far the mean lies from the truth.
    """

    accuracy: float
    spread: float

    def __str__(self) -> str:
        return f"{self.accuracy:.1f} ± {self.spread:.1f} %"


def folds_for(labels: Int[np.ndarray, " images"], classes: Sequence[str]) -> int:
    """How many folds there can be: five, or the images of the rarest class.

    Raises:
        UserError: there is one class only, or one of them has a single image.
    """
    counts = Counter(labels.tolist())
    if len(counts) < 2:
        raise UserError("all images are of one class: a comparison needs at least two")
    rarest = min(counts, key=counts.__getitem__)
    if counts[rarest] < 2:
        raise UserError(
            f"the class {classes[rarest]!r} has a single image, and accuracy is measured on "
            "images kept apart: add images of it, or leave it out"
        )
    return min(FOLDS, counts[rarest])


def linear_probe(
    features: Float[np.ndarray, "images features"],
    labels: Int[np.ndarray, " images"],
    *,
    folds: int = FOLDS,
    seed: int = 0,
) -> Probe:
    """Cross-validates logistic regression on standardised features.

    The regularisation is fixed (C=1, scikit-learn's default) and not tuned for any network: with
    another one, features of many dimensions may gain more than features of few.

    Args:
        features: the finite features of each image.
        labels: the class of each image.
        folds: the number of parts, each with the same fraction of every class; a classifier fitted
            to all others predicts each once. Every class has at least as many images.
        seed: draws the images of each fold.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_MOST_STEPS))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    scores = 100 * cross_val_score(classifier, features, labels, cv=parts)
    return Probe(float(scores.mean()), float(scores.std(ddof=1)))
