"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def part_of(path: Path) -> Path:
    """Where a file lies while it is being written."""
    return path.with_name(f"{path.name}.part")


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file so that a crash or a full disk leaves the new one or what was there before.

    Args:
        path: of the file; one that is there is replaced.
        data: all of it.

    Raises:
        OSError: it cannot be written; nothing new is left.
    """
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
