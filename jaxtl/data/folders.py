"""Images in class folders."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxtl.data.facts import Item, KeptFacts
from jaxtl.data.inspection import file_item
from jaxtl.data.reading import ReadError, read_error, read_file
from jaxtl.data.vetting import EncodedSource
from jaxtl.errors import UserError
from jaxtl.files import as_text
from jaxtl.labels import Labels
from jaxtl.objects import ObjectFolder, Unreachable

_log = logging.getLogger("jaxtl")

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
VALIDATION_FOLDERS = ("val", "valid", "validation")
_SPLITS = {"train", "training", *VALIDATION_FOLDERS, "test", "testing", "eval"}


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource(EncodedSource):
    """Image files below a folder.

    Attributes:
        root: the folder, on a disk or on an object store.
        paths: the path of each image, relative to `root`, with slashes.
        labels: the class of each image, an index into `classes`, or all its classes.
        classes: the names of the classes.
        skipped: images that were left out: their paths relative to `root`, and the reasons.
    """

    root: Path | ObjectFolder
    paths: tuple[str, ...]
    labels: Labels
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, index: int) -> bytes:
        """Reads the encoded image; raises UserError where that fails, or where its contents are
        no longer those of the fingerprint.
        """
        known = vars(self).get("facts")  # nothing to compare with before they are looked at
        try:
            encoded, _ = self._read(index)
        except UserError as error:
            on_disk = isinstance(self.root, Path)
            if known and on_disk and not Path(self.describe(index)).exists():
                raise ReadError(str(error)) from error  # a link to a disk that may come back
            raise
        if known and hashlib.sha256(encoded).hexdigest() != known[index].sha256:
            raise UserError(
                "its contents changed since the command began: put back what it was, or train "
                "on the new one in another --workdir"
            )
        return encoded

    def describe(self, index: int) -> str:
        """The path of an image."""
        return str(self.root / self.paths[index])

    def described_in_source(self, index: int) -> str:
        """The path of an image relative to the folder: the same wherever that lies."""
        return self.paths[index]

    def items(self) -> Iterator[Item]:
        """The images, to be looked at by `inspect`."""
        if isinstance(self.root, ObjectFolder):
            for i, path in enumerate(self.paths):
                name, known = self.describe(i), self.root.stamp(path)
                yield Item(os.fsencode(name), known, name, functools.partial(self._read, i))
            return
        root = os.path.abspath(self.root)
        for i, path in enumerate(self.paths):
            yield file_item(os.path.join(root, path), functools.partial(self._read, i))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over relative paths, contents, labels, class names and what was skipped."""
        for i, facts in enumerate(self.facts):
            if not facts.sha256:
                reason = (facts.problem or "").removeprefix("cannot be read: ")
                raise UserError(f"cannot read {self.describe(i)}: {reason}")
        contents = [facts.sha256 for facts in self.facts]
        skipped = [path for path, _ in self.skipped]
        known = [self.classes, self.labels.tolist(), self.paths, contents, skipped]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def only(self, kept: Sequence[int], skipped: tuple[tuple[str, str], ...]) -> FileSource:
        """The images of some indices."""
        paths, labels = tuple(self.paths[i] for i in kept), self.labels[list(kept)]
        return dataclasses.replace(self, paths=paths, labels=labels, skipped=skipped)

    def _read(self, index: int) -> tuple[bytes, int]:
        if isinstance(self.root, Path):
            return read_file(self.root / self.paths[index]), -1
        try:
            return self.root.read(self.paths[index]), -1
        except FileNotFoundError as error:
            raise ReadError("cannot be read: no such object") from error
        except Unreachable as error:
            raise ReadError(str(error)) from error


