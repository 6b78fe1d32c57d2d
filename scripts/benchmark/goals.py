"""What is measured, against whom, and what would be good."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Goal:
    """A row of the main table.

    Attributes:
        row: its name on the command line.
        title: in words.
        peers: whom jaxtl is held against.
        at_most: the ratio jaxtl / peer of what the values count.
        hoped: a better one.
        counts: `seconds`, `bytes`, or `images`: seconds that are shown as images a second.
    """

    row: str
    title: str
    peers: tuple[str, ...]
    at_most: float
    hoped: float
    counts: str = "seconds"


SINGLE_RUNS = "64 single runs"
ONE_BATCH = "the same batch"
COMPILED = "PyTorch compiled"
_BOTH = ("Keras", "PyTorch")
_ALL = (*_BOTH, COMPILED)

GOALS = (
    Goal("forward", "forward pass", _ALL, 0.8, 0.6),
    Goal("frozen", "frozen-trunk step, no cache", _ALL, 0.8, 0.6),
    Goal("full", "full fine-tuning step", _ALL, 1.0, 0.7),
    Goal("full_pages", "full step, large pages", _ALL, 1.0, 0.7),
    Goal("block_14", "step from block_14 up, cached", _ALL, 0.35, 0.2),
    Goal("data", "steps with data", (ONE_BATCH,), 1.05, 1.0),
    Goal("seed", "seed job", ("Keras",), 0.05, 0.025),
    Goal("seed_plain", "seed job, no augmentation", ("Keras",), 0.04, 0.02),
    Goal("sweep", "sweep of 64 heads", (SINGLE_RUNS,), 0.05, 0.03),
    Goal("start", "start to first step", ("Keras",), 0.8, 0.5),
    Goal("memory", "peak memory, seed job", ("Keras",), 0.7, 0.5, "bytes"),
    Goal("jpeg", "JPEG decode and resize", _BOTH, 0.9, 0.7, "images"),
    Goal("jpeg_smooth", "the same, all antialiased", _BOTH, 0.9, 0.7, "images"),
)

PEERS_OF = {goal.row: goal.peers for goal in GOALS}

GPU_GOALS = {"full": 8_000, "frozen": 25_000, "head": 1_000_000}
"""Images (or features) a second on an NVIDIA H100."""
