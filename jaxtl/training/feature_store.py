"""Arrays on disk, found again by what they were computed from."""

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

from jaxtl.files import is_unfinished, replacing

_DAY = 86_400.0  # seconds after which an unfinished array may be removed


class FeatureStore:
    """A folder of arrays, each complete or not there.

    Args:
        folder: where they are.
        limit: bytes that all of them may take; those used longest ago make room for new ones.
    """

    def __init__(self, folder: Path, limit: float):
        self._folder = folder
        self._limit = limit

    def find(self, metadata: dict[str, Any]) -> Num[np.ndarray, "rows ..."] | None:
        """Opens the array that was made from `metadata`, memory-mapped; None if there is none."""
        place = self._place(metadata)
        try:
            about = json.loads((place / "about.json").read_text())
            os.utime(place)  # used now
            dtype, shape = jnp.dtype(about["dtype"]), tuple(about["shape"])
            # A file that is too short or too long fits no shape.
            return np.memmap(place / "rows.bin", dtype=dtype, mode="r").reshape(shape)
        # Not there, or damaged: it will be made again.
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextlib.contextmanager
    def writing(
        self, metadata: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype
    ) -> Iterator[Callable[[np.ndarray], int]]:
        """Takes the rows of a new array in order; it is there once the block ends well.

        Args:
            metadata: what it is computed from, as JSON.
            shape: of the whole array.
            dtype: of its numbers.

        Raises:
            OSError: there is no room on the disk, or no right to write there.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        size = int(np.prod(shape)) * dtype.itemsize
        self._make_room(size)
        with replacing(self._place(metadata)) as part:
            part.mkdir()
            with (part / "rows.bin").open("wb") as file:
                yield lambda rows: file.write(np.ascontiguousarray(rows).tobytes())
                written = file.tell()
            if written != size:
                raise RuntimeError(f"{written} bytes were written for an array of shape {shape}")
            about = {"shape": shape, "dtype": dtype.name, "metadata": metadata}
            (part / "about.json").write_text(json.dumps(about, indent=2))

    def _place(self, metadata: dict[str, Any]) -> Path:
        words = json.dumps(metadata, sort_keys=True)
        return self._folder / hashlib.sha256(words.encode()).hexdigest()

    def _make_room(self, size: int) -> None:
        """Removes abandoned arrays, and those used longest ago until `size` bytes fit."""
        used, taken = {}, {}
        for path in self._folder.glob("*/"):
            with contextlib.suppress(OSError):  # gone: other processes are at it too
                used[path] = path.stat().st_mtime
                taken[path] = sum(file.stat().st_size for file in path.rglob("*.bin"))
        unfinished = [path for path in taken if is_unfinished(path)]
        for path in unfinished:
            if used[path] < time.time() - _DAY:
                shutil.rmtree(path, ignore_errors=True)
                del taken[path]
        mine = sorted(taken.keys() - unfinished, key=used.__getitem__)
        if size >= shutil.disk_usage(self._folder).free + sum(taken[path] for path in mine):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        for path in mine:
            free = shutil.disk_usage(self._folder).free
            if sum(taken.values()) + size <= self._limit and size < free:
                break
            shutil.rmtree(path, ignore_errors=True)
            del taken[path]
