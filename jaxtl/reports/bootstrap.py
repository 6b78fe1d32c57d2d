"""Intervals of F1, by the bootstrap over images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxtl.metrics import Proportion

_RESAMPLES, _AT_ONCE = 2000, 100


class F1(NamedTuple):
    """F1 with its 95% interval.

    Attributes:
        macro: the mean over the classes that the images have.
        classes: that of each class; None where it was neither there nor predicted.
    """

    macro: Proportion
    classes: list[Proportion | None]


def f1_intervals(counts: Int[np.ndarray, "classes classes"]) -> F1:
    """F1 of a classification, with percentile intervals (Efron and Tibshirani 1993, chapter 13).

    To draw images with replacement is to draw the cells of their confusions from a multinomial
    distribution, so the counts suffice. A class that a resample lacks is left out of its mean. With
    few images of a class the mean F1 of resamples is too low by a bias (ibid., chapter 10); the
    interval of the mean is moved by it. The same counts give the same intervals.

    Args:
        counts: the counts of `metrics.confusion`, of one image at least.
    """
    from scipy.sparse import csr_array

    true, predicted = np.nonzero(counts)
    cells, places = counts[true, predicted], np.arange(len(true))
    of_class, as_class = (
        csr_array((np.ones(len(cells), np.int64), (places, classes)), (len(cells), len(counts)))
        for classes in (true, predicted)
    )
    right = csr_array(of_class.multiply((true == predicted)[:, None]))

    def measure(
        drawn: Int[np.ndarray, "resamples cells"],
    ) -> tuple[Float[np.ndarray, "resamples"], Float[np.ndarray, "resamples classes"]]:
        images, said, correct = (drawn @ sums for sums in (of_class, as_class, right))
        with np.errstate(invalid="ignore"):
            each = 2 * correct / (images + said)  # NaN of a class that is not there
        return np.where(images, each, 0).sum(axis=1) / (images > 0).sum(axis=1), each

    generator, images = np.random.default_rng(0), cells.sum()
    resamples = [
        measure(generator.multinomial(images, cells / images, _AT_ONCE))
        for _ in range(_RESAMPLES // _AT_ONCE)
    ]
    macro, each = (np.concatenate(part) for part in zip(*resamples, strict=True))
    (macro_value,), (values,) = measure(cells[None])
    known = np.flatnonzero(~np.isnan(values))
    bounds = np.full((2, len(counts)), np.nan)
    bounds[:, known] = np.nanpercentile(each[:, known], (2.5, 97.5), axis=0)
    centred = macro + macro_value - macro.mean()
    low, high = np.clip(np.percentile(centred, (2.5, 97.5)), 0, 1).tolist()
    classes = [
        None if np.isnan(found[0]) else Proportion(*found)
        for found in zip(values.tolist(), *bounds.tolist(), strict=True)
    ]
    return F1(Proportion(float(macro_value), low, high), classes)
