"""The command's side of a worker."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmark.goals import COMPILED
from benchmark.protocol import Setup

SCRIPTS = Path(__file__).parents[1]

PEERS = {
    "jaxtl": ("benchmark.jaxtl_worker", ("jaxtl",)),
    "Keras": ("benchmark.keras_worker", ("keras", "tensorflow")),
    "PyTorch": ("benchmark.torch_worker", ("torch", "timm")),
    COMPILED: ("benchmark.torch_compiled_worker", ("torch", "timm")),
}
"""The module and what it needs, by the name in the document."""

_ON_CPU = {
    "PYTHONPATH": str(SCRIPTS),
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}


def environment() -> dict[str, str]:
    """What every process of the benchmark sees; a GPU is hidden."""
    return os.environ | _ON_CPU


def missing(peer: str) -> list[str]:
    """What a peer needs and is not installed."""
    packages = [name for name in PEERS[peer][1] if importlib.util.find_spec(name) is None]
    compiler = ["g++"] if peer == COMPILED and shutil.which("g++") is None else []
    return packages + compiler


class Worker:
    """A process with one framework, which sleeps unless it is asked something.

    Args:
        peer: its name.
        setup: what it works on.
        extra: environment variables.
    """

    def __init__(self, peer: str, setup: Setup, extra: Mapping[str, str] | None = None):
        self._peer = peer
        self._folder = tempfile.TemporaryDirectory()
        self._said = Path(self._folder.name) / "said.txt"
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", PEERS[peer][0], json.dumps(dataclasses.asdict(setup))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=environment() | dict(extra or {}),
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.communicate()  # closes its stdin, at which it ends
        self._folder.cleanup()

    def ask(self, what: str, row: str) -> Any:
        """Sends a request and waits for the answer.

        Raises:
            RuntimeError: the worker died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died before, and will not answer
            print(json.dumps({"do": what, "row": row}), file=self._process.stdin, flush=True)
        if line := self._process.stdout.readline():
            return json.loads(line)
        raise RuntimeError(f"{self._peer} died at {what} {row}:\n{self._said.read_text()[-4000:]}")
