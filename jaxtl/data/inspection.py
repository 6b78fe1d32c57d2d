"""What is known of each encoded image: its SHA-256, header and whether it decodes; kept on disk."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import PIL
import platformdirs
from PIL import Image
from rich.console import Console

from jaxtl.console import counter
from jaxtl.data.decoding import decode, header
from jaxtl.data.reading import ReadError, patiently
from jaxtl.errors import UserError

_log = logging.getLogger("jaxtl")

_FORMAT = 1  # raised when facts get another meaning
_BLOCK = 512  # images between two writes
_SETTLED = 2 * 10**9  # nanoseconds: a younger file may be written again without a new time


class Facts(NamedTuple):
    """What is known of an encoded image.

    Attributes:
        sha256: of its bytes, in hexadecimal; empty if they cannot be read.
        problem: why it cannot be used; None if nothing is known against it.
        format, mode: Pillow's names, such as `JPEG` and `RGB`.
        width, height: in pixels, as stored.
        decoded: whether it was decoded, and not only its header read.
        perceptual: the perceptual hash, 16 hexadecimal digits; empty if it was not asked for.
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
    """A file, known by its path, size, time of change and inode."""
    key = os.fsencode(os.path.abspath(path))
    try:
        status = path.stat()
    except OSError:
        return Item(key, None, str(path), read)
    stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
    settled = time.time_ns() - status.st_mtime_ns > _SETTLED
    return Item(key, stamp if settled else None, str(path), read)


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
            for i, facts in _on_threads(look, items, missing, retry, kept):
                found[i] = facts
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
) -> Iterator[tuple[int, Facts]]:
    def first_try(index: int) -> Facts | None:
        try:
            return look(items[index].read())
        except ReadError:
            return None
        except UserError as error:
            return Facts("", str(error))

    later = []
    threads = concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    with threads, counter(Console(stderr=True), "looking at images", len(missing)) as show:
        for start in range(0, len(missing), _BLOCK):
            block = missing[start : start + _BLOCK]
            results = list(zip(block, threads.map(first_try, block), strict=True))
            done = [(i, facts) for i, facts in results if facts is not None]
            later += [i for i, facts in results if facts is None]
            kept.keep([(items[i], facts) for i, facts in done])
            yield from done
            show(start + len(block))
    end = time.monotonic() + retry
    for i in later:
        yield i, _try_again(look, items[i], end - time.monotonic())


def _try_again(look: Callable[[tuple[bytes, int]], Facts], item: Item, seconds: float) -> Facts:
    try:
        return look(patiently(item.read, item.name, max(seconds, 0)))
    except UserError as error:
        return Facts("", str(error))


def _look(read: tuple[bytes, int], *, pixels: bool, perceptual: bool) -> Facts:
    encoded, label = read
    facts = Facts(hashlib.sha256(encoded).hexdigest(), label=label)
    try:
        facts = facts._replace(**header(encoded)._asdict())
        if pixels or perceptual:
            small = decode(encoded, 32, "stretch")
            facts = facts._replace(decoded=True)
            if perceptual:
                import imagehash

                facts = facts._replace(perceptual=str(imagehash.phash(Image.fromarray(small))))
    except UserError as error:
        return facts._replace(problem=str(error))
    return facts


class _Kept:
    """The facts in `images.sqlite` of the user's cache directory, as far as it can be used."""

    def __enter__(self) -> _Kept:
        path = platformdirs.user_cache_path("jaxtl") / "images.sqlite"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open(str(path))
        except (sqlite3.Error, OSError) as error:
            _log.warning("%s cannot be used (%s): images are looked at anew", path, error)
            self._open(":memory:")
        return self

    def _open(self, path: str) -> None:
        self._database = sqlite3.connect(path, timeout=10)
        with self._database:
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS images (key BLOB PRIMARY KEY, stamp TEXT, facts TEXT)"
            )

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def find(self, items: Sequence[Item]) -> dict[bytes, Facts]:
        """The facts of those items that have not changed since."""
        stamps = {item.key: _stamp(item) for item in items if item.stamp is not None}
        marks = ",".join("?" * len(stamps))
        query = f"SELECT key, stamp, facts FROM images WHERE key IN ({marks})"
        try:
            rows = self._database.execute(query, list(stamps)).fetchall()
            return {k: Facts(*json.loads(f)) for k, stamp, f in rows if stamps[k] == stamp}
        except (sqlite3.Error, ValueError, TypeError) as error:
            _log.warning("the facts about images cannot be read (%s): looking anew", error)
            return {}

    def keep(self, found: Sequence[tuple[Item, Facts]]) -> None:
        """Writes down what may be kept: what was read, of images that do not change now."""
        rows = [
            (item.key, _stamp(item), json.dumps(facts))
            for item, facts in found
            if item.stamp is not None and facts.sha256
        ]
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:  # a full disk: the facts are known all the same
            _log.warning("the facts about images cannot be kept: %s", error)


def _stamp(item: Item) -> str:
    """Another Pillow may decode what this one cannot."""
    return f"{_FORMAT} {PIL.__version__} {item.stamp}"
