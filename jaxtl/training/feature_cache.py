"""Caches the outputs of the frozen stages.

The stages left of the frontier are a fixed function. If each image has finitely many views, they
run once on every view, and training starts from their outputs (docs/frontier-cache.md).
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num
from rich.console import Console

from jaxtl.config import Augment, Config
from jaxtl.console import counter
from jaxtl.data.loader import Batch, Loader
from jaxtl.models import Network, Variables, output_spec, split, stage_of
from jaxtl.training import hosts
from jaxtl.training.feature_store import FeatureStore, Filling, sha256_of, sha256_of_code
from jaxtl.training.inference import make_feature_step
from jaxtl.training.memory import OutOfMemory, is_out_of_memory
from jaxtl.training.parallel import lagging, on_cpu, replicate, shard

_MOST_VIEWS = 8  # the most that `views="auto"` chooses
_SECONDS_BETWEEN_LOOKS = 0.2  # at an array that another process fills
ROWS_AT_A_TIME = 256  # images a device, in a pass; 32 on a CPU
_STEPS_PER_CALL = 64  # steps on features take less time than a call from Python
_PACKAGES = ("jax", "jaxlib", "flax", "pillow", "dm_pix")  # activations depend on their versions


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the images of a phase reach the stages that train.

    Attributes:
        views: the number of views of each image; 0 for a new view every epoch.
        cached: whether the frozen stages run once for each view, instead of in every step.
        resident: whether every device keeps their outputs; else training reads them from disk.
        why: the reason, for the user.
        size: the size of the outputs in bytes; 0 if they are not cached.
    """

    views: int
    cached: bool
    resident: bool
    why: str
    size: int = 0


