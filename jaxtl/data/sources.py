"""Data sources: `digits`, class folders, CSV files and TFDS, opened by name."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from typing_extensions import Protocol, runtime_checkable  # 3.11's own reads the properties

from jaxtl.data.csv_file import open_csv
from jaxtl.data.facts import KeptFacts
from jaxtl.data.folders import open_folder
from jaxtl.data.reading import ReadError, patiently, read_error
from jaxtl.data.tfds import DESCRIPTION, open_tfds
from jaxtl.errors import UserError
from jaxtl.labels import Labels, class_counts, is_multi_label, mapped
from jaxtl.objects import Unreachable, is_remote, list_folder


@runtime_checkable
class Source(Protocol):
    """Labelled images with random access."""

    @property
    def labels(self) -> Labels:
        """The class of each image, an index into `classes`, or all its classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the data: the same wherever they are stored, and another
        once an image has changed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes | np.ndarray:
        """An image: the bytes of its file, or uint8 pixels (H, W), (H, W, 1) or (H, W, 3).

        Raises:
            UserError: it cannot be read; the message does not say which one it is.
        """

    def describe(self, index: int) -> str:
        """What to call an image in a message: its path, or something like `digits[17]`."""


class Parts(NamedTuple):
    """A data set as it is stored: its images, or its splits with the same classes.

    Attributes:
        train: the images to train on, or all where no others are kept apart.
        val: those for validation; None where there are none.
        test: those for the test; None where there are none.
    """

    train: Source
    val: Source | None = None
    test: Source | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory.

    Attributes:
        name: what to call them in messages.
        pixels: all images, (images, height, width) or with a last axis of 1 or 3 channels.
        labels: the class of each image, an index into `classes`.
        classes: the names of the classes.
    """

    name: str
    pixels: UInt8[np.ndarray, "images height width ..."]
    labels: Labels
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> np.ndarray:
        """The pixels of an image."""
        return self.pixels[index]

    def describe(self, index: int) -> str:
        """`NAME[INDEX]`."""
        return f"{self.name}[{index}]"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, labels, class names and pixels."""
        known = [self.classes, self.labels.tolist(), self.pixels.shape]
        return hashlib.sha256(json.dumps(known).encode() + self.pixels.tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a source, with an order of classes of their own.

    Attributes:
        source: the source.
        indices: which of its images, in which order.
        labels: the class of each image of the subset, an index into `classes`.
        classes: the names of the classes.
    """

    source: Source
    indices: Int64[np.ndarray, " images"]
    labels: Labels
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> bytes | np.ndarray:
        """Reads an image from the source."""
        return self.source[int(self.indices[index])]

    def describe(self, index: int) -> str:
        """What the source calls the image."""
        return self.source.describe(int(self.indices[index]))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the source's fingerprint, the indices, labels and class names."""
        known = [self.source.fingerprint, self.classes, self.labels.tolist(), self.indices.tolist()]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def open_all(
    spec: str,
    *,
    classes: tuple[str, ...] | None = None,
    multi_label: bool = False,
    retry_seconds: float = 0,
) -> Source:
    """Opens a source for evaluation: its validation part, or its test where it has no such part.

    All of it where it has neither.

    Args:
        spec: as for `open_splits`.
        classes: the classes of the trained run: labels become indices into these.
        multi_label: whether images have several labels in that run.
        retry_seconds: how long to wait for what cannot be read now.

    Raises:
        UserError: there is no such source, it holds no proper data set, or it has images of a
            class that is not among `classes`, or labels of the other kind, or none at all.
    """
    train, *others = open_parts(spec, retry=retry_seconds)
    source = next((part for part in others if part is not None), train)
    if classes is None:
        return source
    if is_multi_label(source.labels) != multi_label:
        several, one = "several labels an image", "one class an image"
        run, there = (several, one) if multi_label else (one, several)
        raise UserError(
            f"{spec} has {there}, and the run {run}: give a csv:FILE with the column "
            f"{'labels' if multi_label else 'label'}"
        )
    if multi_label and not source.labels.any():
        raise UserError(f"no image of {spec} has a label: there is nothing to measure")
    if classes == source.classes:
        return source
    counts = class_counts(source.labels, len(source.classes)).tolist()
    present = {name for name, count in zip(source.classes, counts, strict=True) if count}
    unknown = sorted(present - set(classes))
    if unknown:
        raise UserError(
            f"{spec} has images of the class {unknown[0]!r}, which the run does not know: take "
            f"them out, or rename the class to one of its own: {', '.join(classes)}"
        )
    labels = mapped(source.labels, source.classes, classes)
    return Subset(source, np.arange(len(source)), labels, classes)


def absolute(spec: str) -> str:
    """The same source by a path that does not depend on the working directory."""
    if spec.startswith("csv:"):
        path = Path(os.path.expanduser(spec[4:]))
        # Not where the file itself links to: its images are relative to the folder of the link.
        return f"csv:{path.parent.resolve() / path.name}"
    kind, colon, name = spec.rpartition("tfds:")
    path = Path(os.path.expanduser(name))
    there = (path / DESCRIPTION).is_file() if colon else spec != "digits" and path.exists()
    return f"{kind}{colon}{path.resolve()}" if there else spec


def found_line(source: Source) -> str:
    """What Keras prints of a data set: `Found 202 images belonging to 2 classes.`"""
    if is_multi_label(source.labels):
        found = f"Found {len(source)} images with {source.labels.sum()} labels"
        return f"{found} of {len(source.classes)} classes."
    return f"Found {len(source)} images belonging to {len(source.classes)} classes."


def folder_of(spec: str) -> Path | None:
    """The path on a disk that a source is named by; None if it is not named by one."""
    named = spec == "digits" or spec.startswith(("csv:", "tfds:")) or is_remote(spec)
    return None if named else Path(os.path.expanduser(spec))


def open_parts(spec: str, *, pixels: bool = False, retry: float = 0) -> Parts:
    """Opens a source as it is stored.

    Args:
        spec: as for `open_splits`.
        pixels, retry: as for `inspect`, where opening a source reads its images. A folder that
            fails, or one that was read before and is not there, is waited for as well.

    Raises:
        UserError: there is no such source, or it holds no proper data set.
    """
    # A new kind of source is a module with a class like `Source`, and a branch here.
    path = folder_of(spec)
    if is_remote(spec):
        return patiently(lambda: _open_objects(spec), spec, retry)
    if spec.startswith("csv:"):
        return patiently(lambda: Parts(**open_csv(spec[4:])), spec, retry)
    if path is None and spec == "digits":
        return Parts(_digits())
    if path is None:
        name = spec.removeprefix("tfds:")
        opened = patiently(lambda: open_tfds(name, pixels=pixels, retry=retry), spec, retry)
        return Parts(*opened)
    return patiently(lambda: _open_path(path, spec), spec, retry)


def _open_objects(spec: str) -> Parts:
    try:
        return Parts(*open_folder(list_folder(spec)))
    except FileNotFoundError as error:
        raise UserError(f"there is no data source {spec!r}: no such bucket or folder") from error
    except Unreachable as error:
        raise ReadError(str(error)) from error


def _open_path(path: Path, spec: str) -> Parts:
    try:
        path.stat()
    except OSError as error:
        text = (
            f"there is no data source {spec!r} ({error.strerror}): give digits, the path of a "
            "folder of class folders, csv:FILE or tfds:NAME"
        )
        with KeptFacts() as kept:  # a misspelt path, or a disk that is away
            raise (read_error(error, text) if kept.has_below(path) else UserError(text)) from error
    if not path.is_dir():
        raise UserError(
            f"{spec} is a file: give the path of a folder of class folders, or csv:{spec} if it "
            "lists images"
        )
    return Parts(*open_folder(path))


def _digits() -> ArraySource:
    """1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn.

    Its file is read without `sklearn.datasets.load_digits`, whose import takes 0.9 s.
    """
    file = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")  # 64 grey values and a label
    grey, labels = rows[:, :-1], rows[:, -1].astype(np.int32)
    pixels = np.rint(grey.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)  # grey values are 0..16
    return ArraySource("digits", pixels, labels, tuple(str(label) for label in range(10)))
