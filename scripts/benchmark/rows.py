"""The rows: what is measured, by which function, against whom, and what would be good."""

from __future__ import annotations

from typing import NamedTuple

from benchmark import measure
from benchmark.protocol import COMPILED


class Row(NamedTuple):
    """A line of the main table for each peer.

    Attributes:
        title: on the page.
        peers: whom jaxtl is held against.
        at_most: the goal, the ratio jaxtl / peer of what the values count.
        hoped: a better one.
        counts: `seconds`, `bytes`, or `images`: seconds that are shown as images a second.
    """

    title: str
    peers: tuple[str, ...]
    at_most: float
    hoped: float
    counts: str = "seconds"


_KERAS, _EAGER = ("Keras",), ("Keras", "PyTorch")
_ALL = (*_EAGER, COMPILED)

ROWS = {
    "forward": Row("forward pass", _ALL, 0.8, 0.6),
    "frozen": Row("frozen-trunk step, no cache", _ALL, 0.8, 0.6),
    "full": Row("full fine-tuning step", _ALL, 1.0, 0.7),
    "full_frozen": Row("full step, frozen statistics", _ALL, 1.0, 0.7),
    "full_frozen_memory": Row("peak memory, that step", _ALL, 1.0, 0.7, "bytes"),
    "full_pages": Row("full step, large pages", _ALL, 1.0, 0.7),
    "block_14": Row("step from block_14 up, cached", _ALL, 0.35, 0.2),
    "data": Row("steps with data", (measure.ONE_BATCH,), 1.05, 1.0),
    "seed": Row("seed job", _KERAS, 0.05, 0.025),
    "seed_plain": Row("seed job, no augmentation", _KERAS, 0.04, 0.02),
    "sweep": Row("sweep of 64 heads", (measure.SINGLE_RUNS,), 0.05, 0.03),
    "start": Row("start to first step", _KERAS, 0.8, 0.5),
    "memory": Row("peak memory, seed job", _KERAS, 0.7, 0.5, "bytes"),
    "jpeg": Row("JPEG decode and resize", _EAGER, 0.9, 0.7, "images"),
    "jpeg_smooth": Row("the same, all antialiased", _EAGER, 0.9, 0.7, "images"),
    "packed": Row("JPEGs, packed at 224 px", (measure.FILES,), 0.4, 0.34, "images"),
}
"""The main table, by the names that `--rows` takes; `memory` comes with `seed`, and
`full_frozen_memory` with `full_frozen`."""

MEASURES = {
    **dict.fromkeys((*measure.STEPS, "full_pages", "jpeg", "jpeg_smooth"), measure.operation),
    "data": measure.data,
    "packed": measure.packed,
    **dict.fromkeys(("seed", "seed_plain"), measure.seed_job),
    "sweep": measure.sweep,
    "start": measure.start,
    "exported": measure.exported,
    "scaling": measure.scaling,
    "roofline": measure.roofline,
}
"""Who measures what, in this order; the last three have sections of their own on the page."""
