"""Files and folders that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_UNFINISHED = ".part"


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yields a new path next to `path` to write to; the block moves what it wrote to `path`.

    What the block leaves behind is removed.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
    try:
        yield part
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                part.unlink()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Writes a file or folder under another name and renames it when the block ends well.

    A full disk, or a crash before the renaming, leaves an old file or folder as it was. A file is
    replaced at once; an old folder is removed first, so a crash at that moment leaves none.

    Args:
        path: the file or folder; an old one is replaced.

    Yields:
        The path to write to, which does not exist yet.

    Raises:
        OSError: it cannot be written; its parts are removed.
    """
    with unfinished(path) as part:
        yield part
        if part.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)


def is_unfinished(path: Path) -> bool:
    """Whether `unfinished` made this path, in a process that runs or in one that died."""
    return path.suffix == _UNFINISHED


def as_text(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file as `replacing` does, and waits until it is on disk."""
    with replacing(path) as part, part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as `write_whole` does."""
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
