"""Processes on a terminal of their own."""

import contextlib
import os
import pty
import re


def start_on_a_terminal(start):
    """Calls a function that starts a process, and returns the process and our side of its terminal.

    Args:
        start: takes the argument `stdout` of `Workplace.start`.
    """
    ours, its = pty.openpty()
    process = start(stdout=its)
    os.close(its)
    return process, ours


def shown_until_the_end(watch, process, terminal):
    """What a process shows on a terminal, and its errors.

    Args:
        watch: is told all that was shown so far, each time there is more.
    """
    shown = ""
    with contextlib.suppress(OSError):  # how Linux says that the terminal's other side is closed
        while block := os.read(terminal, 65536):
            shown += block.decode()
            watch(shown)
    os.close(terminal)
    _, err = process.communicate(timeout=60)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown), err
