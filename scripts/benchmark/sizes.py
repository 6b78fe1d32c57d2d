"""How much of everything is measured."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Scales:
    """How far everything is grown.

    Attributes:
        images: training images of a whole run.
        run_size: their pixels a side.
        run_epochs: of that run.
        sizes: pixels a side of a step's images.
        stages: the first trained ones.
        devices: simulated on the cores there are.
        repeats: measurements of a step.
    """

    images: tuple[int, ...] = (200, 630, 2_000, 6_300, 20_000)
    run_size: int = 96
    run_epochs: int = 10
    sizes: tuple[int, ...] = (96, 128, 160, 224, 320)
    stages: tuple[str, ...] = ("head", "block_16", "block_14", "block_11", "block_7", "stem")
    devices: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 3


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        batch, image_size: of a step.
        seconds, calls: of a measurement, at least.
        epochs: of what a step learns.
        train, val: images of the seed job.
        job_epochs: of the seed job.
        sweep_epochs: of each head of the sweep.
        jpegs: files.
        scales: how far everything is grown.
    """

    batch: int = 32
    image_size: int = 224
    seconds: float = 2.0
    calls: int = 3
    epochs: int = 5
    train: int = 202
    val: int = 52
    job_epochs: int = 100
    sweep_epochs: int = 20
    jpegs: int = 512
    scales: Scales = Scales()


QUICK = Sizes(
    batch=4,
    image_size=64,
    seconds=0.0,
    calls=1,
    epochs=1,
    train=16,
    val=6,
    job_epochs=3,
    sweep_epochs=1,
    jpegs=16,
    scales=Scales(
        images=(8, 16),
        run_size=32,
        run_epochs=1,
        sizes=(32, 64),
        stages=("head", "block_16"),
        devices=(1, 2),
        repeats=1,
    ),
)
"""To try the scripts; these numbers say nothing."""
