"""Whole processes, timed from their start."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO

from benchmark.workers import environment


@dataclasses.dataclass(frozen=True)
class Finished:
    """A process that ran to its end.

    Attributes:
        seconds: from its start to its exit.
        peak_bytes: the most memory it held at a time.
        output: what it printed.
    """

    seconds: float
    peak_bytes: int
    output: str


def run(arguments: Sequence[str], extra: Mapping[str, str] | None = None) -> Finished:
    """Runs Python to its end.

    Args:
        arguments: of Python.
        extra: environment variables.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile("w+") as output:
        begun = time.perf_counter()
        process = _start(arguments, extra, output)
        # Linux counts what this process held when it forked as the least of the peak, so this one
        # has to stay small.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{text[-4000:]}")
    return Finished(seconds, usage.ru_maxrss * 1024, text)


def run_until(arguments: Sequence[str], line: str, extra: Mapping[str, str] | None = None) -> float:
    """Seconds from the start of Python until it prints a line; then it is killed.

    Args:
        arguments: of Python.
        line: a part of the line.
        extra: environment variables.

    Raises:
        RuntimeError: it ended before.
    """
    begun = time.perf_counter()
    process = _start(arguments, extra, subprocess.PIPE)
    assert process.stdout
    try:
        for said in process.stdout:
            if line in said:
                return time.perf_counter() - begun
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    raise RuntimeError(f"{' '.join(arguments)} never said {line!r}")


def _start(
    arguments: Sequence[str], extra: Mapping[str, str] | None, output: IO[str] | int
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | dict(extra or {}),
    )
