"""Reading the bytes of an image, with patience where a disk or a network fails for a while."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jaxtl.errors import UserError

_log = logging.getLogger("jaxtl")

Result = TypeVar("Result")

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0  # seconds
_ASKED_EVERY = 0.25  # seconds between two looks at whether to stop
_LASTING = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
}


class ReadError(UserError):
    """An image could not be read now; a disk that comes back, or a share, may give it later."""


def read_file(path: Path) -> bytes:
    """Reads a file, and never waits for what is no file: a FIFO, a socket or a device.

    Raises:
        ReadError: it cannot be read now.
        UserError: it is no regular file, its path leads nowhere, or this user may not read it.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a process that writes to it.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UserError("not a regular file, but a FIFO, a device or a folder")
            return file.read()
    except OSError as error:
        if error.errno == errno.ENXIO:  # what Linux says of a socket
            raise UserError("not a regular file, but a socket or a device") from error
        text = f"cannot be read: {error.strerror}"
        if error.errno == errno.ENOENT and path.is_symlink():  # it leads nowhere
            raise UserError(text) from error
        raise read_error(error, text) from error


def read_error(error: OSError, text: str) -> UserError:
    """A `ReadError` with this text where another try may help, else another `UserError`."""
    return (UserError if error.errno in _LASTING else ReadError)(text)


def patiently(
    read: Callable[[], Result],
    what: str,
    seconds: float,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Reads, and tries again after 0.1 s, 0.2 s and so on, at most 5 s, where reading fails.

    Args:
        read: raises `ReadError` where another try may help.
        what: what is read, for the warning before the second try.
        seconds: how long to try.
        stop: ends the waiting within a quarter of a second where it returns True.

    Raises:
        ReadError: it still cannot be read, or `stop` ended the waiting.
    """
    end, wait = time.monotonic() + seconds, _FIRST_WAIT
    while True:
        try:
            return read()
        except ReadError as error:
            if stop() or time.monotonic() >= end:
                raise
            if wait == _FIRST_WAIT:
                _log.warning("%s: %s; trying again for %g s", what, error, seconds)
        again = min(time.monotonic() + wait, end)
        while (left := again - time.monotonic()) > 0 and not stop():
            time.sleep(min(left, _ASKED_EVERY))
        wait = min(2 * wait, _LONGEST_WAIT)
