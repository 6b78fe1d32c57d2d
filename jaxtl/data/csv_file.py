"""Images and labels that a CSV file lists (docs/labels-and-metrics.md)."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxtl.data.facts import KeptFacts
from jaxtl.data.folders import FileSource
from jaxtl.data.reading import read_error
from jaxtl.errors import UserError, printable
from jaxtl.labels import Labels
from jaxtl.objects import is_remote

SPLITS = ("train", "val", "test")
_READ = ("image", "label", "labels", "split")
_BETWEEN = ";"  # labels of an image


class _Row(NamedTuple):
    """An image: the line of the file, its path, the names of its classes, and its split."""

    line: int
    image: str
    labels: tuple[str, ...]
    split: str


def open_csv(name: str) -> dict[str, FileSource]:
    """Opens a CSV file with a header: a row an image, its path in the column `image`.

    A column `label` has the class of each image, or a column `labels` several, with semicolons
    between them, or none. A column `split` says `train`, `val` or `test`. Other columns, and rows
    of empty fields, are passed over. Classes are the names in the training rows, sorted.

    Args:
        name: the path of the file; those of images are absolute, or relative to its folder.

    Returns:
        The images of each split, `train`, `val` and `test`, as far as there are such rows.

    Raises:
        UserError: the file cannot be read, a row is not as it should be, or names an image that is
            not there; the message has the number of the line.
    """
    if is_remote(name):
        raise UserError(f"csv:{name}: the file has to be on a disk; copy it and its images there")
    path = Path(os.path.expanduser(name))
    column, rows = _read(path)
    splits = [split for split in SPLITS if any(row.split == split for row in rows)]
    if not rows:
        raise UserError(f"{path} lists no images")
    if splits[0] != "train":
        raise UserError(
            f"{path} lists no images of the split train: leave the column split out to train on "
            "all rows, or to measure all"
        )
    of_train = [row for row in rows if row.split == "train"]
    classes = tuple(sorted({name for row in of_train for name in row.labels}))
    if not classes:
        raise UserError(f"{path}: no image of the split train has a label")
    sources = {}
    for split in splits:
        own = [row for row in rows if row.split == split]
        for row in own:
            for label in set(row.labels) - set(classes):
                raise _wrong(path, row.line, f"no image of the split train is of class {label!r}")
        images = tuple(row.image for row in own)
        labels = _as_labels(own, classes, several=column == "labels")
        sources[split] = FileSource(path.parent, images, labels, classes)
    return sources


def _as_labels(rows: Sequence[_Row], classes: tuple[str, ...], *, several: bool) -> Labels:
    number = {name: index for index, name in enumerate(classes)}
    if not several:
        return np.asarray([number[row.labels[0]] for row in rows], np.int32)
    labels = np.zeros((len(rows), len(classes)), np.int32)
    for place, row in enumerate(rows):
        labels[place, [number[name] for name in row.labels]] = 1
    return labels


def _read(path: Path) -> tuple[str, list[_Row]]:
    """Which of the columns `label` and `labels` there is, and all rows, each of them checked."""
    rows: list[_Row] = []
    seen: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, skipinitialspace=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            column = _label_column(path, reader.fieldnames)
            for fields in reader:
                if not any(text and any(text) for text in fields.values()):
                    continue  # a spreadsheet may end in these; surplus fields are a list of texts
                row = _row(path, reader.line_num, fields, column)
                place = os.path.abspath(path.parent / row.image)
                if place in seen:
                    first = f"{row.image} is in line {seen[place]} already"
                    raise _wrong(path, row.line, f"{first}: give each image one row")
                if not os.path.lexists(place):
                    raise _wrong(path, row.line, f"there is no image {row.image}")
                seen[place] = row.line
                rows.append(row)
    except csv.Error as error:
        raise _wrong(path, reader.reader.line_num, str(error)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: save it again as UTF-8") from error
    except OSError as error:
        text = f"there is no data source csv:{path} ({error.strerror})"
        with KeptFacts() as kept:  # a misspelt path, or a disk that is away
            known = kept.has_below(path.parent)
            raise (read_error(error, text) if known else UserError(text)) from error
    return column, rows


def _label_column(path: Path, header: Sequence[str]) -> str:
    if repeated := [name for name in _READ if header.count(name) > 1]:
        raise UserError(f"{path} has two columns {repeated[0]!r}: rename one")
    there = [name for name in ("label", "labels") if name in header]
    if "image" not in header or len(there) != 1:
        raise UserError(
            f"{path} has the columns {printable(', '.join(header)) or 'of an empty file'}: its "
            "first line has to name the columns image, and label or labels, separated by commas"
        )
    return there[0]


def _row(path: Path, line: int, fields: dict, column: str) -> _Row:
    if None in fields or None in fields.values():
        raise _wrong(path, line, "it has more or fewer fields than the first line")
    texts = {name: text.strip() for name, text in fields.items()}
    image, split, text = texts["image"], texts.get("split", "train"), texts[column]
    if not image:
        raise _wrong(path, line, "it names no image")
    if split not in SPLITS:
        raise _wrong(path, line, f"the split {split!r} is none of {', '.join(SPLITS)}")
    if column == "label":
        if not text:
            raise _wrong(path, line, "the image has no label; a column labels may be empty")
        return _Row(line, image, (text,), split)
    labels = (name.strip() for name in text.split(_BETWEEN))
    return _Row(line, image, tuple(dict.fromkeys(name for name in labels if name)), split)


def _wrong(path: Path, line: int, what: str) -> UserError:
    return UserError(f"{path}, line {line}: {printable(what)}")
