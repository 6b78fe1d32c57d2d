"""The cache of frozen activations: what the stages left of a phase's frontier return, run once.

Where the stages left of the frontier are frozen and a image has a finite number of views, the
frozen stages are a fixed function of a finite number of inputs. They are run once; training starts
from what came out (docs/frontier-cache.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Num
from rich.console import Console

from jaxtl.config.config_file import Augment, Config, Phase
from jaxtl.console import counter
from jaxtl.data.loader import Batch, Loader
from jaxtl.models import Network, Variables, split
from jaxtl.training.feature_store import Store
from jaxtl.training.step import make_activations_step, on_cpu, replicate, shard

_VIEWS = 8  # what `auto` takes at most
_STEPS_PER_CALL = 64  # of training on features, which take less time than Python does
_DECIDING = ("jax", "jaxlib", "flax", "pillow", "dm_pix")  # packages that decide on numbers
_LAG = 2  # batches under way on the device while earlier ones are written


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the images of a phase reach what trains.

    Attributes:
        views: of each image; 0 for a new one every epoch.
        cached: whether the frozen stages run once for each view, and not in every step.
        resident: whether what they return is kept on every device; else it is read from disk.
        why: in words.
        size: of the activations, in bytes; 0 where they are not cached.
    """

    views: int
    cached: bool
    resident: bool
    why: str
    size: int = 0


