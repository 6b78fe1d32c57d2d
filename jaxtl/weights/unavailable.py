"""Weights that cannot be had, and how to find that out within seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from jaxtl.errors import UserError

T = TypeVar("T")


class Unavailable(Exception):
    """A source cannot be had. Messages put its name before this text: `could not be reached`."""


class NoWeights(UserError):
    """No source can be had.

    Attributes:
        reasons: why, for each of them.
    """

    def __init__(self, reasons: Sequence[str]):
        super().__init__(
            f"no weights can be had: {'; '.join(reasons)}; name a file, such as path/to/file.h5"
        )
        self.reasons = tuple(reasons)


def within(seconds: float, work: Callable[[], T]) -> T:
    """Runs something that may hang in a thread of its own, and stops waiting for it in time.

    The timeouts of HTTP libraries do not count the look-up of a host's name, and count anew for
    each of its addresses.

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


def reason(error: BaseException) -> str:
    """What lies below an error of an HTTP library, in one line: `Connection refused`."""
    while below := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = below
    text = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return text or type(error).__name__
