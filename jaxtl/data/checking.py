"""What is wrong with a data set, and what is in it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxtl.data.duplicates import NEAR, groups, nearest
from jaxtl.data.folders import FileSource, Survey, survey_folder
from jaxtl.data.inspection import Facts, Item, inspect
from jaxtl.data.sources import ArraySource, Source, open_parts
from jaxtl.data.tfds import TfdsSource
from jaxtl.errors import UserError, printable
from jaxtl.files import as_text

SCHEMA = 1
"""The version of what `Report.as_json` returns; new keys do not change it."""

_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe"),
    "MPO": (".jpg", ".jpeg", ".jpe"),
    "TIFF": (".tif", ".tiff"),
}


@dataclasses.dataclass
class Report:
    """What a check found. Images are named by their paths, or by their places in the source.

    Attributes:
        source: the data source.
        splits: for each split the number of images of each class.
        widths, heights: the smallest, the median and the largest, in pixels.
        formats, modes: how many images have each, by Pillow's names.
        bad: images that cannot be used, and why.
        leaks: a training image, a validation image, and the bits by which their perceptual hashes
            differ; -1 for the same bytes.
        empty_classes: class folders without images.
        refused: why training would refuse the source, or None.
        duplicates: images of a split that have the same bytes.
        near: two images of a split that look the same, and the bits that differ.
        mismatched: images whose name ends like another format, and their format.
        odd_names: names with control characters, spaces at an end, or bytes that are not UTF-8.
        other_files, hidden: files that are not images, and hidden files and folders.
    """

    source: str
    splits: dict[str, dict[str, int]]
    widths: tuple[float, ...] = ()
    heights: tuple[float, ...] = ()
    formats: dict[str, int] = dataclasses.field(default_factory=dict)
    modes: dict[str, int] = dataclasses.field(default_factory=dict)
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    leaks: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    empty_classes: list[str] = dataclasses.field(default_factory=list)
    refused: str | None = None
    duplicates: list[list[str]] = dataclasses.field(default_factory=list)
    near: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    mismatched: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    odd_names: list[str] = dataclasses.field(default_factory=list)
    other_files: list[str] = dataclasses.field(default_factory=list)
    hidden: list[str] = dataclasses.field(default_factory=list)

    @property
    def wrong(self) -> bool:
        """Whether something has to be mended before training."""
        return bool(self.bad or self.leaks or self.empty_classes or self.refused)

    def as_json(self) -> dict[str, Any]:
        """The report for scripts: the attributes, `schema` and `wrong`."""
        return {"schema": SCHEMA, "wrong": self.wrong, **dataclasses.asdict(self)}


def check(spec: str) -> Report:
    """Looks at every image of a source.

    Args:
        spec: as for `open_splits`.

    Raises:
        UserError: there is no such source, or it cannot be read as a whole.
    """
    path = Path(os.path.expanduser(spec))
    survey = Survey()
    refused = None
    if path.is_dir():
        survey = survey_folder(path)
        sources: dict[str, Source] = dict(survey.splits)
        try:
            parts = open_parts(spec)
            refused = _one_class(parts[0])
        except UserError as error:
            refused = str(error)
    else:
        train, val = open_parts(spec)
        sources = {"all": train} if val is None else {"train": train, "val": val}
        refused = _one_class(train)
    facts = {name: inspect(_items(part), perceptual=True) for name, part in sources.items()}
    names = {n: [part.describe(i) for i in range(len(part))] for n, part in sources.items()}
    report = Report(as_text(spec), {n: _counts(part) for n, part in sources.items()})
    report.refused = refused
    report.empty_classes = survey.empty_classes
    report.other_files, report.hidden = survey.other_files, survey.hidden
    report.bad = list(survey.broken)
    for name, known in facts.items():
        _describe(report, names[name], known)
        _find_duplicates(report, names[name], known)
    _find_leaks(report, names, facts)
    _measure(report, [known for part in facts.values() for known in part])
    return report


def _one_class(train: Source) -> str | None:
    return None if len(train.classes) > 1 else "a classifier needs at least two classes"


def _items(source: Source) -> list[Item]:
    if isinstance(source, FileSource | TfdsSource):
        return source.items
    assert isinstance(source, ArraySource)
    return [
        Item(b"", None, source.describe(i), functools.partial(_as_png, source.pixels[i]))
        for i in range(len(source))
    ]


def _as_png(pixels: np.ndarray) -> tuple[bytes, int]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), -1


def _counts(source: Source) -> dict[str, int]:
    counted = np.bincount(source.labels, minlength=len(source.classes))
    return dict(zip(source.classes, map(int, counted), strict=True))


def _describe(report: Report, names: list[str], facts: list[Facts]) -> None:
    for name, known in zip(names, facts, strict=True):
        if known.problem is not None:
            report.bad.append((as_text(name), known.problem))
        endings = _ENDINGS.get(known.format, (f".{known.format.lower()}",))
        if known.format and "." in Path(name).name and not name.lower().endswith(endings):
            report.mismatched.append((as_text(name), known.format))
        if _is_odd(name):
            report.odd_names.append(as_text(name))


def _is_odd(name: str) -> bool:
    parts = name.split("/")
    odd = any(part != part.strip() for part in parts) or printable(name) != name
    return odd or as_text(name) != name


def _find_duplicates(report: Report, names: list[str], facts: list[Facts]) -> None:
    equal = groups([known.sha256 for known in facts])
    report.duplicates += [[as_text(names[i]) for i in group] for group in equal]
    again = {i for group in equal for i in group[1:]}
    unique = [i for i, known in enumerate(facts) if known.perceptual and i not in again]
    for i, other, bits in _near(facts, unique):
        report.near.append((as_text(names[other]), as_text(names[i]), bits))


def _find_leaks(report: Report, names: dict[str, list[str]], facts: dict[str, list[Facts]]) -> None:
    if len(facts) < 2:
        return
    train, val = facts
    first: dict[str, int] = {}
    for i, known in enumerate(facts[train]):
        if known.sha256:
            first.setdefault(known.sha256, i)
    same = {i: first[k.sha256] for i, k in enumerate(facts[val]) if k.sha256 in first}
    found = [(i, other, -1) for i, other in same.items()]
    others = [i for i, known in enumerate(facts[train]) if known.perceptual]
    rest = [i for i, known in enumerate(facts[val]) if known.perceptual and i not in same]
    index, bits = nearest(_hashes(facts[val], rest), _hashes(facts[train], others))
    found += [
        (i, others[j], int(b)) for i, j, b in zip(rest, index, bits, strict=True) if b <= NEAR
    ]
    report.leaks = [
        (as_text(names[train][other]), as_text(names[val][i]), b) for i, other, b in found
    ]


def _near(facts: list[Facts], unique: list[int]) -> Iterable[tuple[int, int, int]]:
    index, bits = nearest(_hashes(facts, unique))
    for i, j, b in zip(unique, index, bits, strict=True):
        if b <= NEAR:
            yield i, unique[j], int(b)


def _hashes(facts: list[Facts], which: list[int]) -> np.ndarray:
    return np.asarray([int(facts[i].perceptual, 16) for i in which], np.uint64)


def _measure(report: Report, facts: list[Facts]) -> None:
    known = [f for f in facts if f.format]
    report.formats = dict(collections.Counter(f.format for f in known).most_common())
    report.modes = dict(collections.Counter(f.mode for f in known).most_common())
    if known:
        report.widths = _spread([f.width for f in known])
        report.heights = _spread([f.height for f in known])


def _spread(values: list[int]) -> tuple[float, ...]:
    return min(values), statistics.median(values), max(values)
