"""Stops a run when a signal asks for it, as soon as what was trained can be saved."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from jaxtl.errors import EXPECTED, Interrupted, one_line

T = TypeVar("T")

_SHOW_CURSOR = b"\x1b[?25h"


class Stop(threading.Event):
    """Whether a signal asked the run to stop.

    Attributes:
        signal: the number of the signal, once there was one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal = int(signal.SIGINT)
        self._waiting = False

    def check(self) -> None:
        """Raises `Interrupted` if a signal asked for it."""
        if self.is_set():
            raise Interrupted(self.signal)

    def interruptible(self, items: Iterable[T]) -> Iterator[T]:
        """Yields items; a signal raises `Interrupted` in place of the next, also while it is made.

        Making an item must not change anything that is saved.
        """
        iterator = iter(items)
        while True:
            self._waiting = True
            try:
                self.check()
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self._waiting = False
            yield item

    def request(self, number: int) -> None:
        """Notes a signal, from its handler."""
        self.signal = number
        self.set()
        if self._waiting:
            self._waiting = False  # what is raised once must not be raised in the clean-up
            self.check()


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Asks the block to stop on SIGINT or SIGTERM; a second signal ends the process at once.

    Raises:
        Interrupted: the block failed after a signal, while it was saved for example. The error is
            printed, and is the cause of this one.
    """
    stop = Stop()

    def request(number: int, frame: object) -> None:
        for each in usual:
            signal.signal(each, signal.SIG_DFL)
        # The signal may have come in the middle of another message, which Python refuses to break.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            print(
                "stopping as soon as the run can be saved; once more stops at once",
                file=sys.stderr,
                flush=True,
            )
            if os.isatty(1):  # a second signal leaves the bar no time for it
                os.write(1, _SHOW_CURSOR)
        stop.request(number)

    usual = {int(n): signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in usual:
            signal.signal(number, request)
        yield stop
    except Exception as error:
        if not stop.is_set():
            raise
        traceback = None if isinstance(error, EXPECTED) else error
        logging.getLogger("jaxtl").error("error: %s", one_line(error), exc_info=traceback)
        raise Interrupted(stop.signal) from error
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
