"""The images of a run, split: to train on, to choose by, and to measure the choice on."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from jaxtl.config import Counts, Data
from jaxtl.data.facts import Facts
from jaxtl.data.folders import FileSource
from jaxtl.data.sources import Parts, Source, Subset, open_parts
from jaxtl.data.vetting import EncodedSource, vet, warn_of_leaks
from jaxtl.errors import UserError
from jaxtl.labels import is_multi_label, strata

_LOADED = {"batch_size", "balanced", "resize", "memory_gb"}  # say not which images there are


class Splits(NamedTuple):
    """The images of a run, with the same classes.

    Attributes:
        train: those that it trains on.
        val: those that choose the best epoch.
        test: those that nothing is chosen by; None where there are none.
    """

    train: Source
    val: Source
    test: Source | None = None

    @property
    def named(self) -> dict[str, Source]:
        """The splits that there are, by name."""
        return {name: part for name, part in self._asdict().items() if part is not None}


def open_splits(data: Data) -> Splits:
    """Opens the images of a config, after a look at each, and warns of those in two splits.

    Args:
        data: the source: `digits`, the path of a folder (see `open_folder`), also of one on an
            object store (`gs://BUCKET/...`, `s3://BUCKET/...`), `csv:FILE` (see `open_csv`), or
            `tfds:NAME` or `tfds:DIR` (see `open_tfds`); how it is split; and what to do about
            images that cannot be used, see `vet`.

    Raises:
        UserError: there is no such source, it holds no proper data set, an image cannot be used, or
            as `as_splits`.
    """
    retry = data.retry_seconds
    parts = open_parts(data.source, pixels=data.on_bad_image == "skip", retry=retry)
    train, *others = (
        vet(part, data.on_bad_image, retry) if isinstance(part, EncodedSource) else part
        for part in parts
    )
    assert train is not None
    splits = as_splits(Parts(train, *others), data)
    for (one, first), (other, second) in itertools.combinations(splits.named.items(), 2):
        known, described = (_facts(first), _facts(second)), (first.describe, second.describe)
        warn_of_leaks(*known, *described, between=(one, other))
    return splits


class OpenOnce:
    """Opens images for a command, the same ones once: it warns once of what is wrong with them."""

    def __init__(self) -> None:
        self._open = functools.lru_cache(maxsize=4)(open_splits)

    def __call__(self, data: Data) -> Splits:
        """The images of a config, as from `open_splits`, which raises the same."""
        return self._open(data.model_copy(update=Data().model_dump(include=_LOADED)))

    def count(self, data: Data) -> Counts:
        """Counts the training images that a config names."""
        train = self(data).train
        return Counts(len(train), len(train.classes), data.batch_size)


def skipped(splits: Splits) -> tuple[tuple[str, str], ...]:
    """The images of all splits that were left out: path, or name in the source, and reason."""
    sources = [part.source if isinstance(part, Subset) else part for part in splits.named.values()]
    unique = {id(source): source for source in sources}  # several may be parts of the same one
    roots = {str(source.root) for source in unique.values() if isinstance(source, FileSource)}
    found: list[tuple[str, str]] = []
    for source in unique.values():
        split = ""  # the name of a record has it; a CSV file lists all splits below one folder
        if len(roots) > 1 and isinstance(source, FileSource):
            split = f"{source.root.name}/"
        found += [(split + name, reason) for name, reason in getattr(source, "skipped", ())]
    return tuple(found)


def _facts(source: Source) -> list[Facts]:
    """What is known of each encoded image; nothing of images in memory."""
    if isinstance(source, Subset):
        known = _facts(source.source)
        return [known[index] for index in source.indices] if known else []
    return source.facts if isinstance(source, EncodedSource) else []


def as_splits(parts: Parts, data: Data) -> Splits:
    """Splits the training images where a source has none for validation, or none for a test.

    Images for a test are drawn first, so that `val_fraction` does not change them, and it is then
    the fraction of the images that are left.

    Args:
        parts: what `open_parts` returns.
        data: how to split them, and what to call their source in messages. Fractions are those of
            each class, rounded, but at least one image of each class is in each split; of images
            with labels of several classes they are those of all images.

    Raises:
        UserError: there is one class only, a class has too few images to be split, or a test
            fraction or folds are wanted where there are images for it.
    """
    (train, val, test), spec = parts, data.source
    _check_classes(spec, train)
    if data.test_fraction and test is not None:
        raise UserError(
            f"{spec} has a test split of its own, so data.test_fraction has nothing to do: leave "
            "it out, or set it to 0"
        )
    if data.test_fraction:
        train, test = _divided(train, data.test_fraction, data.seed)
    if data.folds and val is not None:
        one = f"as one folder, such as {spec}/train"
        if spec.startswith("csv:"):
            one = "the split train in its column split"
        raise UserError(
            f"{spec} has validation images of its own, and data.folds would divide the others: "
            f"leave it out, or give the images of all folds {one}"
        )
    if data.folds:
        kept, held_out = stratified_fold(train, data.folds, data.fold, data.seed)
        train, val = _part(train, kept), _part(train, held_out)
    if val is None:
        train, val = _divided(train, data.val_fraction, data.seed)
    return Splits(train, val, test)


def _check_classes(spec: str, train: Source) -> None:
    """Refuses images that have nothing to tell apart."""
    names = train.classes
    if is_multi_label(train.labels):
        if len(names) == 1 and len(train) and train.labels.all():
            raise UserError(
                f"every image of {spec} has the label {names[0]!r}: list images without it too"
            )
    elif len(names) < 2:
        there = f"one class only, {names[0]!r}" if names else "no classes"
        raise UserError(f"{spec} has {there}: a classifier needs at least two")


def _divided(source: Source, fraction: float, seed: int) -> tuple[Subset, Subset]:
    kept, held_out = stratified_split(source, fraction, seed)
    return _part(source, kept), _part(source, held_out)


def stratified_split(
    source: Source, fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " held_out"]]:
    """Draws the same fraction of every class; returns the indices of the others and of these.

    Of labels of several classes see `strata`.

    Both ascend. Not scikit-learn's splitters: they divide the total, which can leave a rare class
    without an image for validation, and they refuse sets that are smaller than twice the number of
    classes. The generator is NumPy's `RandomState`, whose numbers NumPy promises never to change.

    Raises:
        UserError: there are no images, or a class has a single one.
    """
    if not len(source):
        raise UserError("there is no image that can be used")
    generator = np.random.RandomState(seed)
    drawn, labels = [], strata(source.labels)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            left = " left" if isinstance(source, Subset) else ""
            raise UserError(
                f"{_stratum(source, int(label))} has a single image{left} "
                f"({source.describe(int(members[0]))}), too few to split: add images, or split "
                "them yourself: by folders train/, val/ and perhaps test/, or by the column split "
                "of a CSV file"
            )
        count = min(max(int(fraction * len(members) + 0.5), 1), len(members) - 1)
        drawn.append(generator.permutation(members)[:count])
    held_out = np.sort(np.concatenate(drawn))
    return np.setdiff1d(np.arange(len(source)), held_out), held_out


def stratified_fold(
    source: Source, folds: int, fold: int, seed: int
) -> tuple[Int64[np.ndarray, " kept"], Int64[np.ndarray, " held_out"]]:
    """One of the folds of a cross-validation; returns the indices of the others and of its images.

    Each image is in one fold, and the numbers of images of a class differ by one at most.

    Args:
        source: the images.
        folds: how many there are, at least 2.
        fold: which one, from 0.
        seed: draws them.

    Raises:
        UserError: a class has fewer images than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    labels = strata(source.labels)
    counts = Counter(labels.tolist())
    if not counts:
        raise UserError("there is no image that can be used")
    rarest = min(counts, key=counts.__getitem__)
    if counts[rarest] < folds:
        raise UserError(
            f"{_stratum(source, rarest)} has {counts[rarest]} images, too few for "
            f"data.folds={folds}: give fewer folds, or add images"
        )
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)
    return next(itertools.islice(parts, fold, None))


def _stratum(source: Source, label: int) -> str:
    """What a message calls the images of one of the `strata`."""
    if not is_multi_label(source.labels):
        return f"the class {source.classes[label]!r}"
    if len(source.classes) > 1:
        return "the data set"
    return f"the {'label' if label else 'part without the label'} {source.classes[0]!r}"


def _part(source: Source, indices: Int64[np.ndarray, " images"]) -> Subset:
    """Some images of a source, or of the source that it is a part of itself."""
    whole, places = source, indices
    if isinstance(source, Subset):
        whole, places = source.source, source.indices[indices]
    return Subset(whole, places, source.labels[indices], source.classes)
