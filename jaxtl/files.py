"""Files and folders that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_UNFINISHED = ".part"
_MOST_JSON = 16_000_000  # bytes of a file: Python takes up to thirty times as many for its values
_MOST_LEVELS = 20  # of lists in lists
_MOST_DIGITS = 18  # of an integer
_NESTED = (dict, list)
_SEAL = "sha256"


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
    replaced at once; an old folder is removed first, so a crash at that moment leaves none. All of
    it is on disk when the block has ended.

    Args:
        path: the file or folder; an old one is replaced.

    Yields:
        The path to write to, which does not exist yet.

    Raises:
        OSError: it cannot be written; its parts are removed.
    """
    with unfinished(path) as part:
        yield part
        sync(part)
        if part.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
        sync_entry(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on disk.

    Raises:
        OSError: the disk has an error, or something is gone.
    """
    if path.is_dir():
        for inside in path.rglob("*"):
            sync_entry(inside)
    sync_entry(path)


def sync_entry(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk.

    Raises:
        OSError: the disk has an error, or it is gone.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has no such thing
            raise
    finally:
        os.close(handle)


def is_unfinished(path: Path) -> bool:
    """Whether `unfinished` made this path, in a process that runs or in one that died."""
    return path.suffix == _UNFINISHED


def as_text(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file as `replacing` does."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON as `write_whole` does."""
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads JSON that may come from anybody: neither its size nor its numbers take all memory.

    Raises:
        ValueError: it is no JSON, it is larger than 16 MB, it is nested deeper than 20 levels, or
            an integer has more than 18 digits.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(_MOST_JSON + 1)
    if len(data) > _MOST_JSON:
        raise ValueError(f"it is larger than {_MOST_JSON // 1_000_000} MB")
    try:
        content = json.loads(data.decode(), parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [content] if isinstance(content, _NESTED) else []
    for _ in range(_MOST_LEVELS):
        values = (one.values() if isinstance(one, dict) else one for one in level)
        level = [inside for several in values for inside in several if isinstance(inside, _NESTED)]
    if level:
        raise ValueError("it is nested too deeply")
    return content


def _integer(text: str) -> int:
    if len(text.lstrip("-")) > _MOST_DIGITS:
        raise ValueError(f"it has an integer of {len(text)} digits")
    return int(text)


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """JSON with a checksum of the rest of it, for `unsealed`."""
    return content | {_SEAL: _checksum(content)}


def unsealed(content: Any) -> Any:
    """What `sealed` was given; JSON without a checksum, of version 0.2, as it is.

    Raises:
        ValueError: the checksum is that of other JSON.
    """
    if not isinstance(content, dict) or _SEAL not in content:
        return content
    rest = {key: value for key, value in content.items() if key != _SEAL}
    if content[_SEAL] != _checksum(rest):
        raise ValueError("its checksum is wrong")
    return rest


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