@dataclasses.dataclass(frozen=True)
class Feed:
    """What goes into the network, batch by batch: images, or activations at a frontier.

    Attributes:
        loader: the images, and the order of an epoch.
        views: of each image; 0 for a new one every epoch.
        stage: where the activations come in; None for images.
        dtype: the type that the stage before it returned; None for images.
        rows: the activations, those of a image's views side by side.
        table: the same on every device, where they fit.
    """

    loader: Loader
    views: int = 0
    stage: str | None = None
    dtype: jax.typing.DTypeLike | None = None
    rows: Num[np.ndarray, "rows ..."] | None = None
    table: jax.Array | None = None

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, or the tail of the same sequence from `start_step` on."""
        if self.rows is None:
            yield from self.loader.epoch(epoch, start_step, views=self.views)
            return
        for batch in self.loader.rows(epoch, start_step, views=self.views):
            places = batch.indices * self.views + batch.views
            yield batch._replace(inputs=places if self.table is not None else self.rows[places])

    def chunks(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the same batches, many stacked in one (S, B, ...) where steps are short.

        The chunks of an epoch begin at the same steps wherever one starts.
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
    config: Config, phase: Phase, row: jax.ShapeDtypeStruct, images: int, *, runs: int = 1
) -> Plan:
    """Decides how many views the images of a phase have, and whether activations are cached.

    It depends on the config and the data alone, so that the same command always does the same.

    Args:
        config: of the run.
        phase: one of its phases.
        row: what the stages left of the frontier return for one image.
        images: how many there are.
        runs: how many runs share the activations.
    """
    changes = config.augment != Augment()
    views, why = _views(config, phase, _bytes(config, row) * images, changes)
    size = _bytes(config, row) * images * max(views, 1)
    shape = " x ".join(f"{n:,}" for n in row.shape[1:])
    fits = f"{shape} numbers for each, {_amount(size)}"
    resident = size <= config.cache.memory_gb * 1e9
    if views == 0:
        return Plan(0, False, False, f"{why}; the frozen stages run in every step")
    if size > config.cache.disk_gb * 1e9:
        limit = f"more than cache.disk_gb={config.cache.disk_gb:g}"
        return Plan(views, False, False, f"{why}; not cached: {fits}, {limit}")
    if views >= max(phase.epochs * runs, 2):
        reason = f"{phase.epochs} epochs would not use each more than once"
        return Plan(views, False, False, f"{why}; not cached: {reason}")
    where = "in memory" if resident else "on disk"
    why = f"{why}; the frozen stages run once: {fits} {where}"
    return Plan(views, True, resident, why, size)


def _views(config: Config, phase: Phase, size: float, changes: bool) -> tuple[int, str]:
    """How many views, and why; `size` is that of the activations of one view of all images."""
    if config.views != "auto":
        if config.views == 0:
            return 0, "a new view of each image every epoch"
        return config.views, f"{config.views} {'views' if config.views > 1 else 'view'} a image"
    if not changes:
        return 1, "images as they are"
    name = min(("memory_gb", "disk_gb"), key=lambda name: getattr(config.cache, name))
    most = getattr(config.cache, name)
    fitting = min(_VIEWS, int(most * 1e9 // size))
    if fitting < 2:
        room = f"two would take {_amount(2 * size)} of cache.{name}={most:g}"
        return 0, f"a new view of each image every epoch, since {room}"
    if fitting >= phase.epochs:
        return 0, "a new view of each image every epoch, since there are so few epochs"
    return fitting, f"{fitting} views a image"


def validation_plan(config: Config, row: jax.ShapeDtypeStruct, images: int, *, beside: int) -> Plan:
    """The same for validation, whose images are never changed.

    Args:
        config, row, images: as in `plan`.
        beside: bytes of the activations that have to stay on the disk too.
    """
    size = _bytes(config, row) * images
    if size + beside > config.cache.disk_gb * 1e9:
        return Plan(1, False, False, "")
    return Plan(1, True, size <= config.cache.memory_gb * 1e9, "", size)


def feature_plans(
    config: Config, row: jax.ShapeDtypeStruct, train: int, val: int, *, runs: int
) -> list[tuple[Plan, Config]]:
    """The plans of runs that train together on one set of features.

    Args:
        config: of one of the runs.
        row: what the stages before the head return for one image.
        train, val: how many images there are.
        runs: how many runs there are.

    Returns:
        A plan for each phase, one for validation after an epoch, and one for that of the result,
        with the config that says how the features are kept: a single run validates its result by
        the whole network, without rounding to `cache.dtype`.
    """
    phases = [plan(config, phase, row, train, runs=runs) for phase in config.phases]
    trained = sum({planned.views: planned.size for planned in phases}.values())
    val_plan = validation_plan(config, row, val, beside=trained)
    unrounded = config.cache.model_copy(update={"dtype": "float32"})
    exact = config.model_copy(update={"cache": unrounded})
    # The same array where nothing is rounded.
    beside = trained + (val_plan.size if exact != config else 0)
    exact_plan = validation_plan(exact, row, val, beside=beside)
    return [*((planned, config) for planned in phases), (val_plan, config), (exact_plan, exact)]


def row_spec(network: Network, stage: str, image_size: int) -> jax.ShapeDtypeStruct:
    """What the stages before `stage` return for one image: shape (1, ...) and type."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.uint8)
    return jax.eval_shape(lambda image: network(image, stop=stage), image)


def has_work(network: Network, stage: str) -> bool:
    """Whether the stages before `stage` hold parameters, so that it pays to run them once."""
    left = network.between(None, stage)
    return any(path.partition("/")[0] in left for path in split(network)[1])


