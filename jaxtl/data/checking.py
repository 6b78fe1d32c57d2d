"""What is wrong with a data set, and what is in it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxtl.config import Data
from jaxtl.data.decoding import as_png
from jaxtl.data.duplicates import NEAR, groups, nearest
from jaxtl.data.facts import Facts, Item
from jaxtl.data.folders import EXTENSIONS, Survey, survey_folder
from jaxtl.data.inspection import CONSTANT, inspect
from jaxtl.data.sources import ArraySource, Parts, Source, Subset, folder_of, open_parts
from jaxtl.data.splits import as_splits
from jaxtl.data.vetting import EncodedSource
from jaxtl.errors import UserError, printable
from jaxtl.files import as_text
from jaxtl.labels import class_counts

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
        images: for each split the number of images, of which several labels count some more often.
        widths, heights: the smallest, the median and the largest, in pixels.
        formats, modes: how many images have each, by Pillow's names.
        bad: images that cannot be used, and why.
        leaks: images of two splits that have the same bytes, the one of the earlier split first.
        near_leaks: images of two splits that look the same, likewise, and the bits by which their
            perceptual hashes differ.
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
    images: dict[str, int]
    widths: tuple[float, ...] = ()
    heights: tuple[float, ...] = ()
    formats: dict[str, int] = dataclasses.field(default_factory=dict)
    modes: dict[str, int] = dataclasses.field(default_factory=dict)
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    leaks: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    near_leaks: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
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
    folder = folder_of(spec)
    survey, refused = Survey(), None
    if folder is not None and folder.is_dir():
        survey = survey_folder(folder)
        sources: dict[str, Source] = dict(survey.splits)
        try:
            open_parts(spec)
        except UserError as error:
            refused = str(error)
    else:
        parts = open_parts(spec)
        sources = {name: part for name, part in parts._asdict().items() if part is not None}
        if len(sources) == 1:
            sources = {"all": parts.train}
    facts = {name: inspect(_items(part), perceptual=True) for name, part in sources.items()}
    names = {n: [part.describe(i) for i in range(len(part))] for n, part in sources.items()}
    report = Report(
        as_text(spec),
        {name: _counts(part) for name, part in sources.items()},
        {name: len(part) for name, part in sources.items()},
    )
    report.refused = refused or _refusal(spec, sources, facts)
    report.empty_classes = survey.empty_classes
    report.other_files, report.hidden = survey.other_files, survey.hidden
    report.bad = list(survey.broken)
    for name, known in facts.items():
        _describe(report, names[name], known)
        _find_duplicates(report, names[name], known)
    _find_leaks(report, names, facts)
    _measure(report, [known for part in facts.values() for known in part])
    return report


def _refusal(spec: str, sources: dict[str, Source], facts: dict[str, list[Facts]]) -> str | None:
    """Why training would refuse the images that are not bad, if it would."""
    parts = {}
    for name, source in sources.items():
        good = np.asarray([i for i, k in enumerate(facts[name]) if k.problem is None], np.int64)
        split = {"all": "train", "train": "train", "test": "test"}.get(name, "val")
        parts[split] = Subset(source, good, source.labels[good], source.classes)
    try:
        as_splits(Parts(**parts), Data(source=spec))
    except UserError as error:
        return str(error)
    return None


def _items(source: Source) -> Iterator[Item]:
    if isinstance(source, EncodedSource):
        yield from source.items()
        return
    assert isinstance(source, ArraySource)
    for i in range(len(source)):
        yield Item(b"", None, source.describe(i), functools.partial(_as_png, source, i))


def _as_png(source: ArraySource, index: int) -> tuple[bytes, int]:
    return as_png(source[index]), -1


def _counts(source: Source) -> dict[str, int]:
    counted = class_counts(source.labels, len(source.classes))
    return dict(zip(source.classes, map(int, counted), strict=True))


def _describe(report: Report, names: list[str], facts: list[Facts]) -> None:
    for name, known in zip(names, facts, strict=True):
        if known.problem is not None:
            report.bad.append((as_text(name), known.problem))
        endings = _ENDINGS.get(known.format, (f".{known.format.lower()}",))
        ending = Path(name).suffix.lower()
        if known.format and ending in EXTENSIONS and ending not in endings:
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
    unique = [i for i in _comparable(facts) if i not in again]
    for i, other, bits in _near(_hashes(facts, unique)):
        report.near.append((as_text(names[unique[other]]), as_text(names[unique[i]]), bits))


def _find_leaks(report: Report, names: dict[str, list[str]], facts: dict[str, list[Facts]]) -> None:
    for first, second in itertools.combinations(facts, 2):
        known: dict[str, int] = {}
        for i, fact in enumerate(facts[first]):
            if fact.sha256:
                known.setdefault(fact.sha256, i)
        same = {i: known[k.sha256] for i, k in enumerate(facts[second]) if k.sha256 in known}
        others = _comparable(facts[first])
        rest = [i for i in _comparable(facts[second]) if i not in same]
        alike = _near(_hashes(facts[second], rest), _hashes(facts[first], others))
        one, other = ([as_text(name) for name in names[split]] for split in (first, second))
        report.leaks += [(one[j], other[i]) for i, j in same.items()]
        report.near_leaks += [(one[others[j]], other[rest[i]], bits) for i, j, bits in alike]


def _comparable(facts: list[Facts]) -> list[int]:
    return [i for i, known in enumerate(facts) if known.perceptual not in ("", CONSTANT)]


def _hashes(facts: list[Facts], which: list[int]) -> np.ndarray:
    return np.asarray([int(facts[i].perceptual, 16) for i in which], np.uint64)


def _near(hashes: np.ndarray, others: np.ndarray | None = None) -> list[tuple[int, int, int]]:
    """The images that look like another, the place of that one, and the bits that differ."""
    index, bits = nearest(hashes, others)
    alike = np.flatnonzero(bits <= NEAR)
    return [(int(i), int(index[i]), int(bits[i])) for i in alike]


def _measure(report: Report, facts: list[Facts]) -> None:
    known = [f for f in facts if f.format]
    report.formats = dict(collections.Counter(f.format for f in known).most_common())
    report.modes = dict(collections.Counter(f.mode for f in known).most_common())
    if known:
        report.widths = _spread([f.width for f in known])
        report.heights = _spread([f.height for f in known])


def _spread(values: list[int]) -> tuple[float, ...]:
    return min(values), statistics.median(values), max(values)