def open_folder(
    root: Path | ObjectFolder,
) -> tuple[FileSource, FileSource | None, FileSource | None]:
    """Opens a folder of class folders, or one with folders of these for each split.

    Classes are the names of the class folders, sorted. Class folders are searched to any depth;
    hidden files and folders are passed over; files that are not images are reported in one
    warning. Next to `train/` the first of `val/`, `valid/`, `validation/` is for validation,
    `test/` is for the test if it has a class folder of the same name, and all others are ignored; a
    warning names them. A folder called `train` that holds no folders is an ordinary class.

    Returns:
        The images to train on, or all images; those for validation and those for the test, None
        without such a folder. All have the classes of the first.

    Raises:
        UserError: the folder is empty or cannot be read, a class has no images, or others have a
            class that the training images do not have.
    """
    with _readable():
        splits, names = _split_folders(root), _subfolders(root)
        if splits == ["all"]:
            if names and {name.lower() for name in names} <= _SPLITS:
                raise UserError(
                    f"{root} has {', '.join(names)}, but no train/ with class folders in it: "
                    "name the training images train/, or name the folder of one split"
                )
            return _source(root, _images_by_class(root)), None, None
        train = _source(root / "train", _images_by_class(root / "train"))
        if ignored := [name for name in names if name not in splits]:
            _log.warning("%s: ignored: %s", root, ", ".join(ignored))
        others = {name: _same_classes(root / name, train) for name in splits[1:]}
        test = others.pop("test", None)
        return train, next(iter(others.values()), None), test


def _same_classes(folder: Path | ObjectFolder, train: FileSource) -> FileSource:
    """Another split, with the classes of the training images."""
    found = _images_by_class(folder)
    unknown = sorted(set(found) - set(train.classes))
    if unknown:
        raise UserError(
            f"{folder} has the class {unknown[0]!r}, which {train.root} lacks: "
            "both need the same class folders"
        )
    missing = sorted(set(train.classes) - set(found))
    if missing:
        _log.warning("%s has no images of the class %s", folder, ", ".join(missing))
    return _source(folder, found, train.classes)


