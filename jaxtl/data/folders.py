"""Images in class folders."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from jaxtl.data.inspection import Facts, Item, file_item, inspect
from jaxtl.data.reading import read_file
from jaxtl.errors import UserError
from jaxtl.files import as_text

_log = logging.getLogger("jaxtl")

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
_SPLITS = {"train", "training", *VALIDATION_FOLDERS, "testing", "eval"}


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Image files below a folder.

    Attributes:
        root: the folder.
        paths: the path of each image, relative to `root`, with slashes.
        labels: the class of each image, an index into `classes`.
        classes: the names of the classes.
        skipped: images that were left out: their paths relative to `root`, and the reasons.
    """

    root: Path
    paths: tuple[str, ...]
    labels: Int32[np.ndarray, " images"]
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> bytes:
        """Reads the encoded image; raises UserError where that fails."""
        return read_file(self.root / self.paths[index])

    def describe(self, index: int) -> str:
        """The path of an image."""
        return str(self.root / self.paths[index])

    def described_in_source(self, index: int) -> str:
        """The path of an image relative to the folder: the same wherever that lies."""
        return self.paths[index]

    @functools.cached_property
    def items(self) -> list[Item]:
        """The images, to be looked at by `inspect`."""
        return [
            file_item(self.root / path, functools.partial(self._read, i))
            for i, path in enumerate(self.paths)
        ]

    @functools.cached_property
    def facts(self) -> list[Facts]:
        """What contents and headers of the images say."""
        return inspect(self.items)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over relative paths, contents, labels, class names and what was skipped."""
        for i, facts in enumerate(self.facts):
            if not facts.sha256:
                reason = (facts.problem or "").removeprefix("cannot be read: ")
                raise UserError(f"cannot read {self.describe(i)}: {reason}")
        contents = [facts.sha256 for facts in self.facts]
        known = [self.classes, self.labels.tolist(), self.paths, contents, self.skipped]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    @property
    def version(self) -> str:
        """The fingerprint: it covers every byte."""
        return self.fingerprint

    def _read(self, index: int) -> tuple[bytes, int]:
        return self[index], -1


def open_folder(root: Path) -> tuple[FileSource, FileSource | None]:
    """Opens a folder of class folders, or one with `train/` and perhaps `val/` of class folders.

    Classes are the names of the class folders, sorted. Class folders are searched to any depth;
    hidden files and folders are passed over; files that are not images are reported in one
    warning. Next to `train/` the first of `val/`, `valid/`, `validation/`, `test/` is for
    validation, and the others are ignored. A folder called `train` that holds no folders is
    an ordinary class.

    Returns:
        The training images and the validation images, or all images and None where the folder
        has no such split. Both have the classes of the training images.

    Raises:
        UserError: the folder is empty or cannot be read, a class has no images, or the validation
            images have a class that the training images do not have.
    """
    with _readable():
        names = _subfolders(root)
        if "train" not in names or not _subfolders(root / "train"):
            if names and {name.lower() for name in names} <= _SPLITS:
                raise UserError(
                    f"{root} has {', '.join(names)}, but no train/ with class folders in it: "
                    "name the training images train/, or name the folder of one split"
                )
            return _source(root, _images_by_class(root)), None
        train = _source(root / "train", _images_by_class(root / "train"))
        second = next((name for name in VALIDATION_FOLDERS if name in names), None)
        if ignored := [name for name in names if name not in ("train", second)]:
            _log.warning("%s: ignored: %s", root, ", ".join(ignored))
        if second is None:
            return train, None
        found = _images_by_class(root / second)
    unknown = sorted(set(found) - set(train.classes))
    if unknown:
        raise UserError(
            f"{root / second} has the class {unknown[0]!r}, which {train.root} lacks: "
            "both need the same class folders"
        )
    missing = sorted(set(train.classes) - set(found))
    if missing:
        _log.warning("%s has no images of the class %s", root / second, ", ".join(missing))
    return train, _source(root / second, found, train.classes)


@dataclasses.dataclass
class Survey:
    """Everything in a folder, also what `open_folder` refuses or passes over.

    Attributes:
        splits: the images of `train` and of the folder for validation, or of `all`.
        empty_classes: class folders without images.
        other_files: files that are not images, or outside of the class folders.
        hidden: hidden files and folders.
        broken: folders that cannot be searched, and why.
    """

    splits: dict[str, FileSource] = dataclasses.field(default_factory=dict)
    empty_classes: list[str] = dataclasses.field(default_factory=list)
    other_files: list[str] = dataclasses.field(default_factory=list)
    hidden: list[str] = dataclasses.field(default_factory=list)
    broken: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def survey_folder(root: Path) -> Survey:
    """Finds what is in a folder of class folders, whatever is wrong with it."""
    found = Survey()
    with _readable():
        names = _subfolders(root)
        folders = {"all": root}
        if "train" in names and _subfolders(root / "train"):
            second = next((name for name in VALIDATION_FOLDERS if name in names), None)
            folders = {name: root / name for name in ("train", second) if name}
        for split, folder in folders.items():
            images: dict[str, list[str]] = {name: [] for name in _subfolders(folder)}
            _search(folder, folder, images, found)
            found.empty_classes += [as_text(str(folder / n)) for n in images if not images[n]]
            found.splits[split] = _source(folder, {as_text(n): images[n] for n in images})
    return found


def _search(top: Path, folder: Path, images: dict[str, list[str]], found: Survey) -> None:
    """Adds what is below a folder to the images by class folder of `top`, and to `found`."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = Path(entry.path)
            relative = path.relative_to(top)
            if entry.name.startswith("."):
                found.hidden.append(as_text(entry.path))
            elif _is_folder(entry):
                if os.path.realpath(path) in (
                    os.path.realpath(p) for p in (path.parent, *path.parents)
                ):
                    reason = "a link to a folder that holds it"
                    found.broken.append((as_text(entry.path), reason))
                    continue
                try:
                    _search(top, path, images, found)
                except OSError as error:
                    reason = f"cannot be read: {error.strerror}"
                    found.broken.append((as_text(entry.path), reason))
            elif _is_image(entry.name) and len(relative.parts) > 1:
                images[relative.parts[0]].append(relative.as_posix())
            else:
                found.other_files.append(as_text(entry.path))


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths, and the images in the folders among them, searched to any depth.

    Hidden files and folders are passed over. The images of a folder are sorted by name.

    Raises:
        UserError: a path is not there or cannot be read, or a folder has no images.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"no file {path}")
        if not path.is_dir():
            found.append(path)
            continue
        with _readable():
            images = sorted(name for name in _files(path, "") if _is_image(name))
        if not images:
            raise UserError(f"no images in {path}")
        found += [path / name for name in images]
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Turns an OSError inside a `with` block into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _source(
    root: Path, found: dict[str, list[str]], classes: tuple[str, ...] | None = None
) -> FileSource:
    classes = classes or tuple(found)
    number = {name: index for index, name in enumerate(classes)}
    paths = [path for name in found for path in found[name]]
    labels = [number[name] for name in found for _ in found[name]]
    return FileSource(root, tuple(paths), np.asarray(labels, np.int32), classes)


