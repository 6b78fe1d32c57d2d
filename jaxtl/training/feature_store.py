"""Stores arrays on disk under a hash of what they were computed from.

One process at a time fills an array, row by row (docs/decisions/0030-a-pass-is-continued.md). Three
things make that safe:

- `HASH/rows.bin` is locked while a process fills or reads it; the lock ends with its process;
- `HASH/about.json` says how many rows are certainly on disk; nothing beyond them is trusted;
- `lock` is locked while a process makes room and reserves it, so that the limit holds for all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import math
import operator
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Num

from jaxtl.files import write_json
from jaxtl.models import Variables

_LOCK, _ABOUT, _ROWS = "lock", "about.json", "rows.bin"
_SECONDS_BETWEEN_SAVES = 3.0  # what a crash may cost


class FeatureStore:
    """A folder of arrays, each found once all of its rows are there.

    Args:
        folder: the folder; it is made when needed.
        limit: the bytes that all arrays of all processes together may take. When a new array needs
            more, those used longest ago that nobody fills or reads are removed.
    """

    def __init__(self, folder: Path, limit: float):
        self._folder = folder
        self._limit = limit

    def find(self, metadata: dict[str, Any]) -> Num[np.ndarray, "rows ..."] | None:
        """Opens the array that was computed from `metadata`, memory-mapped.

        Returns:
            The array; None if it does not exist, lacks rows or is damaged.
        """
        place = self._place(metadata)
        about = _About.read(place)
        if about is None or about.done != about.shape[0]:
            return None
        try:
            os.utime(place)  # used now
            with (place / _ROWS).open("rb") as file:
                with contextlib.suppress(OSError):  # there are file systems without locks
                    # The map shares the lock, and keeps it as long as it lives.
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                # A file that is too short or too long fits no shape.
                return np.memmap(file, dtype=about.dtype, mode="r").reshape(about.shape)
        except (OSError, ValueError, OverflowError):
            return None

    @contextlib.contextmanager
    def filling(
        self, metadata: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype
    ) -> Iterator[Filling]:
        """Fills an array, from the first row that is missing; no other process can meanwhile.

        The rows that the block wrote are kept, however it ends, unless they could not be written.

        Args:
            metadata: what the array is computed from, as JSON.
            shape: the shape of the whole array.
            dtype: the type of its numbers.

        Raises:
            BlockingIOError: another process fills this array or makes room at this moment.
            OSError: there is no room within the limit or on the disk, the folder cannot be written
                to or is gone, or its file system has no locks.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        place = self._place(metadata)
        with contextlib.ExitStack() as stack:
            with (self._folder / _LOCK).open("ab", buffering=0) as lock:
                _hold(lock)
                if _is_held(place / _ROWS):
                    raise BlockingIOError(errno.EAGAIN, "another process fills it", str(place))
                self._make_room(place, math.prod(shape) * dtype.itemsize)
                place.mkdir(exist_ok=True)
                file = stack.enter_context((place / _ROWS).open("ab", buffering=0))
                _hold(file)
                array = stack.enter_context(Filling(place, file, metadata, shape, dtype))
            yield array

    def _place(self, metadata: dict[str, Any]) -> Path:
        words = json.dumps(metadata, sort_keys=True)
        return self._folder / hashlib.sha256(words.encode()).hexdigest()

    def _make_room(self, place: Path, size: int) -> None:
        """Removes arrays that nobody uses, those used longest ago first, until one of `size` fits.

        What an array that is being filled will take counts as taken.

        Args:
            place: where the array will be, or is in part.
            size: the bytes that it takes once it is whole.

        Raises:
            OSError: there is too little room even without the others; nothing is removed.
        """
        reserved, coming, own = 0, 0, 0
        idle, used = {}, {}
        for path in self._folder.glob("*/"):
            with contextlib.suppress(OSError):  # the user removed it
                there = sum(file.stat().st_size for file in path.glob("*.bin"))
                if path == place:
                    own = there
                elif _is_held(path / _ROWS):
                    about = _About.read(path)
                    whole = about.size if about else there
                    reserved, coming = reserved + whole, coming + whole - there
                else:
                    idle[path], used[path] = there, path.stat().st_mtime

        def free() -> int:
            return shutil.disk_usage(self._folder).free + own - coming

        if size > self._limit - reserved:
            words = "cache.disk_gb leaves no room beside what is being filled or read"
            raise OSError(errno.ENOSPC, words, str(self._folder))
        if size >= free() + sum(idle.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        for path in sorted(idle, key=used.__getitem__):
            if reserved + sum(idle.values()) + size <= self._limit and size < free():
                break
            shutil.rmtree(path, ignore_errors=True)
            del idle[path]


class Filling:
    """An array that this process fills. As a context manager it keeps the rows that were written.

    Args:
        place: the folder of the array.
        file: the file of its rows, locked and opened for appending.
        metadata: what it is computed from, as JSON.
        shape: the shape of the whole array.
        dtype: the type of its numbers.

    Attributes:
        shape: the shape of the whole array.
        rows: the number of rows that are there, those of an earlier process included.

    Raises:
        OSError: the disk is full, or the folder cannot be written to or is gone. The array is
            removed then: a full disk needs the space.
    """

    def __init__(
        self,
        place: Path,
        file: io.FileIO,
        metadata: dict[str, Any],
        shape: tuple[int, ...],
        dtype: np.dtype,
    ):
        self.shape = shape
        self._place, self._file = place, file
        self._about = {"shape": shape, "dtype": dtype.name, "metadata": metadata}
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        about, length = _About.read(place), os.fstat(file.fileno()).st_size
        self.rows, self._saved = 0, -1
        self._saved_at = time.monotonic()
        if about is not None and (about.shape, about.dtype) == (shape, dtype):
            done = about.done * self._row_bytes
            # A file that goes on after the last of all rows is as damaged as one that is too short.
            if done == length or (done < length and about.done < shape[0]):
                self.rows = self._saved = about.done

    def __enter__(self) -> Filling:
        try:
            self._file.truncate(self.rows * self._row_bytes)  # a crash may have torn what follows
            self._save()
        except OSError:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._save()
        except OSError:
            self._remove()
            if error is None:
                raise

    def write(self, rows: Num[np.ndarray, "rows ..."]) -> None:
        """Appends the next rows."""
        try:
            data = memoryview(rows.tobytes())
            while data:
                data = data[self._file.write(data) :]
            self.rows += len(rows)
            if time.monotonic() > self._saved_at + _SECONDS_BETWEEN_SAVES:
                self._save()
        except OSError:
            self._remove()
            raise

    def _save(self) -> None:
        """Waits until the rows are on disk, and only then says how many there are."""
        if self._saved == self.rows:
            return
        os.fsync(self._file.fileno())
        if not self._is_there():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._place))
        write_json(self._place / _ABOUT, self._about | {"done": self.rows})
        self._saved, self._saved_at = self.rows, time.monotonic()

    def _is_there(self) -> bool:
        """Whether its folder is still its own: someone may have removed it, and a process begun
        another array there."""
        with contextlib.suppress(OSError):
            there = os.stat(self._place / _ROWS)
            return os.path.samestat(there, os.fstat(self._file.fileno()))
        return False

    def _remove(self) -> None:
        if self._is_there():
            shutil.rmtree(self._place, ignore_errors=True)


