"""Data sources: `digits`, class folders and TFDS, opened by name."""

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
from jaxtyping import Int32, Int64, UInt8
from typing_extensions import Protocol, runtime_checkable  # 3.11's own reads the properties

from jaxtl.data.facts import Facts, KeptFacts
from jaxtl.data.folders import FileSource, open_folder
from jaxtl.data.reading import ReadError, patiently, read_error
from jaxtl.data.tfds import DESCRIPTION, open_tfds
from jaxtl.data.vetting import EncodedSource, OnBadImage, vet, warn_of_leaks
from jaxtl.errors import UserError
from jaxtl.objects import Unreachable, is_remote, list_folder


@runtime_checkable
class Source(Protocol):
    """Labelled images with random access."""

    @property
    def labels(self) -> Int32[np.ndarray, " images"]:
        """The class of each image, an index into `classes`."""

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


class Splits(NamedTuple):
    """Images to train on and images to validate on, with the same classes."""

    train: Source
    val: Source


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
    labels: Int32[np.ndarray, " images"]
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
    labels: Int32[np.ndarray, " images"]
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


def open_splits(
    spec: str,
    *,
    val_fraction: float,
    seed: int,
    on_bad_image: OnBadImage | None = None,
    retry_seconds: float = 0,
) -> Splits:
    """Opens a source for training.

    Args:
        spec: `digits`, the path of a folder (see `open_folder`), also of one on an object store
            (`gs://BUCKET/...`, `s3://BUCKET/...`), or `tfds:NAME` or `tfds:DIR` (see `open_tfds`).
        val_fraction: where the source has no split of its own, the fraction of each class that is
            kept for validation, in (0, 1): rounded, but at least one image of each class is in
            each split.
        seed: draws these images, 0..2**32 - 1.
        on_bad_image: what to do about images that cannot be used, see `vet`, which warns too of
            images that are in both splits; None looks at no image before it is wanted.
        retry_seconds: how long to wait for images that cannot be read then.

    Raises:
        UserError: there is no such source, it holds no proper data set, it has a single class, a
            class has a single image and would have to be split, or an image cannot be used.
    """
    train, val = open_parts(spec, pixels=on_bad_image == "skip", retry=retry_seconds)
    if on_bad_image is not None:
        train = _vetted(train, on_bad_image, retry_seconds)
        val = None if val is None else _vetted(val, on_bad_image, retry_seconds)
    splits = as_splits(spec, train, val, val_fraction=val_fraction, seed=seed)
    if on_bad_image is not None:
        first, second = splits
        warn_of_leaks(_facts(first), _facts(second), first.describe, second.describe)
    return splits


def skipped(splits: Splits) -> tuple[tuple[str, str], ...]:
    """The images of both splits that were left out: path, or name in the source, and reason."""
    sources = [part.source if isinstance(part, Subset) else part for part in splits]
    unique = {id(source): source for source in sources}  # both may be parts of the same one
    found: list[tuple[str, str]] = []
    for source in unique.values():
        split = ""  # the name of a record has it
        if len(unique) > 1 and isinstance(source, FileSource):
            split = f"{source.root.name}/"
        found += [(split + name, reason) for name, reason in getattr(source, "skipped", ())]
    return tuple(found)


def _vetted(source: Source, on_bad_image: OnBadImage, retry: float) -> Source:
    if isinstance(source, EncodedSource):
        return vet(source, on_bad_image, retry)
    return source


def _facts(source: Source) -> list[Facts]:
    """What is known of each encoded image; nothing of images in memory."""
    if isinstance(source, Subset):
        known = _facts(source.source)
        return [known[index] for index in source.indices] if known else []
    return source.facts if isinstance(source, EncodedSource) else []


def as_splits(
    spec: str, train: Source, val: Source | None, *, val_fraction: float, seed: int
) -> Splits:
    """Splits the training images where a source has none for validation.

    Args:
        spec: what to call the source in messages.
        train, val: what `open_parts` returns.
        val_fraction, seed: as for `open_splits`.

    Raises:
        UserError: there is one class only, or a class has a single image and would have to be
            split.
    """
    if len(train.classes) < 2:
        there = f"one class only, {train.classes[0]!r}" if train.classes else "no classes"
        raise UserError(f"{spec} has {there}: a classifier needs at least two")
    if val is not None:
        return Splits(train, val)
    kept, held_out = stratified_split(train, val_fraction, seed)
    return Splits(_subset(train, kept), _subset(train, held_out))