@dataclasses.dataclass(frozen=True)
class Feed:
    """The network's inputs, batch by batch: images, or activations at a frontier.

    Attributes:
        loader: the images, and the order of an epoch.
        views: the number of views of each image; 0 for a new view every epoch.
        stage: the stage at which the activations come in; None for images.
        dtype: the type of the outputs of the stage before it; None for images.
        rows: cached activations; the views of one image are adjacent rows.
        table: the same rows on every device, if they fit.
    """

    loader: Loader
    views: int = 0
    stage: str | None = None
    dtype: jax.typing.DTypeLike | None = None
    rows: Num[np.ndarray, "rows ..."] | None = None
    table: jax.Array | None = None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, from `start_step` on."""
        if self.rows is None:
            yield from self.loader.epoch(epoch, start_step, views=self.views)
            return
        for batch in self.loader.rows(epoch, start_step, views=self.views):
            places = batch.indices * self.views + batch.views
            yield batch._replace(inputs=places if self.table is not None else self.rows[places])

    def chunks(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the same batches in stacks (S, B, ...); S is more than 1 where steps are short.

        The boundaries of the chunks do not depend on `start_step`.
        """
        most = _STEPS_PER_CALL if self.table is not None and self.table.ndim == 2 else 1
        calls = -(-self.loader.steps_per_epoch // most)
        length = -(-self.loader.steps_per_epoch // calls)
        waiting: list[Batch] = []
        for step, batch in enumerate(self.epoch(epoch, start_step), start_step + 1):
            waiting.append(batch)
            if step % length == 0 or step == self.loader.steps_per_epoch:
                yield Batch(*map(np.stack, zip(*waiting, strict=True)))
                waiting = []


def plan(
    config: Config,
    row: jax.ShapeDtypeStruct,
    images: int,
    *,
    epochs: int,
    runs: int = 1,
    views: int | None = None,
    beside: int = 0,
    several_hosts: bool = False,
    mixes: bool = False,
) -> Plan:
    """Decides how many views the images have, and whether activations are cached.

    The plan depends only on config and data, so the same command always does the same. The number
    of views does not depend on `runs`.

    Args:
        config: the config of the run.
        row: shape and type of the activations of one image, from `models.output_spec`.
        images: the number of images.
        epochs: the number of passes over the images.
        runs: the number of runs that share the activations.
        views: 1 for validation images, which are never augmented; None to decide for training.
        beside: the size in bytes of other activations that must stay on the disk as well.
        several_hosts: whether other hosts train with this one. They send each other activations
            that fit into memory.
        mixes: whether the phase mixes images.
    """
    row_bytes = int(np.prod(row.shape)) * jnp.dtype(config.cache.dtype).itemsize
    why = ""
    if mixes:
        views = 0 if config.views == "auto" else config.views
        why = "images are mixed anew in every step; the frozen stages run in each"
        return Plan(views, False, False, why)
    if views is None:
        views, why = _views(config, epochs, row_bytes * images)
    if views == 0:
        return Plan(0, False, False, f"{why}; the frozen stages run in every step")
    size = row_bytes * images * views
    shape = " x ".join(f"{n:,}" for n in row.shape[1:])
    amount = f"{shape} numbers for each, {_amount(size)}"
    if size + beside > config.cache.disk_gb * 1e9:
        limit = f"more than cache.disk_gb={config.cache.disk_gb:g}"
        return Plan(views, False, False, f"{why}; not cached: {amount}, {limit}")
    if views >= max(epochs * runs, 2):
        reason = f"{epochs} epochs would use each view once at most"
        return Plan(views, False, False, f"{why}; not cached: {reason}")
    resident = size <= config.cache.memory_gb * 1e9
    if several_hosts and not resident:
        limit = f"more than cache.memory_gb={config.cache.memory_gb:g}, which hosts can exchange"
        return Plan(views, False, False, f"{why}; not cached: {amount}, {limit}")
    where = "in memory" if resident else "on disk"
    return Plan(views, True, resident, f"{why}; the frozen stages run once: {amount} {where}", size)


def _views(config: Config, epochs: int, size: int) -> tuple[int, str]:
    """The number of views, and why; `size` is the size in bytes of one view of all images."""
    if config.views != "auto":
        if config.views == 0:
            return 0, "a new view of each image every epoch"
        return config.views, f"{config.views} {'views' if config.views > 1 else 'view'} an image"
    if config.augment == Augment():
        return 1, "images are not augmented"
    name = min(("memory_gb", "disk_gb"), key=lambda name: getattr(config.cache, name))
    limit = getattr(config.cache, name)
    fitting = min(_MOST_VIEWS, int(limit * 1e9 // size))
    if fitting < 2:
        reason = f"two would take {_amount(2 * size)} of cache.{name}={limit:g}"
        return 0, f"a new view of each image every epoch, since {reason}"
    if fitting >= epochs:
        return 0, "a new view of each image every epoch, since there are so few epochs"
    return fitting, f"{fitting} views an image"


def has_parameters(network: Network, stop: str) -> bool:
    """Whether the stages before `stop` have parameters; without any, a cache saves no work."""
    before = network.between(None, stop)
    return any(stage_of(path) in before for path in split(network)[1])


@dataclasses.dataclass(frozen=True)
class FrozenPass:
    """A run of the frozen stages over every view of every image of this host's part.

    Attributes:
        config: the config of the run.
        network: the structure of the network.
        variables: the variables of the network, on all devices.
        loader: the images of all hosts.
        stage: the frontier.
        views: the number of views of each image.
        augmentation: the augmentation that makes the views.
        devices: the devices, as for `shard`, of this process.
        part: (h, H) for the h-th of H parts of the images.
    """

    config: Config
    network: Network
    variables: Variables
    loader: Loader
    stage: str
    views: int = 1
    augmentation: Augment = Augment()  # noqa: RUF009
    devices: Sequence[jax.Device] = dataclasses.field(default_factory=lambda: jax.local_devices())
    part: tuple[int, int] = (0, 1)

    @property
    def images(self) -> range:
        """The images of the part."""
        return hosts.split_up(len(self.loader), *self.part)

    @functools.cached_property
    def row(self) -> jax.ShapeDtypeStruct:
        """What the stages before the frontier return for one image."""
        return output_spec(self.network, self.config.model.image_size, self.stage)

    @functools.cached_property
    def metadata(self) -> dict[str, Any]:
        """Everything that the activations depend on: the key in the store."""
        spec, left = self.network.spec, set(self.network.between(None, self.stage))
        inside = {p: value for p, value in self.variables.items() if stage_of(p) in left}
        changes = self.augmentation != Augment()
        return {
            "network": [spec.name, spec.width, dataclasses.astuple(spec.convention), self.stage],
            "weights": sha256_of(inside),
            "data": self.loader.source.fingerprint,
            "images": [self.config.model.image_size, self.config.data.resize],
            "augment": self.augmentation.model_dump() if changes else None,
            "part": [self.images.start, self.images.stop],
            "views": [self.views, self.config.data.seed if changes else None],
            "dtype": [self.config.dtype, self.config.cache.dtype],
            "versions": [importlib.metadata.version(name) for name in _PACKAGES],
            "code": sha256_of_code(),
            "device": [self.devices[0].platform, self.devices[0].device_kind],
            "precision": jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined,unused-ignore]
        }

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the outputs; the views of one image are adjacent rows."""
        return len(self.images) * self.views, *self.row.shape[1:]

    def fill(self, array: Filling, out: Console, stop: Callable[[], bool]) -> None:
        """Runs the frozen stages on the images whose rows are missing, until `stop` returns True.

        If a batch takes too much memory, the pass goes on with half as many images.

        Raises:
            OutOfMemory: one image for each device takes more memory than there is.
            OSError: the disk is full, or the array cannot be written to.
        """
        # Not the config's batch size, so that runs with other batch sizes share activations.
        each = 32 if on_cpu(self.devices) else ROWS_AT_A_TIME
        if 0 < array.rows < self.shape[0]:
            done = array.rows // self.views
            out.print(f"continuing a pass that has {done:,} of {len(self.images):,} images")
        title = f"running the frozen stages up to {self.stage}"
        with counter(out, title, len(self.images)) as show:
            while array.rows < self.shape[0] and not stop():
                try:
                    for rows in self._rows(array.rows, each * len(self.devices), stop):
                        array.write(rows)
                        show(array.rows // self.views)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    if each == 1:
                        raise OutOfMemory(
                            "the memory is not enough for the frozen stages, even for one image a "
                            "device at a time; try a smaller --cfg.model.image_size"
                        ) from error
                    each //= 2
                    count = f"{each} images" if each > 1 else "1 image"
                    out.print(f"out of memory: the frozen stages go on with {count} a device")

    def _rows(self, first: int, batch_size: int, stop: Callable[[], bool]) -> Iterator[np.ndarray]:
        """Yields the rows from `first` on, those of one batch at a time."""
        size, dtype = self.row.shape[1:], jnp.dtype(self.config.cache.dtype)
        views: list[np.ndarray] = []
        # A short lag bounds the memory, and the work that is still under way after `stop`.
        for batch, output in lagging(self._outputs(first, batch_size, stop), lag=1):
            # Waiting raises what NumPy would end the process for: an output without memory.
            output.block_until_ready()
            views.append(np.asarray(output).reshape(-1, *size)[batch.valid])
            if len(views) == self.views:
                rows = np.stack(views, axis=1).reshape(-1, *size).astype(dtype)
                # The first batch may begin with rows that are there.
                there = first - (int(batch.indices[0]) - self.images.start) * self.views
                yield rows[max(0, there) :]
                views = []
            if stop():
                return

    def _outputs(
        self, first: int, batch_size: int, stop: Callable[[], bool]
    ) -> Iterator[tuple[Batch, jax.Array]]:
        """Yields each batch with what the frozen stages return for it, once for each view."""
        graph = split(self.network)[0]
        step = make_feature_step(
            graph, self.stage, augmentation=self.augmentation, devices=self.devices
        )
        seed = replicate(np.int32(self.config.data.seed), self.devices)
        images = self.loader.once_through(batch_size, self.images)
        start = first // self.views // batch_size
        for batch in images.epoch(0, start, stop=stop):
            sharded = shard(batch, self.devices)
            for view in range(self.views):
                views = shard(np.full_like(batch.views, view), self.devices)
                yield batch, step(self.variables, seed, sharded._replace(views=views))


def open_feed(
    planned: Plan,
    work: FrozenPass,
    store: FeatureStore,
    out: Console,
    stop: Callable[[], bool],
) -> Feed | None:
    """The inputs of a phase: images, or activations from the store, computed if necessary.

    Several hosts store a part each, and exchange them.

    Args:
        planned: the plan from `plan`.
        work: the pass that computes the activations.
        store: the store to find them in or write them to.
        out: the terminal.
        stop: a function that returns True to stop the pass; from then on it always does.

    Returns:
        The feed; None if `stop` ended the pass, on any host.

    Raises:
        OutOfMemory: the frozen stages take more memory than there is.
        UserError: an image cannot be read or decoded; the message names it.
    """
    images = Feed(work.loader, planned.views)
    if not planned.cached:
        return images
    try:
        rows = hosts.together(lambda: stored_outputs(work, store, out, stop))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        out.print(f"not cached after all: {where}{error.strerror}")
        return images
    if hosts.on_any(rows is None) or rows is None:
        return None
    if work.part[1] > 1:
        of_images = rows.reshape(-1, work.views, *rows.shape[1:])
        rows = hosts.concatenate(of_images, len(work.loader)).reshape(-1, *rows.shape[1:])
    table = replicate(rows, work.devices) if planned.resident else None
    return Feed(work.loader, planned.views, work.stage, work.row.dtype, rows, table)


def stored_outputs(
    work: FrozenPass, store: FeatureStore, out: Console, stop: Callable[[], bool] = lambda: False
) -> Num[np.ndarray, "rows ..."] | None:
    """The outputs of a pass over its part, memory-mapped, from the store; computed if necessary.

    While another process computes them, this one waits, and takes over if that one stops or dies.

    Returns:
        The outputs; the views of one image are adjacent rows. None if `stop` ended the pass.

    Raises:
        OutOfMemory: the frozen stages take more memory than there is.
        OSError: the outputs cannot be stored.
    """
    dtype, waits = jnp.dtype(work.config.cache.dtype), 0
    if not work.images:  # fewer images than hosts
        return np.empty(work.shape, dtype)
    while (rows := store.find(work.metadata)) is None and not stop():
        try:
            with store.filling(work.metadata, work.shape, dtype) as array:
                work.fill(array, out, stop)
        except BlockingIOError:
            waits += 1
            if waits == 2:  # a process that only makes room is done by then
                out.print("another process is filling the cache; waiting until it is done")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            continue
        if not stop() and store.find(work.metadata) is None:
            raise OSError(errno.ENOENT, "another process removed the activations")
    return rows


def _amount(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
