"""Stores arrays on disk under a hash of what they were computed from."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Num

from jaxtl.files import is_unfinished, unfinished, write_json

_DAY = 86_400.0  # seconds after which an unfinished array may be removed


class FeatureStore:
    """A folder of arrays; each is complete or does not exist.

    Args:
        folder: the folder; it is made when needed.
        limit: the bytes that all arrays together may take. When a new array needs more, those used
            longest ago are removed.
    """

    def __init__(self, folder: Path, limit: float):
        self._folder = folder
        self._limit = limit

    def find(self, metadata: dict[str, Any]) -> Num[np.ndarray, "rows ..."] | None:
        """Opens the array that was computed from `metadata`, memory-mapped.

        Returns:
            The array; None if it does not exist or is damaged.
        """
        place = self._place(metadata)
        try:
            about = json.loads((place / "about.json").read_text())
            os.utime(place)  # used now
            dtype, shape = jnp.dtype(about["dtype"]), tuple(about["shape"])
            # A file that is too short or too long fits no shape.
            return np.memmap(place / "rows.bin", dtype=dtype, mode="r").reshape(shape)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextlib.contextmanager
    def writing(
        self, metadata: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype
    ) -> Iterator[Callable[[np.ndarray], int]]:
        """Writes a new array; it exists once the block ends without an error.

        If another process stores the same array meanwhile, that one is kept.

        Args:
            metadata: what the array is computed from, as JSON.
            shape: the shape of the whole array.
            dtype: the type of its numbers.

        Yields:
            A function that takes the next rows, in order.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        size = int(np.prod(shape)) * dtype.itemsize
        self._make_room(size)
        place = self._place(metadata)
        with unfinished(place) as part:
            part.mkdir()
            with (part / "rows.bin").open("wb") as file:
                yield lambda rows: file.write(np.ascontiguousarray(rows).tobytes())
                written = file.tell()
                file.flush()
                os.fsync(file.fileno())
            if written != size:
                raise RuntimeError(f"{written} bytes were written for an array of shape {shape}")
            about = {"shape": shape, "dtype": dtype.name, "metadata": metadata}
            write_json(part / "about.json", about)
            if place.exists() and self.find(metadata) is None:  # damaged
                shutil.rmtree(place, ignore_errors=True)
            try:
                part.rename(place)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise  # else another process was first

    def _place(self, metadata: dict[str, Any]) -> Path:
        words = json.dumps(metadata, sort_keys=True)
        return self._folder / hashlib.sha256(words.encode()).hexdigest()

    def _make_room(self, size: int) -> None:
        """Removes arrays left unfinished for a day, and then those used longest ago."""
        used, taken = {}, {}
        for path in self._folder.glob("*/"):
            with contextlib.suppress(OSError):  # another process removed it
                used[path] = path.stat().st_mtime
                taken[path] = sum(file.stat().st_size for file in path.rglob("*.bin"))
        parts = [path for path in taken if is_unfinished(path)]
        for path in parts:
            if used[path] < time.time() - _DAY:
                shutil.rmtree(path, ignore_errors=True)
                del taken[path]
        mine = sorted(taken.keys() - parts, key=used.__getitem__)
        if size >= shutil.disk_usage(self._folder).free + sum(taken[path] for path in mine):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        for path in mine:
            free = shutil.disk_usage(self._folder).free
            if sum(taken.values()) + size <= self._limit and size < free:
                break
            shutil.rmtree(path, ignore_errors=True)
            del taken[path]