def open_all(
    spec: str, *, classes: tuple[str, ...] | None = None, retry_seconds: float = 0
) -> Source:
    """Opens a source for evaluation: its validation part, or all of it where it has no split.

    Args:
        spec: as for `open_splits`.
        classes: the classes of the trained run: labels become indices into these.
        retry_seconds: how long to wait for what cannot be read now.

    Raises:
        UserError: there is no such source, it holds no proper data set, or it has images of a
            class that is not among `classes`.
    """
    train, val = open_parts(spec, retry=retry_seconds)
    source = train if val is None else val
    if classes is None or classes == source.classes:
        return source
    present = [source.classes[label] for label in np.unique(source.labels)]
    unknown = sorted(set(present) - set(classes))
    if unknown:
        raise UserError(
            f"{spec} has images of the class {unknown[0]!r}, which the run does not know: "
            f"its classes are {', '.join(classes)}"
        )
    number = {name: index for index, name in enumerate(classes)}
    mapped = np.asarray([number.get(name, -1) for name in source.classes], np.int32)
    return Subset(source, np.arange(len(source)), mapped[source.labels], classes)


def absolute(spec: str) -> str:
    """The same source by a path that does not depend on the working directory."""
    kind, colon, name = spec.rpartition("tfds:")
    path = Path(os.path.expanduser(name))
    there = (path / DESCRIPTION).is_file() if colon else spec != "digits" and path.exists()
    return f"{kind}{colon}{path.resolve()}" if there else spec


def found_line(source: Source) -> str:
    """What Keras prints of a data set: `Found 202 images belonging to 2 classes.`"""
    return f"Found {len(source)} images belonging to {len(source.classes)} classes."


def stratified_split(
    source: Source, val_fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " val"]]:
    """Draws the same fraction of every class; returns the indices of both splits, ascending.

    Not scikit-learn's splitters: they divide the total, which can leave a rare class without an
    image for validation, and they refuse sets that are smaller than twice the number of classes.
    The generator is NumPy's `RandomState`, whose numbers NumPy promises never to change.

    Raises:
        UserError: there are no images, or a class has a single one.
    """
    if not len(source):
        raise UserError("there is no image that can be used")
    generator = np.random.RandomState(seed)
    held_out = []
    for label in np.unique(source.labels):
        members = np.flatnonzero(source.labels == label)
        if len(members) < 2:
            raise UserError(
                f"the class {source.classes[label]!r} has a single image "
                f"({source.describe(int(members[0]))}), too few to split: add images, or make "
                "train/ and val/ folders yourself"
            )
        count = min(max(int(val_fraction * len(members) + 0.5), 1), len(members) - 1)
        held_out.append(generator.permutation(members)[:count])
    val = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(source)), val), val


def _subset(source: Source, indices: Int64[np.ndarray, " images"]) -> Subset:
    return Subset(source, indices, source.labels[indices], source.classes)


def folder_of(spec: str) -> Path | None:
    """The path on a disk that a source is named by; None if it is not named by one."""
    named = spec == "digits" or spec.startswith("tfds:") or is_remote(spec)
    return None if named else Path(os.path.expanduser(spec))


def open_parts(
    spec: str, *, pixels: bool = False, retry: float = 0
) -> tuple[Source, Source | None]:
    """Opens a source as it is stored: its images and, where it has a split, those for validation.

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
    if path is None and spec == "digits":
        return _digits(), None
    if path is None:
        name = spec.removeprefix("tfds:")
        return patiently(lambda: open_tfds(name, pixels=pixels, retry=retry), spec, retry)
    return patiently(lambda: _open_path(path, spec), spec, retry)


def _open_objects(spec: str) -> tuple[Source, Source | None]:
    try:
        return open_folder(list_folder(spec))
    except FileNotFoundError as error:
        raise UserError(f"there is no data source {spec!r}: no such bucket or folder") from error
    except Unreachable as error:
        raise ReadError(str(error)) from error


def _open_path(path: Path, spec: str) -> tuple[Source, Source | None]:
    try:
        path.stat()
    except OSError as error:
        text = (
            f"there is no data source {spec!r} ({error.strerror}): give digits, the path of a "
            "folder of class folders, or tfds:NAME"
        )
        with KeptFacts() as kept:  # a misspelt path, or a disk that is away
            raise (read_error(error, text) if kept.has_below(path) else UserError(text)) from error
    if not path.is_dir():
        raise UserError(f"{spec} is a file: give the path of a folder of class folders")
    return open_folder(path)


def _digits() -> ArraySource:
    """1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn.

    Its file is read without `sklearn.datasets.load_digits`, whose import takes 0.9 s.
    """
    file = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    rows = np.loadtxt(str(file), delimiter=",")  # 64 grey values and a label
    grey, labels = rows[:, :-1], rows[:, -1].astype(np.int32)
    pixels = np.rint(grey.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)  # grey values are 0..16
    return ArraySource("digits", pixels, labels, tuple(str(label) for label in range(10)))