@dataclasses.dataclass(frozen=True)
class FrozenPass:
    """One run of the frozen stages over every view of every image.

    Attributes:
        config: of the run.
        network: its structure, in inference.
        variables: of the network, on all devices.
        loader: the images.
        stage: the frontier.
        row: what the stages before it return for one image.
        views: of each image.
        augmentation: what makes the views.
        devices: what batches are split over.
    """

    config: Config
    network: Network
    variables: Variables
    loader: Loader
    stage: str
    row: jax.ShapeDtypeStruct
    views: int
    augmentation: Augment
    devices: Sequence[jax.Device]

    @functools.cached_property
    def metadata(self) -> dict[str, Any]:
        """All that the activations depend on; any difference makes them others."""
        spec, left = self.network.spec, set(self.network.between(None, self.stage))
        inside = {p: value for p, value in self.variables.items() if p.partition("/")[0] in left}
        changes = self.augmentation != Augment()
        return {
            "network": [spec.name, spec.width, dataclasses.astuple(spec.convention), self.stage],
            "weights": _sha256(inside),
            "data": self.loader.source.version,
            "images": [self.config.model.image_size, self.config.data.resize],
            "augment": self.augmentation.model_dump() if changes else None,
            "views": [self.views, self.config.data.seed if changes else None],
            "dtype": [self.config.dtype, self.config.cache.dtype],
            "versions": [importlib.metadata.version(name) for name in _DECIDING],
            "code": _code(),
            "device": [self.devices[0].platform, self.devices[0].device_kind],
            "precision": jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined,unused-ignore]
        }

    def run(self, store: Store) -> Generator[int]:
        """Runs the frozen stages and keeps what they return.

        Yields:
            How many images are done, after each batch.

        Raises:
            OSError: there is no room on the disk, or no right to write there.
        """
        size = self.row.shape[1:]
        dtype = jnp.dtype(self.config.cache.dtype)
        waiting: deque[tuple[Batch, list[jax.Array]]] = deque()
        done = 0
        with store.writing(self.metadata, (len(self.loader) * self.views, *size), dtype) as write:

            def take() -> int:
                batch, outputs = waiting.popleft()
                rows = np.stack([np.asarray(out).reshape(-1, *size) for out in outputs], axis=1)
                write(rows[batch.valid].astype(dtype))
                return int(batch.valid.sum())

            for pair in self._outputs():
                waiting.append(pair)
                if len(waiting) > _LAG:
                    done += take()
                    yield done
            while waiting:
                done += take()
                yield done

    def _outputs(self) -> Iterator[tuple[Batch, list[jax.Array]]]:
        """Each batch with what the frozen stages make of each view of its images."""
        graph = split(self.network)[0]
        step = make_activations_step(
            graph, self.stage, augmentation=self.augmentation, devices=self.devices
        )
        # Not the batch size of the config: runs that differ in it share activations.
        batch_size = (32 if on_cpu(self.devices) else 256) * len(self.devices)
        seed = replicate(np.int32(self.config.data.seed), self.devices)
        for batch in self.loader.once_through(batch_size).epoch(0):
            images = shard(batch, self.devices)
            numbers = [np.full_like(batch.views, view) for view in range(self.views)]
            views = [images._replace(views=shard(n, self.devices)) for n in numbers]
            yield batch, [step(self.variables, seed, view) for view in views]


def open_feed(
    planned: Plan,
    work: FrozenPass,
    store: Store,
    out: Console,
    stop: Callable[[], bool],
) -> Feed | None:
    """What a phase trains on: images, or activations that are found or made now.

    Args:
        planned: how.
        work: what would make the activations.
        store: where they are kept.
        out: the terminal.
        stop: asks whether to stop making them.

    Returns:
        The feed; None where `stop` said so.
    """
    images = Feed(work.loader, planned.views)
    if not planned.cached:
        return images
    rows = store.find(work.metadata)
    try:
        if rows is None:
            title = f"running the frozen stages up to {work.stage}"
            with (
                counter(out, title, len(work.loader)) as show,
                contextlib.closing(work.run(store)) as counts,
            ):
                for done in counts:
                    show(done)
                    if stop():
                        return None
            rows = store.find(work.metadata)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        out.print(f"not cached after all: {where}{error.strerror}")
        return images
    if rows is None:
        out.print("not cached after all: another process removed the activations")
        return images
    table = replicate(rows, work.devices) if planned.resident else None
    return Feed(work.loader, planned.views, work.stage, work.row.dtype, rows, table)


@functools.cache
def _code() -> str:
    """A hash of this package's own code, whose version does not change with every commit."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _sha256(variables: Variables) -> str:
    digest = hashlib.sha256()
    for path in sorted(variables):
        value = np.asarray(variables[path])
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _bytes(config: Config, row: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(row.shape)) * jnp.dtype(config.cache.dtype).itemsize


def _amount(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
