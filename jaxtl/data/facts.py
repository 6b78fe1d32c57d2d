"""What is known of each encoded image, kept in a database of the user's cache directory."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import PIL
import platformdirs

_log = logging.getLogger("jaxtl")

_FORMAT = 2  # raised when facts get another meaning
_TABLE = "CREATE TABLE IF NOT EXISTS images (key BLOB PRIMARY KEY, stamp TEXT, facts TEXT)"
_SETTLED = 2 * 10**9  # nanoseconds: a younger file may be written again without a new time
_BELOW = "FROM images WHERE key > ? AND key < ?"


StoredLabel = int | Sequence[int]
"""Of one class an image its index; of several labels theirs."""


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
        label: the class that is stored with it, or all its classes; -1 if none is.
    """

    sha256: str
    problem: str | None = None
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    decoded: bool = False
    perceptual: str = ""
    label: StoredLabel = -1


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
    read: Callable[[], tuple[bytes, StoredLabel]]


def stamp(status: os.stat_result) -> str | None:
    """Changes when a file is written or replaced: nobody can set the time of its last change.

    Returns:
        Size, times and inode; None if the file changed just now, and may again without a new time.
    """
    settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED
    known = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    return known if settled else None


class KeptFacts:
    """The facts in `images.sqlite` of the user's cache directory, as far as it can be used.

    Attributes:
        outdated: by key, the SHA-256 that the files had which `find` found to be changed.
    """

    def __enter__(self) -> KeptFacts:
        self._path = path = platformdirs.user_cache_path("jaxtl") / "images.sqlite"
        self._database: sqlite3.Connection | None = None
        self.outdated: dict[bytes, str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=10)
            with self._database:
                self._database.execute(_TABLE)
        except (sqlite3.Error, OSError) as error:
            self._give_up(f"images are looked at anew, since {path} cannot be used", error)
        return self

    def __exit__(self, *error: object) -> None:
        if self._database:
            self._database.close()
        self._database = None

    def _give_up(self, what: str, error: Exception) -> None:
        """Says why, and removes a damaged file, so that the next command begins another."""
        _log.warning("%s (%s)", what, error)
        self.__exit__()
        lasting = isinstance(error, sqlite3.OperationalError)  # locked, a full disk, no right
        if isinstance(error, sqlite3.DatabaseError) and not lasting:
            # With its journal, which SQLite would play back into the next one.
            for path in (self._path, Path(f"{self._path}-journal")):
                with contextlib.suppress(OSError):
                    path.unlink()

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
            self._give_up(f"images are looked at anew, since {self._path} cannot be read", error)
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
            self._give_up(f"nothing more is kept: {self._path} cannot be written", error)

    def has_below(self, folder: Path) -> bool:
        """Whether a file below a folder was ever looked at."""
        return self._count(folder, "LIMIT 1") > 0

    def forget_missing(self, folder: Path, count: int) -> None:
        """Removes the facts about files that are gone.

        Args:
            folder: the folder that they were in.
            count: how many images are below it: no file is asked for where no more are known.
        """
        if self._count(folder) <= count or not self._database:
            return
        try:
            rows = self._database.execute(f"SELECT key {_BELOW}", _range(folder)).fetchall()
            gone = [key for key in rows if not os.path.lexists(key[0])]
            with self._database:
                self._database.executemany("DELETE FROM images WHERE key = ?", gone)
        except sqlite3.Error as error:
            self._give_up(f"what is known of removed images stays in {self._path}", error)

    def _count(self, folder: Path, limit: str = "") -> int:
        if not self._database:
            return 0
        query = f"SELECT count(*) FROM (SELECT 1 {_BELOW} {limit})"
        try:
            return int(self._database.execute(query, _range(folder)).fetchone()[0])
        except sqlite3.Error as error:
            self._give_up(f"images are looked at anew, since {self._path} cannot be read", error)
            return 0


def _range(folder: Path) -> tuple[bytes, bytes]:
    """Between these are the keys of all files below a folder."""
    key = os.fsencode(os.path.abspath(folder)).rstrip(b"/")
    return key + b"/", key + b"0"  # which comes after the slash


def _stamp(item: Item) -> str:
    """Another Pillow may decode what this one cannot."""
    return f"{_FORMAT} {PIL.__version__} {item.stamp}"
