"""How fast a program can run at most, and on how many images, by published peaks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax

from jaxtl.accelerators import Accelerator
from jaxtl.forecast.program import Program
from jaxtl.forecast.target import Target

# docs.jax.dev/en/latest/gpu_memory_allocation.html: XLA_PYTHON_CLIENT_MEM_FRACTION.
_FRACTION_OF_GPU_MEMORY = 0.75


@dataclass(frozen=True)
class Forecast:
    """A step on a target: what it costs, and bounds of its speed and its batch.

    Attributes:
        name: `training`, `validation` or `frozen pass`.
        images: the images of a step, on all devices.
        program: its cost on one device; None if the compiler finds that it needs too much memory.
        images_per_second: the most that `memory`, `arithmetic` and `links` allow, on all devices;
            without links where nothing is sent, and empty if the step does not fit.
        largest_batch: the images of the largest batch that fits, on all devices; None if it was
            not looked for, or memory does not limit it.
    """

    name: str
    images: int
    program: Program | None
    images_per_second: dict[str, float]
    largest_batch: int | None

    @property
    def bound_by(self) -> str | None:
        """What allows the fewest images a second; None if the step does not fit."""
        return min(self.images_per_second, key=self.images_per_second.__getitem__, default=None)


def usable_memory(described: Target) -> float:
    """The bytes of a device that programs can use: JAX takes three quarters of a GPU's."""
    fraction = _FRACTION_OF_GPU_MEMORY if described.platform == "gpu" else 1.0
    return fraction * described.accelerator.memory_bytes


def speeds(program: Program, images: int, described: Target) -> dict[str, float]:
    """The images a second that memory, arithmetic and links allow, each by itself.

    Args:
        program: the cost of a step on one device.
        images: the images of a step, on all devices.
        described: the devices.
    """
    known = described.accelerator
    seconds = {
        "memory": program.moved_bytes / known.memory_bandwidth,
        "arithmetic": program.operations / known.flops,
        "links": all_reduce_seconds(program.all_reduced_bytes, known, described.count),
    }
    return {what: images / needed for what, needed in seconds.items() if needed}


def all_reduce_seconds(size: int, known: Accelerator, count: int) -> float:
    """The least time in which devices can add up arrays in a ring.

    Each sends and receives 2 (n - 1) / n times their size (Patarin and Yuan 2009,
    doi:10.1016/j.jpdc.2008.09.002). Among more devices than links join, each sends its part of the
    sums of its group through the network; the slower of the two is the bound.

    Args:
        size: the bytes of the arrays.
        known: one of the devices.
        count: the number of devices.
    """
    joined = min(count, known.linked)
    groups = -(-count // joined)
    seconds = 2 * (joined - 1) / joined * size / known.link_bandwidth
    if groups > 1 and known.network_bandwidth:
        part = size / joined
        seconds = max(seconds, 2 * (groups - 1) / groups * part / known.network_bandwidth)
    return seconds


def largest_that_fits(
    build: Callable[[int], Program], images: int, limit: float
) -> tuple[Program | None, int | None]:
    """Compiles a program for two numbers of images, and derives the most that fit.

    The memory that a program takes grows linearly with its images. The other number is twice the
    given one where that fits, or half of it; it is halved on where the compiler itself refuses.

    Args:
        build: compiles the program for so many images a device.
        images: the images a device.
        limit: the bytes that a device has.

    Returns:
        The program for `images`, None if the compiler found that it needs too much; and the most
        images a device, None if memory does not limit them.
    """
    tried = images
    program = first = try_to_build(build, images)
    while first is None and tried > 1:
        tried //= 2
        first = try_to_build(build, tried)
    if first is None:
        return None, 0
    doubled = 2 * first.memory_bytes <= limit or tried == 1
    other = 2 * tried if doubled else tried // 2
    second = try_to_build(build, other)
    if second is None:
        return program, tried if first.memory_bytes <= limit else 0
    each = (second.memory_bytes - first.memory_bytes) / (other - tried)
    if each <= 0:
        return program, None
    fixed = first.memory_bytes - each * tried
    return program, max(0, math.floor((limit - fixed) / each))


def try_to_build(build: Callable[[int], Program], images: int) -> Program | None:
    """Compiles a program, unless the compiler finds that the device has too little memory."""
    try:
        return build(images)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
