"""Downloads a file once: resumed when cut off, checked against its size, moved into place whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from jaxtl.errors import UserError
from jaxtl.weights.unavailable import Unavailable

_log = logging.getLogger("jaxtl")

T = TypeVar("T")

_ATTEMPTS = 4
_PAUSE = 0.5  # seconds before the second attempt, twice that before the third
_CHUNK = 1 << 18  # bytes


class _Unreached(Exception):
    """The server did not answer."""


class _Cut(Exception):
    """The connection ended before the file did."""


def download(
    url: str,
    path: Path,
    *,
    md5: str | None = None,
    answer_timeout: float = 3.0,
    stall_timeout: float = 15.0,
) -> Path:
    """Downloads a file, unless it is there.

    What has come lies in `PATH.part` until it is all, so that the next call, of this process or
    another, goes on from there. Processes that want the same file take turns.

    Args:
        url: the file's address.
        path: where to put it.
        md5: its published checksum, if any, in hexadecimal.
        answer_timeout: seconds until the server must have answered, the look-up of its name
            included.
        stall_timeout: seconds without a byte after which the connection counts as cut.

    Returns:
        `path`.

    Raises:
        Unavailable: the server cannot be reached, does not have the file, or keeps cutting it off.
        UserError: the checksum is wrong.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with _turn(path.with_name(f"{path.name}.lock")):
        if path.exists():  # another process was faster
            return path
        _complete(url, part, answer_timeout, stall_timeout)
        if md5 is not None and _md5(part) != md5:
            found = _md5(part)
            part.unlink()
            raise UserError(f"{url} has the wrong checksum: md5 is {found}, not {md5}")
        os.replace(part, path)
        _validator(part).unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _turn(lock: Path) -> Iterator[None]:
    """Waits for other processes; the lock goes with its process, however that ends."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("weights: another process downloads %s, waiting for it", lock.stem)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _complete(url: str, part: Path, answer_timeout: float, stall_timeout: float) -> None:
    """Fetches what is missing of the file, in several attempts."""
    last = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE * attempt)
        request = _request(url, part)
        try:
            with _open(request, answer_timeout, stall_timeout) as response:
                return _receive(response, part)
        except _Cut as error:
            last = str(error)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise Unavailable(f"has no such file ({url} answered 404)") from error
            last = f"{url} answered {error.code} {error.reason}"
            if error.code == 416:  # what is there does not belong to the file
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise Unavailable(f"could not be reached ({last})") from error
        except _Unreached as error:
            last = f"{urlsplit(url).hostname} {error}"
            if attempt == 0:  # it was not there at all: do not make the user wait
                raise Unavailable(f"could not be reached ({last})") from error
    raise Unavailable(f"could not be downloaded ({last}, {_ATTEMPTS} attempts; run it again)")


def _request(url: str, part: Path) -> urllib.request.Request:
    request = urllib.request.Request(url, headers={"User-Agent": "jaxtl"})
    validator = _validator(part)
    if part.exists() and validator.exists():
        # The rest, if the file is still the same; else all of it (RFC 9110, section 13.1.5).
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", validator.read_text())
    return request


def within(seconds: float, work: Callable[[], T]) -> T:
    """Does something that may hang on a thread of its own, which is left alone when it does.

    A socket's timeout counts neither the look-up of a name nor one address of a server after
    another.

    Raises:
        TimeoutError: it takes longer.
        Exception: what `work` raises.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"timed out after {seconds:g} s") from None


def _open(
    request: urllib.request.Request, answer_timeout: float, stall_timeout: float
) -> http.client.HTTPResponse:
    try:
        return within(
            answer_timeout, lambda: urllib.request.urlopen(request, timeout=stall_timeout)
        )
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _Unreached(_reason(error, answer_timeout)) from error


def _receive(response: http.client.HTTPResponse, part: Path) -> None:
    """Appends to the part, or starts it anew where the server sends all of the file."""
    start = part.stat().st_size if response.status == 206 else 0
    total = _total(response, start)
    tag, modified = response.headers["ETag"], response.headers["Last-Modified"]
    strong = tag if tag and not tag.startswith("W/") else modified
    if start == 0:
        _validator(part).unlink(missing_ok=True)
    have = start
    with part.open("ab" if start else "wb") as file, _progress(part.stem, total, start) as advance:
        if strong:
            _validator(part).write_text(strong)
        for chunk in _chunks(response):
            file.write(chunk)
            have += len(chunk)
            advance(len(chunk))
        if have != total:
            raise _Cut(f"cut off after {have} of {total} bytes")
        os.fsync(file.fileno())


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read1(_CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(f"cut off: {_reason(error)}") from error


def _total(response: http.client.HTTPResponse, start: int) -> int:
    """The bytes of the whole file, which must be stated: nothing else tells that it is whole."""
    if response.status == 206:
        unit, _, rest = (response.headers["Content-Range"] or "").partition(" ")
        span, _, total = rest.partition("/")
        if unit == "bytes" and span.startswith(f"{start}-") and total.isdigit():
            return int(total)
    elif (response.headers["Content-Length"] or "").isdigit():
        return int(response.headers["Content-Length"])
    raise Unavailable(f"could not be downloaded ({response.url} does not say how long it is)")


@contextlib.contextmanager
def _progress(name: str, total: int, start: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, else a line in the log."""
    console = Console(stderr=True)
    if not console.is_terminal:
        _log.info("weights: downloading %s, %.1f MB", name, (total - start) / 1e6)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=total, completed=start)
        yield lambda count: progress.advance(task, count)


def _reason(error: Exception, seconds: float | None = None) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "timed out" + (f" after {seconds:g} s" if seconds is not None else "")
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _validator(part: Path) -> Path:
    """Where the ETag or the date of the file is kept that the part belongs to."""
    return part.with_name(f"{part.name}.etag")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
