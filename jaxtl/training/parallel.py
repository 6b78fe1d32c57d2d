"""Runs functions data parallel over devices, by the only `jax.pmap`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxtl.config import Config
from jaxtl.errors import UserError

AXIS = "data"
"""The mapped axis. A sum over it is a sum over the global batch."""

T = TypeVar("T")


def data_parallel(
    function: Callable[..., Any],
    devices: Sequence[jax.Device],
    *,
    in_axes: Sequence[int | None],
    out_axes: Any = 0,
    donate_argnums: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Compiles a function for all devices; each runs it on its part of the batch.

    Devices of several processes run it together. Each process gives and gets the arrays of its own.

    Args:
        function: the function of one device; it may use `jax.lax.psum` and the like over `AXIS`.
        devices: D devices.
        in_axes: one entry for each argument: 0 for arrays from `shard`, which have a leading device
            axis, None for arrays from `replicate`.
        out_axes: the same for the results.
        donate_argnums: the arguments whose memory the results may reuse.
    """
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=tuple(in_axes),
        out_axes=out_axes,
        donate_argnums=donate_argnums,
        devices=devices,
    )


def shard(tree: Any, devices: Sequence[jax.Device], *, axis: int = 0) -> Any:
    """Splits every array of a batch, or of a chunk of batches, over the devices.

    Args:
        tree: arrays (B, ...), or (S, B, ...) with `axis=1`; this process's part of a batch, where
            some devices are of others.
        devices: the devices, D of which are of this process.
        axis: the batch axis.

    Returns:
        Arrays (D, B / D, ...) or (D, S, B / D, ...); the transfer may still be going on.
    """

    mine = _of_this_process(devices)

    def split_up(x: np.ndarray) -> np.ndarray:
        shape = (*x.shape[:axis], len(mine), -1, *x.shape[axis + 1 :])
        return np.moveaxis(x.reshape(shape), axis, 0)

    return jax.device_put(jax.tree.map(split_up, tree), _sharding(mine, AXIS))


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies arrays to every device of this process, as arguments with `in_axes=None` need them."""
    return jax.device_put(tree, _sharding(_of_this_process(devices)))


def abstract(tree: Any, devices: Sequence[jax.Device], *, sharded: bool = False) -> Any:
    """What `replicate` would return, or `shard`, as shapes: programs can be compiled for them.

    Args:
        tree: arrays, or shapes and types; of `shard`, those of its result.
        devices: D devices, which need not be there.
        sharded: whether a leading axis is that of the devices.
    """
    sharding = _sharding(devices, *([AXIS] if sharded else []))
    return jax.tree.map(
        lambda of: jax.ShapeDtypeStruct(of.shape, of.dtype, sharding=sharding), tree
    )


def _sharding(devices: Sequence[jax.Device], *axes: str) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(*axes))


def lagging(items: Iterable[T], lag: int = 2) -> Iterator[T]:
    """Yields items in order, each after the next `lag` items have been made.

    Making an item starts work on the devices, or a transfer to them. The lag keeps the devices busy
    while the host reads an earlier item.
    """
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > lag:
            yield waiting.popleft()
    yield from waiting


def all_devices() -> list[jax.Device]:
    """The devices of all processes that train together, those of one process side by side.

    So the part of a batch that a process has is a slice of the batch.
    """
    if jax.process_count() == 1:
        return jax.local_devices()
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def _of_this_process(devices: Sequence[jax.Device]) -> list[jax.Device]:
    return [device for device in devices if device.process_index == jax.process_index()]


def on_cpu(devices: Sequence[jax.Device]) -> bool:
    """Whether the devices are CPUs, including simulated ones."""
    return devices[0].platform == "cpu"


def on_tpu(devices: Sequence[jax.Device]) -> bool:
    """Whether the devices are TPUs."""
    return devices[0].platform == "tpu"


def check_batch_size(config: Config, devices: Sequence[jax.Device]) -> None:
    """Refuses a global batch size that devices, or pieces of a batch, cannot share evenly.

    Raises:
        UserError: it is no multiple of the number of devices, or the part of a device has fewer
            images than `accumulate` pieces, or cannot be mixed in pairs; the message names numbers
            that fit.
    """
    count, batch_size = len(devices), config.data.batch_size
    lower = batch_size // count * count
    if lower != batch_size:
        nearest = " or ".join(str(size) for size in (lower, lower + count) if size)
        raise UserError(
            f"data.batch_size={batch_size} does not divide by {count} devices; "
            f"take --cfg.data.batch_size={nearest}"
        )
    for phase in config.phases:
        if phase.accumulate > (each := batch_size // count):
            raise UserError(
                f"accumulate={phase.accumulate} of {phase.name} splits the {each} images of a "
                f"device into more pieces; take --cfg.phases.{phase.name}.accumulate={each} or less"
            )
        if phase.mixes and each % 2:
            raise UserError(
                f"{phase.name} mixes pairs of images, and a device has {each} of each batch; take "
                f"--cfg.data.batch_size={batch_size + count}"
            )


def check_single_process() -> None:
    """Refuses to train the runs of a sweep as one of several processes.

    Raises:
        UserError: this process is one of several that jax.distributed joined.
    """
    if jax.process_count() > 1:
        raise UserError(
            f"jaxtl sweeps in one process, and this is one of {jax.process_count()}: start it on "
            "one machine, without jax.distributed; jaxtl.train can use several"
        )
