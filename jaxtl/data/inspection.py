"""What is known of each encoded image: its SHA-256, header and whether it decodes; kept on disk."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import platformdirs
from PIL import Image
from rich.console import Console

from jaxtl.console import counter
from jaxtl.data.decoding import decode, header
from jaxtl.data.reading import ReadError, patiently
from jaxtl.errors import UserError

_log = logging.getLogger("jaxtl")

_FORMAT = 2  # raised when facts get another meaning
_BLOCK = 512  # images between two writes
_TABLE = "CREATE TABLE IF NOT EXISTS images (key BLOB PRIMARY KEY, stamp TEXT, facts TEXT)"
_SETTLED = 2 * 10**9  # nanoseconds: a younger file may be written again without a new time
_CONSTANT_BELOW = 3.0  # standard deviation of grey values, 0..255

CONSTANT = "constant"
"""Stands for the perceptual hash of an image of nearly one colour, whose bits would be noise."""


class Facts(NamedTuple):
    """What is known of an encoded image.

    Attributes:
        sha256: of its bytes, in hexadecimal; empty if they cannot be read.
        problem: why it cannot be used; None if nothing is known against it.
        format, mode: Pillow's names, such as `JPEG` and `RGB`.
        width, height: in pixels, as stored.
        decoded: whether it was decoded, and not only its header read.
        perceptual: the perceptual hash, 16 hexadecimal digits, or `CONSTANT`; empty if it was not
            asked for.
        label: the class that is stored with it; -1 if none is.
    """

    sha256: str
    problem: str | None = None
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    decoded: bool = False
    perceptual: str = ""
    label: int = -1


class Item(NamedTuple):
    """An encoded image that can be looked at.

    Attributes:
        key: what it is found by in the cache.
        stamp: changes with its bytes; None if the facts may not be kept.
        name: what to call it in a message.
        read: gives its bytes and the label that is stored with it, or -1.
    """

    key: bytes
    stamp: str | None
    name: str
    read: Callable[[], tuple[bytes, int]]


def file_item(path: Path, read: Callable[[], tuple[bytes, int]]) -> Item:
    """A file, known by its path and `stamp`."""
    key = os.fsencode(os.path.abspath(path))
    try:
        return Item(key, stamp(path.stat()), str(path), read)
    except OSError:
        return Item(key, None, str(path), read)


def stamp(status: os.stat_result) -> str | None:
    """Changes when a file is written or replaced: nobody can set the time of its last change.

    Returns:
        Size, times and inode; None if the file changed just now, and may again without a new time.
    """
    settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED
    known = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return known if settled else None


def inspect(
    items: Sequence[Item], *, pixels: bool = False, perceptual: bool = False, retry: float = 0
) -> list[Facts]:
    """Looks at every image: on threads, with a progress bar, and only at those not known already.

    Args:
        items: the images.
        pixels: decode them, instead of only reading their headers.
        perceptual: compute perceptual hashes too, which includes `pixels`.
        retry: how many seconds all images together may be waited for that cannot be read.
    """
    found: dict[int, Facts] = {}
    with _Kept() as kept:
        for start in range(0, len(items), _BLOCK):
            block = range(start, min(start + _BLOCK, len(items)))
            known = kept.find([items[i] for i in block])
            for i in block:
                facts = known.get(items[i].key)
                if facts and _enough(facts, pixels, perceptual):
                    found[i] = facts
        missing = [i for i in range(len(items)) if i not in found]
        if missing:
            look = functools.partial(_look, pixels=pixels, perceptual=perceptual)
            found |= _on_threads(look, items, missing, retry, kept)
        old = ((i, kept.outdated.get(items[i].key)) for i in missing if found[i].sha256)
        changed = [items[i].name for i, before in old if before not in (None, found[i].sha256)]
    if changed:
        more = f", and {len(changed) - 1} more" if changed[1:] else ""
        _log.warning("images changed since they were last read: %s%s", changed[0], more)
    return [found[i] for i in range(len(items))]


def _enough(facts: Facts, pixels: bool, perceptual: bool) -> bool:
    if facts.problem is not None:
        return True
    return (facts.decoded or not (pixels or perceptual)) and bool(
        facts.perceptual or not perceptual
    )


def _on_threads(
    look: Callable[[tuple[bytes, int]], Facts],
    items: Sequence[Item],
    missing: Sequence[int],
    retry: float,
    kept: _Kept,
) -> dict[int, Facts]:
    """Looks at images; once one that cannot be read comes back, at all of them that could not."""
    found, unread = _one_pass(look, items, missing, kept)
    end = time.monotonic() + retry
    while unread and (left := end - time.monotonic()) > 0:
        first = items[next(iter(unread))]
        with contextlib.suppress(UserError):  # the pass says of each image what is wrong with it
            patiently(first.read, first.name, left)
        more, unread = _one_pass(look, items, list(unread), kept)
        found |= more
    return found | unread


def _one_pass(
    look: Callable[[tuple[bytes, int]], Facts],
    items: Sequence[Item],
    missing: Sequence[int],
    kept: _Kept,
) -> tuple[dict[int, Facts], dict[int, Facts]]:
    """What is found, and apart from it the images that another try may read."""

    def look_at(index: int) -> tuple[Facts, bool]:
        try:
            return look(items[index].read()), False
        except UserError as error:
            return Facts("", str(error)), isinstance(error, ReadError)

    found: dict[int, Facts] = {}
    unread: dict[int, Facts] = {}
    threads = concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    with threads, counter(Console(stderr=True), "looking at images", len(missing)) as show:
        for start in range(0, len(missing), _BLOCK):
            block = missing[start : start + _BLOCK]
            for i, (facts, again) in zip(block, threads.map(look_at, block), strict=True):
                (unread if again else found)[i] = facts
            kept.keep([(items[i], found[i]) for i in block if i in found])
            show(start + len(block))
    return found, unread


def _look(read: tuple[bytes, int], *, pixels: bool, perceptual: bool) -> Facts:
    encoded, label = read
    facts = Facts(hashlib.sha256(encoded).hexdigest(), label=label)
    try:
        facts = facts._replace(**header(encoded)._asdict())
        if pixels or perceptual:
            small = decode(encoded, 32, "stretch")
            facts = facts._replace(decoded=True)
            if perceptual:
                facts = facts._replace(perceptual=_perceptual(Image.fromarray(small)))
    except UserError as error:
        return facts._replace(problem=str(error))
    return facts


def _perceptual(image: Image.Image) -> str:
    import imagehash

    flat = float(np.std(np.asarray(image.convert("L")))) < _CONSTANT_BELOW
    return CONSTANT if flat else str(imagehash.phash(image))


class _Kept:
    """The facts in `images.sqlite` of the user's cache directory, as far as it can be used.

    Attributes:
        outdated: by key, the SHA-256 that the files had which `find` found to be changed.
    """

    def __enter__(self) -> _Kept:
        self._path = path = platformdirs.user_cache_path("jaxtl") / "images.sqlite"
        self._database: sqlite3.Connection | None = None
        self.outdated: dict[bytes, str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=10)
            with self._database:
                self._database.execute(_TABLE)
        except (sqlite3.Error, OSError) as error:
            self._give_up(f"{path} cannot be used", error)
        return self

    def __exit__(self, *error: object) -> None:
        if self._database:
            self._database.close()
        self._database = None

    def _give_up(self, what: str, error: Exception) -> None:
        """Says why, and removes a damaged file, so that the next command begins another."""
        _log.warning("%s (%s): images are looked at anew", what, error)
        self.__exit__()
        lasting = isinstance(error, sqlite3.OperationalError)  # locked, a full disk, no right
        if isinstance(error, sqlite3.DatabaseError) and not lasting:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def find(self, items: Sequence[Item]) -> dict[bytes, Facts]:
        """The facts of those items that have not changed since."""
        if not self._database:
            return {}
        stamps = {item.key: _stamp(item) for item in items if item.stamp is not None}
        marks = ",".join("?" * len(stamps))
        query = f"SELECT key, stamp, facts FROM images WHERE key IN ({marks})"
        try:
            rows = self._database.execute(query, list(stamps)).fetchall()
            self.outdated |= {k: json.loads(f)[0] for k, known, f in rows if stamps[k] != known}
            return {k: Facts(*json.loads(f)) for k, known, f in rows if stamps[k] == known}
        except (sqlite3.Error, ValueError, TypeError, LookupError) as error:
            self._give_up(f"{self._path} cannot be read", error)
            return {}

    def keep(self, found: Sequence[tuple[Item, Facts]]) -> None:
        """Writes down what may be kept: what was read, of images that do not change now."""
        if not self._database:
            return
        rows = [
            (item.key, _stamp(item), json.dumps(facts))
            for item, facts in found
            if item.stamp is not None and facts.sha256
        ]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:  # a full disk: the facts are known all the same
            self._give_up(f"{self._path} cannot be written", error)


def _stamp(item: Item) -> str:
    """Another Pillow may decode what this one cannot."""
    return f"{_FORMAT} {PIL.__version__} {item.stamp}"