def _images_by_class(root: Path) -> dict[str, list[str]]:
    """The images of each class folder, both sorted by name: paths relative to `root`."""
    _refuse_or_report_loose_images(root)
    images: dict[str, list[str]] = {}
    others: list[str] = []
    for name in _subfolders(root):
        files = sorted(_files(root / name, f"{name}/"))
        if as_text(name) in images:
            raise UserError(
                f"{root} has two class folders that are both written {as_text(name)}, one of them "
                "in bytes that are not UTF-8: rename one"
            )
        images[as_text(name)] = [path for path in files if _is_image(path)]
        others += [path for path in files if not _is_image(path)]
    if not images:
        raise UserError(f"{root} is empty: it needs one folder of images for each class")
    empty = [name for name in images if not images[name]]
    if empty:
        raise UserError(
            f"no images ({', '.join(e[1:] for e in EXTENSIONS)}) in the class folder "
            f"{root / empty[0]}: add some or remove the folder"
        )
    if others:
        _log.warning(
            "skipped %d files that are not images, the first is %s", len(others), root / others[0]
        )
    return images


def _refuse_or_report_loose_images(root: Path) -> None:
    """Images outside of the class folders have no class: ignoring them takes a warning."""
    with os.scandir(root) as entries:
        loose = sorted(
            e.name
            for e in entries
            if _is_image(e.name) and not e.name.startswith(".") and not e.is_dir()
        )
    if loose and not _subfolders(root):
        raise UserError(
            f"{root} has images but no class folders: put the images of each class in a folder "
            "named after the class"
        )
    if loose:
        _log.warning(
            "skipped %d images outside of the class folders, the first is %s",
            len(loose),
            root / loose[0],
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder; a link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _files(folder: Path, prefix: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Every file below a folder that is not hidden: `prefix` and its path, with slashes."""
    real = os.path.realpath(folder)
    if real in above:
        raise UserError(f"{folder} is a link to a folder that holds it: remove the link")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                yield from _files(Path(entry.path), f"{prefix}{entry.name}/", (*above, real))
            else:
                yield prefix + entry.name
