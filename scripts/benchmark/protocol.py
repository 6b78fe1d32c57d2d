"""What the command and its workers say to each other: JSON lines over stdin and stdout.

A worker holds one framework, so that no two thread pools share a process. It answers one request at
a time and sleeps in between:

    {"do": "prepare", "row": "frozen"}    builds the operation and runs it until it is warm
    {"do": "time", "row": "frozen"}       the median seconds of a few calls
    {"do": "learn", "row": "frozen"}      trains by the same operation; the validation accuracy
    {"do": "cost", "row": "frozen"}       operations and bytes of one call (jaxtl alone)
    {"do": "peaks", "row": ""}            the machine's operations and bytes a second (jaxtl alone)
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

STEP_ROWS = ("forward", "frozen", "full", "block_14")
"""The operations on one batch; the others decode images or are whole jobs."""

LARGE_PAGES = "_pages"
"""Ends the name of a row that is measured with memory in large pages, in every framework."""

LEARNING_RATE = {"forward": 1e-3, "frozen": 1e-3, "full": 1e-4, "block_14": 1e-4}
"""Of Adam, in every framework; `forward` is measured by the head that `frozen` trains."""

CLASSES = 10

FIRST_STEP = "first step"
"""What jaxtl and its peer say once they have trained a step."""

Step = Callable[[np.ndarray, np.ndarray], object]
"""Trains on host arrays: images (B, H, W, 3) uint8 and labels (B,) int32."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Images (B, H, W, 3) uint8 -> scores (B, classes), the largest for the likeliest class."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every worker is given.

    Attributes:
        batch_size: images a batch.
        image_size: pixels a side.
        weights: the Keras file with the network's weights.
        images: the .npz file with the images of the seed job, decoded.
        jpegs: the folder of JPEG files to decode.
        seconds: a measurement calls the operation for at least so long.
        calls: and at least so often.
        epochs: passes over the images when an operation is asked what it learns.
    """

    batch_size: int
    image_size: int
    weights: str
    images: str
    jpegs: str
    seconds: float
    calls: int
    epochs: int

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The batch that operations are timed on: images and labels."""
        random = np.random.default_rng(0)
        shape = (self.batch_size, self.image_size, self.image_size, 3)
        images = random.integers(0, 256, shape, dtype=np.uint8)
        return images, random.integers(0, CLASSES, self.batch_size, dtype=np.int32)


class Peer(Protocol):
    """One framework."""

    def operation(self, row: str) -> Callable[[], object]:
        """Builds what is timed; a call returns when its result is there."""
        ...

    def learner(self, row: str) -> tuple[Step, Predict]:
        """A fresh network with the weights, by its training step and its inference."""
        ...


def serve(make: Callable[[Setup], Peer]) -> None:
    """Answers requests until stdin ends.

    Args:
        make: the framework, which is imported when the worker starts.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    setup = Setup(**json.loads(sys.argv[1]))
    peer = make(setup)
    prepared: tuple[str, Callable[[], object]] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        row, answer = request["row"], None
        if request["do"] == "prepare":
            prepared = None  # the memory of the one before
            prepared = (row, peer.operation(row))
            for _ in range(2):
                prepared[1]()
        elif request["do"] == "time":
            if prepared is None or prepared[0] != row:
                raise ValueError(f"{row} was not prepared")
            answer = _median(prepared[1], setup)
        elif request["do"] == "learn":
            answer = _learn(peer, row, setup)
        else:
            answer = getattr(peer, request["do"])(row)
        print(json.dumps(answer), file=answers, flush=True)


def _median(operation: Callable[[], object], setup: Setup) -> float:
    begun = time.perf_counter()
    seconds: list[float] = []
    while len(seconds) < setup.calls or time.perf_counter() - begun < setup.seconds:
        call_begun = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - call_begun)
    return statistics.median(seconds)


def _learn(peer: Peer, row: str, setup: Setup) -> float:
    """Trains on the images of the seed job, whole batches only, in the same order everywhere."""
    with np.load(setup.images) as file:
        data: dict[str, Any] = dict(file)
    step, predict = peer.learner(row)
    size, count = setup.batch_size, len(data["train_labels"])
    for epoch in range(setup.epochs):
        order = np.random.RandomState(epoch).permutation(count)
        for first in range(0, count - size + 1, size):
            chosen = order[first : first + size]
            step(data["train_images"][chosen], data["train_labels"][chosen])
    labels, right = data["val_labels"], 0
    for first in range(0, len(labels), size):
        chosen = np.arange(first, first + size) % len(labels)  # the last batch is filled up
        hits = predict(data["val_images"][chosen]).argmax(axis=1) == labels[chosen]
        right += int(hits[: len(labels) - first].sum())
    return right / len(labels)