@dataclasses.dataclass
class Survey:
    """Everything in a folder, also what `open_folder` refuses or passes over.

    Attributes:
        splits: the images of `train` and of the folders for validation and test, or of `all`.
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
    survey = Survey()
    with _readable():
        for split in _split_folders(root):
            folder = root if split == "all" else root / split
            found = _search(folder, survey.broken)
            survey.empty_classes += _texts(
                folder, [n for n, own in found.images.items() if not own]
            )
            survey.other_files += _texts(folder, found.others)
            survey.hidden += _texts(folder, found.hidden)
            survey.splits[split] = _source(folder, {as_text(n): i for n, i in found.images.items()})
    return survey


def _split_folders(root: Path | ObjectFolder) -> list[str]:
    """`train`, the first folder for validation and that for the test, as far as there are such
    folders; `all` without `train`.
    """
    names = _subfolders(root)
    if "train" not in names or not (classes := _subfolders(root / "train")):
        return ["all"]
    there = [name for name in VALIDATION_FOLDERS if name in names]
    # Many keep images without labels in `test`.
    labelled = "test" in names and set(_subfolders(root / "test")) & set(classes)
    return ["train", *there[:1], *(["test"] if labelled else [])]


def _texts(folder: Path, paths: list[str]) -> list[str]:
    return [as_text(str(folder / path)) for path in paths]


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
            images = sorted(n for n in _files(path) if _is_image(n) and not _is_hidden(n))
        if not images:
            raise UserError(f"no images in {path}")
        found += [path / name for name in images]
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Turns an OSError inside a `with` block into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        raise read_error(error, f"cannot read {error.filename}: {error.strerror}") from error


def _subfolders(folder: Path | ObjectFolder) -> list[str]:
    if isinstance(folder, ObjectFolder):
        return folder.subfolders()
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if _is_folder(e) and not e.name.startswith("."))


def _source(
    root: Path | ObjectFolder, found: dict[str, list[str]], classes: tuple[str, ...] | None = None
) -> FileSource:
    classes = classes or tuple(found)
    number = {name: index for index, name in enumerate(classes)}
    paths = [path for name in found for path in found[name]]
    labels = [number[name] for name in found for _ in found[name]]
    if isinstance(root, Path):
        with KeptFacts() as kept:
            kept.forget_missing(root, len(paths))
    return FileSource(root, tuple(paths), np.asarray(labels, np.int32), classes)


def _images_by_class(root: Path | ObjectFolder) -> dict[str, list[str]]:
    """The images of each class folder, both sorted by name: paths relative to `root`."""
    found = _search(root)
    _refuse_or_report_loose_images(root, found)
    if not found.images:
        raise UserError(f"{root} is empty: it needs one folder of images for each class")
    images = {as_text(name): paths for name, paths in found.images.items()}
    written, times = collections.Counter(map(as_text, found.images)).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{root} has two class folders that are both written {written}, one of them "
            "in bytes that are not UTF-8: rename one"
        )
    empty = [name for name in images if not images[name]]
    if empty:
        raise UserError(
            f"no images ({', '.join(e[1:] for e in EXTENSIONS)}) in the class folder "
            f"{root / empty[0]}: add some or remove the folder"
        )
    if others := [path for path in found.others if "/" in path]:
        _log.warning(
            "skipped %d files that are not images, the first is %s", len(others), root / others[0]
        )
    return images


def _refuse_or_report_loose_images(root: Path | ObjectFolder, found: _Found) -> None:
    """Images outside of the class folders have no class: ignoring them takes a warning."""
    loose = [path for path in found.others if _is_image(path)]
    if loose and not found.images:
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


@dataclasses.dataclass
class _Found:
    """What is in a folder of class folders, sorted: paths relative to it, with slashes.

    Attributes:
        images: those of each class folder.
        others: files that are not images, and images outside of the class folders.
        hidden: hidden files and folders.
    """

    images: dict[str, list[str]]
    others: list[str] = dataclasses.field(default_factory=list)
    hidden: list[str] = dataclasses.field(default_factory=list)


def _search(root: Path | ObjectFolder, broken: list[tuple[str, str]] | None = None) -> _Found:
    """Finds everything below a folder; `broken` as for `_files`."""
    found = _Found({name: [] for name in _subfolders(root)})
    files = root.files() if isinstance(root, ObjectFolder) else _files(root, broken)
    for path in sorted(files):
        folder, slash, _ = path.partition("/")
        if _is_hidden(path):
            found.hidden.append(path)
        elif slash and _is_image(path):
            found.images.setdefault(folder, []).append(path)
        else:
            found.others.append(path)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder; a link that leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _files(folder: Path, broken: list[tuple[str, str]] | None = None) -> Iterator[str]:
    """Every file below a folder, and every hidden folder: relative paths, with slashes.

    Args:
        folder: the folder; hidden folders below it are not searched.
        broken: takes the folders that cannot be searched, and why. None raises an OSError or
            UserError for the first of them.
    """
    waiting: list[tuple[str, tuple[os.stat_result, ...]]] = [("", (folder.stat(),))]
    while waiting:  # folders may lie deeper than functions may call each other
        prefix, above = waiting.pop()
        try:
            with os.scandir(folder / prefix) as entries:
                for entry in entries:
                    path = prefix + entry.name
                    if entry.name.startswith(".") or not _is_folder(entry):
                        yield path
                    elif not any(os.path.samestat(entry.stat(), each) for each in above):
                        waiting.append((f"{path}/", (*above, entry.stat())))
                    elif broken is None:
                        raise UserError(
                            f"{folder / path} is a link to a folder that holds it: remove the link"
                        )
                    else:
                        reason = "a link to a folder that holds it"
                        broken.append((as_text(str(folder / path)), reason))
        except OSError as error:
            if broken is None:
                raise
            broken.append((as_text(str(folder / prefix)), f"cannot be read: {error.strerror}"))
