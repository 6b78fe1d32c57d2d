"""Which batch size fits into memory, once one did not; and what a run leaves there."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxtl.config import Phase
from jaxtl.data.loader import Batch
from jaxtl.errors import UserError


class OutOfMemory(UserError, MemoryError):
    """The devices, or this machine, have too little memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is the error of a device (XLA's) or a machine that has too little memory."""
    of_xla = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return of_xla or isinstance(error, MemoryError)


def forget_programs() -> None:
    """Lets go of the programs and arrays that a run which is over leaves in this process.

    JAX keeps a program as long as the function that it was compiled from, `jax.pmap` longer than
    that, and each run compiles functions of its own
    (docs/decisions/0034-a-run-leaves-nothing-behind.md).
    """
    jax.clear_caches()
    gc.collect()


def out_of_memory(
    step: Any, fixed: tuple, chunk: Batch, device: jax.Device, phase: Phase
) -> OutOfMemory:
    """The error to report of a training step that found too little memory.

    It names the largest of a half, a quarter, ... of the batch size for which the step, compiled
    anew, needs no more than what is free.

    Args:
        step: the step, from `make_train_step`.
        fixed: its arguments but for the chunk of batches; they stay in memory.
        chunk: shapes and types (D, S, B / D, ...) of a chunk of batches.
        device: one of the devices.
        phase: the phase that trains.
    """
    devices, _, each = chunk.valid.shape
    free = _free_bytes(device)
    error = f"data.batch_size={devices * each} needs more memory than the device has"
    for size in _halves(each):
        needed = None if free is None else _bytes_needed(step, fixed, chunk, size)
        if free is None or needed is None or needed <= free:
            batch_size = devices * size
            fits = "" if needed is None else f"{batch_size} fits: "
            return OutOfMemory(
                f"{error}; {fits}try --cfg.data.batch_size={batch_size}, or the same in pieces by "
                f"--cfg.phases.{phase.name}.accumulate={min(each, 2 * phase.accumulate)}, in a "
                "new --workdir"
            )
    return OutOfMemory(
        f"{error}, and so does every smaller one; try a smaller --cfg.model.image_size, or a later "
        "stage to train from, in a new --workdir"
    )


def _halves(size: int) -> Iterator[int]:
    while size := size // 2:
        yield size


def _bytes_needed(step: Any, fixed: tuple, chunk: Batch, size: int) -> int | None:
    """What a step on `size` images a device takes beside its arguments; None if it is too late."""

    def shape(array: Any, per_device: int | None = None) -> jax.ShapeDtypeStruct:
        sizes = list(array.shape)
        if per_device is not None:
            sizes[2] = per_device
        return jax.ShapeDtypeStruct(sizes, array.dtype)

    fixed = jax.tree.map(shape, fixed)
    batches = jax.tree.map(lambda array: shape(array, size), chunk)
    try:
        sizes: Any = step.lower(*fixed, batches).compile().memory_analysis()
    except (MemoryError, jax.errors.JaxRuntimeError):  # there is too little even to compile it
        return None
    return sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes


def _free_bytes(device: jax.Device) -> int | None:
    """The free memory of a device, or of this machine for a CPU; None if neither says."""
    known = device.memory_stats() or {}
    if "bytes_limit" in known:
        return known["bytes_limit"] - known["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if "MemAvailable" in line)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, StopIteration):
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return free
    return min(free, limit - pages * resource.getpagesize())