class _About(NamedTuple):
    """What `about.json` says of an array.

    Attributes:
        shape: the shape of the whole array.
        dtype: the type of its numbers.
        done: the number of rows that are certainly on disk.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    done: int

    @classmethod
    def read(cls, place: Path) -> _About | None:
        """Reads the file of an array; None if there is none, or nothing like it."""
        try:
            about = json.loads((place / _ABOUT).read_bytes())
            shape = tuple(operator.index(length) for length in about["shape"])
            done = operator.index(about["done"])
            return cls(shape, jnp.dtype(about["dtype"]), done) if 0 <= done <= shape[0] else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None

    @property
    def size(self) -> int:
        """The bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize


@functools.cache
def sha256_of_code() -> str:
    """A hash of this package's code, since its version stays the same between releases."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sha256_of(variables: Variables) -> str:
    """A hash of the paths, types, shapes and bits of variables."""
    digest = hashlib.sha256()
    for path in sorted(variables):
        value = np.asarray(variables[path])
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _hold(file: io.FileIO) -> None:
    """Locks a file until it is closed or the process ends.

    Raises:
        BlockingIOError: it is locked already.
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        words = f"{error.strerror}: a cache needs a file system that can lock files"
        raise OSError(error.errno, words, str(file.name)) from error


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    try:
        with path.open("r+b", buffering=0) as file:
            _hold(file)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False
