"""Labels of images: one class each, or several, where an image may have none."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Int64

Labels = Int32[np.ndarray, "images ..."]
"""The class of each image (N,), an index; or, of several labels, rows (N, C) of ones and zeros."""


def is_multi_label(labels: Int[Array | np.ndarray, "images *classes"]) -> bool:
    """Whether images have several labels; a single class that they have or not counts as such."""
    return labels.ndim == 2


def class_counts(
    labels: Int[np.ndarray, "images *classes"], num_classes: int
) -> Int64[np.ndarray, "num_classes"]:
    """How many images of each class there are."""
    if is_multi_label(labels):
        return labels.sum(axis=0, dtype=np.int64)
    return np.bincount(labels, minlength=num_classes)


def members(labels: Int[np.ndarray, "images *classes"], index: int) -> Bool[np.ndarray, "images"]:
    """Which images are of a class."""
    return labels[:, index] > 0 if is_multi_label(labels) else labels == index


def strata(labels: Int[np.ndarray, "images *classes"]) -> Int[np.ndarray, "images"]:
    """What a split draws the same fraction of: the classes, or whether an image has the only one.

    Of several classes whose labels occur together there is one stratum, all images: a plain draw.
    """
    if not is_multi_label(labels):
        return labels
    return labels[:, 0] if labels.shape[1] == 1 else np.zeros(len(labels), np.int32)


def mapped(labels: Labels, names: tuple[str, ...], classes: tuple[str, ...]) -> Labels:
    """The same labels as indices into other classes, among which are all that occur.

    Args:
        labels: those of the images.
        names: the classes that they are of.
        classes: the classes that they are to be of.
    """
    number = {name: index for index, name in enumerate(classes)}
    places = np.asarray([number.get(name, -1) for name in names], np.int32)
    if not is_multi_label(labels):
        return places[labels]
    rows = np.zeros((len(labels), len(classes)), np.int32)
    rows[:, places[places >= 0]] = labels[:, places >= 0]
    return rows
