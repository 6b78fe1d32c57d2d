"""Downloads a file once, with pooch, into a cache whose files are checked each time."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from jaxtl.errors import UserError
from jaxtl.weights.unavailable import Unavailable, reason, within

_log = logging.getLogger("jaxtl")

_RETRIES = 2  # after one second and after two
_CHUNK = 1 << 18  # bytes
_HEADERS = {"User-Agent": "jaxtl", "Accept-Encoding": "identity"}


def download(
    url: str,
    path: Path,
    *,
    md5: str | None = None,
    answer_timeout: float = 3.0,
    stall_timeout: float = 15.0,
) -> Path:
    """Downloads a file, unless it is there and has its checksum.

    Proxies are those of the environment.

    Args:
        url: its address.
        path: where to put it; this is returned.
        md5: its published checksum, if any, in hexadecimal.
        answer_timeout: seconds until the server must have answered, the look-up of its name
            included.
        stall_timeout: seconds without a byte after which the connection counts as cut.

    Raises:
        Unavailable: the server cannot be reached, does not have the file, or keeps cutting it off.
        UserError: the checksum is wrong.
    """
    checksum = None if md5 is None else f"md5:{md5}"
    if _is_there(path, checksum):
        return path
    # Imported here: they take 0.1 s, which a start with all files in the cache need not wait.
    import requests
    from pooch import HTTPDownloader

    def fetch(part: str) -> None:
        length = _length(url, answer_timeout)
        timeouts = (answer_timeout, stall_timeout)
        on_terminal = sys.stderr.isatty()
        get = HTTPDownloader(on_terminal, _CHUNK, timeout=timeouts, headers=_HEADERS)
        get(url, part, None)
        size = os.path.getsize(part)
        if length is not None and size != length:  # few of the files have a published checksum
            raise requests.ConnectionError(f"cut off after {size} of {length} bytes")

    try:
        return cached(path, url, fetch, checksum=checksum, retries=_RETRIES)
    except requests.RequestException as error:
        what = f"{reason(error)}, {1 + _RETRIES} attempts; run it again"
        raise Unavailable(f"could not be downloaded ({what})") from error


def cached(
    path: Path, source: str, fetch: Callable[[str], None], *, checksum: str | None, retries: int = 0
) -> Path:
    """A file of the cache; one that is not there, or whose checksum is wrong, is fetched first.

    It is moved into place once it is whole and checked, so processes may do this side by side.

    Args:
        path: place of the file in the cache.
        source: where it comes from, for messages.
        fetch: writes it to the path that it is given.
        checksum: `md5:HEX` or `sha256:HEX`; None if none is known.
        retries: attempts after the first.

    Raises:
        UserError: what was fetched has another checksum.
        Exception: what `fetch` raises.
    """
    if _is_there(path, checksum):
        return path
    import pooch
    import requests

    damaged = path.exists()

    def replace(url: str, part: str, _: object) -> None:
        nonlocal damaged
        if damaged:
            _log.warning("weights: %s has the wrong checksum and is replaced", path)
            damaged = False  # log it once, whatever the attempts
        _log.info("weights: downloading %s", url)
        fetch(part)

    pooch.get_logger().setLevel(logging.WARNING)
    keeper = pooch.create(
        path.parent,
        base_url="",
        registry={path.name: checksum},
        urls={path.name: source},
        retry_if_failed=retries,
    )
    try:
        return Path(keeper.fetch(path.name, downloader=replace))
    except requests.RequestException:
        raise
    except ValueError as error:
        what = str(error).partition(". ")[0]
        raise UserError(f"{source} has the wrong checksum: {what}") from error


def _is_there(path: Path, checksum: str | None) -> bool:
    """Whether a file is in the cache, with the right checksum if one is known."""
    if checksum is None or not path.exists():
        return path.exists()
    kind, _, digest = checksum.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest() == digest


def _length(url: str, seconds: float) -> int | None:
    """The bytes that a file has, if its server says so.

    Raises:
        Unavailable: the server does not answer, or does not have the file.
    """
    import requests

    def ask() -> requests.Response:
        return requests.head(url, timeout=seconds, allow_redirects=True, headers=_HEADERS)

    host = urlsplit(url).hostname
    try:
        answer = within(seconds, ask)
    except (TimeoutError, requests.Timeout) as error:  # the whole, or one step of it
        raise Unavailable(f"could not be reached ({host} timed out after {seconds:g} s)") from error
    except requests.RequestException as error:
        raise Unavailable(f"could not be reached ({host} {reason(error)})") from error
    if answer.status_code == 404:
        raise Unavailable(f"has no such file ({url} answered 404)")
    if 400 <= answer.status_code < 500:
        raise Unavailable(f"could not be reached ({url} answered {answer.status_code})")
    length = answer.headers.get("Content-Length", "")
    return int(length) if answer.ok and length.isdigit() else None
