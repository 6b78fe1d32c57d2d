"""Folders and files on object stores, `gs://BUCKET/...` and `s3://BUCKET/...`."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtl.errors import UserError

_EXTRAS = {"gs://": "gs", "s3://": "s3"}


class Unreachable(UserError):
    """An object or its store cannot be read now."""


def is_remote(path: str) -> bool:
    """Whether a path leads to an object store."""
    return path.startswith(tuple(_EXTRAS))


@dataclasses.dataclass(frozen=True, eq=False)
class ObjectFolder:
    """A folder as it was when it was listed.

    Attributes:
        url: its path, with the scheme and without a slash at the end.
        stamps: for each object below the folder that was listed, by its path in the store, in
            ascending order, what changes with its bytes: its ETag and its size.
        store: the file system of fsspec.
    """

    url: str
    stamps: dict[str, str]
    store: Any

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> ObjectFolder:
        """A folder or an object below this one."""
        return dataclasses.replace(self, url=f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rpartition("/")[2]

    @property
    def key(self) -> str:
        """The path in the store."""
        return self.url.partition("://")[2]

    def files(self) -> Iterator[str]:
        """The paths of all objects below this folder, relative to it."""
        prefix, keys = f"{self.key}/", list(self.stamps)
        for key in keys[bisect.bisect_left(keys, prefix) :]:
            if not key.startswith(prefix):
                return
            yield key.removeprefix(prefix)

    def subfolders(self) -> list[str]:
        """The names of the folders directly in this one, sorted, without hidden ones."""
        names = {path.partition("/")[0] for path in self.files() if "/" in path}
        return sorted(name for name in names if not name.startswith("."))

    def stamp(self, path: str) -> str:
        """The stamp of an object below this folder."""
        return self.stamps[f"{self.key}/{path}"]

    def read(self, path: str) -> bytes:
        """The bytes of an object below this folder.

        Raises:
            Unreachable: it cannot be read now.
            UserError: it may not be read.
        """
        with _explained("cannot be read", self.url):
            return bytes(self.store.cat_file(f"{self.key}/{path}"))

    def copy(self, path: str, to: Path) -> None:
        """Copies an object below this folder to a file; raises as `read`."""
        with _explained(f"{self.url}/{path} cannot be read", self.url):
            self.store.get_file(f"{self.key}/{path}", str(to))


def list_folder(url: str) -> ObjectFolder:
    """Lists all objects below a folder.

    Raises:
        UserError: the package for this kind of store is not installed, there are no such objects,
            or they may not be listed.
        Unreachable: the store cannot be reached now.
    """
    url = url.rstrip("/")
    with _explained(f"{url} cannot be listed", url):
        import fsspec

        store, key = fsspec.core.url_to_fs(url)
        store.invalidate_cache()
        found = store.find(key, detail=True)
    stamps = {
        path: f"{info.get('ETag') or info.get('etag')} {info['size']}"
        for path, info in sorted(found.items())
        if path.startswith(f"{key}/") and not path.endswith("/")
    }
    if not stamps:
        raise UserError(f"there is nothing below {url}")
    return ObjectFolder(url, stamps, store)


def read_object(url: str) -> bytes:
    """Reads one object.

    Raises:
        FileNotFoundError: there is none.
        UserError: as `list_folder`.
    """
    with _explained(f"{url} cannot be read", url):
        from etils import epath

        return epath.Path(url).read_bytes()


@contextlib.contextmanager
def _explained(what: str, url: str) -> Iterator[None]:
    """Turns what the packages for object stores raise into one line."""
    try:
        yield
    except (UserError, MemoryError, FileNotFoundError):
        raise
    except ImportError as error:
        scheme = f"{url.partition('://')[0]}://"
        raise UserError(f"{url} needs: pip install 'jaxtl[{_EXTRAS[scheme]}]'") from error
    except Exception as error:  # of every kind: botocore, aiohttp, google.auth
        reason = textwrap.shorten(str(error), 200) or type(error).__name__
        kind = UserError if isinstance(error, PermissionError) else Unreachable
        raise kind(f"{what}: {reason}") from error
