"""The cost of jaxtl as the work grows."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmark.jobs import Caches, grown_job
from benchmark.material import Material, grow
from benchmark.protocol import Setup
from benchmark.sizes import Scales
from benchmark.workers import Worker

Series = dict[str, dict[str, float]]
"""By the name of a line: seconds by what is on the axis."""


def measure(
    material: Material, caches: Caches, folder: Path, setup: Setup, scales: Scales
) -> dict[str, Series]:
    """Measures a point after the other.

    Args:
        material: for the images.
        caches: for whole runs.
        folder: an empty one for more images.
        setup: of the steps.
        scales: how far.
    """
    return {
        "images": _images(material, caches, folder, scales),
        "image size": _steps(
            ("forward", "frozen", "full"),
            scales.sizes,
            scales.repeats,
            lambda size: Worker("jaxtl", dataclasses.replace(setup, image_size=size)),
        ),
        "trained stages": _stages(setup, scales),
        "simulated devices": _steps(
            ("forward", "frozen", "full"),
            scales.devices,
            scales.repeats,
            lambda count: Worker("jaxtl", setup, _simulate(count)),
        ),
    }


def exponent(points: dict[str, float]) -> float:
    """The power of the growing number that time grows with, by least squares of the logarithms."""
    x, y = (np.log([float(n) for n in numbers]) for numbers in (points, points.values()))
    return float(np.polyfit(x, y, 1)[0])


def slope(points: dict[str, float]) -> float:
    """Seconds for one more, by least squares."""
    return float(np.polyfit([float(x) for x in points], list(points.values()), 1)[0])


def _images(material: Material, caches: Caches, folder: Path, scales: Scales) -> Series:
    points = {}
    for count in scales.images:
        images = folder / f"grown-{count}"
        grow(material.photographs, images, count, scales.run_size)
        points[str(count)] = grown_job(
            images, caches, size=scales.run_size, epochs=scales.run_epochs
        )
    return {"run": points}


def _stages(setup: Setup, scales: Scales) -> Series:
    """By the number of trained stages; the pool has nothing to train and does not count."""
    series: Series = {"not cached": {}, "cached": {}}
    with Worker("jaxtl", setup) as worker:
        for stage in scales.stages:
            count = _trained(stage)
            series["not cached"][count] = _time(worker, f"from:{stage}", scales.repeats)
            if stage != "stem":
                series["cached"][count] = _time(worker, f"cached:{stage}", scales.repeats)
    return series


def _trained(stage: str) -> str:
    """How many stages from `stage` to the head."""
    order = ["stem", *(f"block_{number}" for number in range(17)), "top", "head"]
    return str(len(order) - order.index(stage))


def _steps(
    rows: tuple[str, ...],
    numbers: tuple[int, ...],
    repeats: int,
    start: Callable[[int], Worker],
) -> Series:
    series: Series = {row: {} for row in rows}
    for number in numbers:
        with start(number) as worker:
            for row in rows:
                series[row][str(number)] = _time(worker, row, repeats)
    return series


def _time(worker: Worker, row: str, repeats: int) -> float:
    worker.ask("prepare", row)
    return statistics.median(worker.ask("time", row) for _ in range(repeats))


def _simulate(count: int) -> dict[str, str]:
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
