"""jaxtl: the compiled steps that `jaxtl.train` runs, called by hand."""

from __future__ import annotations

import itertools
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from benchmark.protocol import CLASSES, LEARNING_RATE, WEIGHTS, Peer, Predict, Sizes, Step
from jaxtl.cli import keep_compiled_programs
from jaxtl.config import Augment, Config, Data, Model, Phase, everything, from_stage, head_only
from jaxtl.data.folders import FileSource
from jaxtl.data.loader import Batch, Loader
from jaxtl.data.packing import pack
from jaxtl.data.sources import Source, open_all
from jaxtl.models import output_spec, split
from jaxtl.training.feature_cache import Feed
from jaxtl.training.inference import make_feature_step, make_predict_step
from jaxtl.training.optimizer import hyperparameters
from jaxtl.training.parallel import lagging, replicate, shard
from jaxtl.training.phase import begin_phase
from jaxtl.training.setup import loader, plan_run, pretrained

NETWORK = "mobilenet_v2"
_STEPS_PER_EPOCH = 6  # of the seed job, whole batches

Program = tuple[Callable[[], Any], Callable[[], dict[str, float]]]
"""Starts a compiled program, whose result is on its way; and counts its operations and bytes."""


class Training:
    """The one phase of a config, as `jaxtl.training.loop` begins it.

    Args:
        config: the config of a run.
        cached: whether training starts from the activations at the frontier.
    """

    def __init__(self, config: Config, *, cached: bool):
        self.devices, (phase,) = jax.local_devices(), config.phases
        network, (trainable,) = plan_run(config, CLASSES)
        network, variables, _ = pretrained(config, network)
        stage, graph = trainable.frontier, split(network)[0]
        row = output_spec(network, config.model.image_size, stage)
        self.train_step, self.state, self.fixed, self.hyper = begin_phase(
            *(network, trainable, phase, variables, hyperparameters(phase, 0, 0)),
            steps_per_epoch=_STEPS_PER_EPOCH,
            devices=self.devices,
            cached=row.dtype if cached else None,
        )
        self.predict_step: Any = make_predict_step(graph, devices=self.devices)
        self._feature_step = cached and make_feature_step(
            graph, stage, augmentation=Augment(), devices=self.devices
        )

    def inputs(self, images: np.ndarray, labels: np.ndarray) -> tuple[jax.Array | None, Batch]:
        """A batch where training begins: a table of activations and its rows, or just images."""
        if not self._feature_step:
            return None, self.chunk(images, labels)
        batch = shard(whole(images, labels), self.devices)
        zero = replicate(np.int32(0), self.devices)
        made = self._feature_step(self.fixed | self.state.variables, zero, batch)
        table = replicate(made.reshape(-1, *made.shape[2:]), self.devices)
        return table, self.chunk(np.arange(len(labels), dtype=np.int32), labels)

    def chunk(self, inputs: np.ndarray, labels: np.ndarray, *, steps: int = 1) -> Batch:
        """The same batch for some steps in one call."""
        batches = jax.tree.map(lambda x: np.stack([x] * steps), whole(inputs, labels))
        return shard(batches, self.devices, axis=1)

    def train(self, table: jax.Array | None, chunk: Batch) -> Program:
        """The training step on what `inputs` returns."""

        def step() -> Any:
            self.state, sums = self.train_step(self.state, self.fixed, table, self.hyper, chunk)
            return sums

        given = (self.state, self.fixed, table, self.hyper, chunk)
        return step, partial(program_cost, self.train_step, *given)

    def predict(self, images: np.ndarray) -> Program:
        """Inference on images (B, H, W, 3): log probabilities (D, B / D, classes)."""
        given = (self.fixed | self.state.variables, None, shard(images, self.devices))
        return partial(self.predict_step, *given), partial(program_cost, self.predict_step, *given)


class JaxtlPeer(Peer):
    """The operations in jaxtl.

    Besides the rows of every framework there are `from:STAGE` and `cached:STAGE`: everything from
    that stage on trains, from images or from cached activations; `data` and `data:one`: an epoch of
    frozen-trunk steps on the JPEG files, or as many steps on one of its batches; and `packed`: the
    JPEG files, packed at the size of the network's images.
    """

    model, dtype = Model(name=NETWORK, weights=WEIGHTS, dropout=0.0), "float32"

    def __init__(self, sizes: Sizes, folder: Path):
        keep_compiled_programs()
        super().__init__(sizes, folder)

    def operation(self, row: str) -> Callable[[], object]:
        """Builds what is timed."""
        if row.startswith("jpeg") or row == "packed":
            source = self._packed() if row == "packed" else self._files()
            return lambda: sum(int(b.valid.sum()) for b in self._loader(source, 0).epoch(0))
        if row.startswith("data"):
            return self._epoch(one=row == "data:one")
        start, _ = self.program(row)
        return lambda: jax.block_until_ready(start())

    def learner(self, row: str) -> tuple[Step, Predict]:
        """A fresh network: its training step, and its inference."""
        training = self.training(row)

        def predict(images: np.ndarray) -> np.ndarray:
            return np.asarray(training.predict(images)[0]()).reshape(-1, CLASSES)

        return lambda *batch: training.train(*training.inputs(*batch))[0](), predict

    def program(self, row: str) -> Program:
        """What a row runs on its batch."""
        training, (images, labels) = self.training(row), self.batch()
        if row == "forward":
            return training.predict(images)
        return training.train(*training.inputs(images, labels))

    def cost(self, row: str) -> dict[str, float]:
        """Operations and bytes of one call, as the compiler counts them."""
        return self.program(row)[1]()

    def peaks(self) -> dict[str, float]:
        """Operations and bytes a second that this machine reaches at best."""
        return peaks("float32", side=4096, numbers=2**27)

    def training(self, row: str, *, cached: bool = False) -> Training:
        """A fresh network in the phase of a row."""
        cached = cached or row == "block_14" or row.startswith("cached:")
        return Training(self._config(row), cached=cached)

    def _config(self, row: str, memory_gb: float = 0.0) -> Config:
        stage, sizes = row.rpartition(":")[2], self.sizes
        whole = {"forward": head_only(), "frozen": head_only()}
        whole |= dict.fromkeys(("full", "full_frozen"), everything())
        phase = Phase(
            name="bench",
            train=whole.get(row) or from_stage(stage, decay=1.0),
            epochs=sizes.epochs,
            lr=LEARNING_RATE.get(row, 1e-4),
            batch_norm="train" if row == "full" else "frozen",
        )
        return Config(
            model=self.model.model_copy(update={"image_size": sizes.image_size}),
            data=Data(source="digits", batch_size=sizes.batch, memory_gb=memory_gb),
            phases=(phase,),
            dtype=self.dtype,
        )

    def _files(self) -> Source:
        """The JPEG files in their order."""
        names = tuple(path.name for path in self.jpegs())
        return FileSource(
            self.folder / "jpegs", names, np.zeros(len(names), np.int32), classes=("all",)
        )

    def _packed(self) -> Source:
        """The same, packed, which takes class folders."""
        classes, packed = self.folder / "classes", self.folder / "packed"
        classes.mkdir()
        (classes / "all").symlink_to(self.folder / "jpegs")
        pack(str(classes), packed, side=self.sizes.image_size)
        return open_all(f"tfds:{packed}")

    def _loader(self, source: Source, memory_gb: float) -> Loader:
        return loader(source, self._config("frozen", memory_gb), shuffle=False)

    def _epoch(self, *, one: bool) -> Callable[[], object]:
        training, feed = self.training("frozen"), Feed(self._loader(self._files(), memory_gb=1))
        first, steps = next(feed.chunks(0)), feed.loader.steps_per_epoch

        def epoch() -> None:
            chunks = itertools.repeat(first, steps) if one else feed.chunks(0)
            for chunk in lagging((shard(chunk, training.devices, axis=1) for chunk in chunks), 2):
                sums = training.train(None, chunk)[0]()
            jax.block_until_ready(sums)

        return epoch


def whole(inputs: np.ndarray, labels: np.ndarray) -> Batch:
    """A batch without padding."""
    rows = np.arange(len(labels), dtype=np.int32)
    return Batch(inputs, labels, np.ones(len(labels), bool), rows, np.zeros_like(rows))


def program_cost(function: Any, *given: Any) -> dict[str, float]:
    """The operations and the bytes of a call, as XLA counts them.

    Its bytes are what its fused operations read and write, whether or not a cache holds them. XLA
    counts the body of a loop once; here it counts as often as it runs.

    Args:
        function: made by `jax.jit` or `jax.pmap`.
        given: its arguments.
    """
    cost = _counted(function.lower(*given))
    if jax.default_backend() == "cpu":  # elsewhere the programs of jaxtl have no such loops
        for length, body in _loops(jax.make_jaxpr(function)(*given).jaxpr):
            shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in body.in_avals]
            run = jax.jit(jaxpr_as_fun(body))
            once, whole = _counted(run.lower(*shapes)), program_cost(run, *shapes)
            cost = {key: cost[key] - once[key] + length * whole[key] for key in cost}
    return cost


def peaks(dtype: str, *, side: int, numbers: int) -> dict[str, float]:
    """The most operations and bytes a second of the first device, the fastest of ten calls.

    Args:
        dtype: the type of the matrices.
        side: the side of the square matrices that are multiplied.
        numbers: float32 numbers to read and to write; more than the caches hold.
    """
    matrix, product = jnp.ones((side, side), dtype), jax.jit(jnp.matmul)
    # In place: memory that was never touched before would be measured too.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = add(jnp.zeros(numbers, jnp.float32))

    def multiply() -> None:
        product(matrix, matrix).block_until_ready()

    def move() -> None:
        nonlocal array
        array = add(array).block_until_ready()

    multiply()
    multiplying, moving = (
        min(timeit.repeat(call, number=1, repeat=10)) for call in (multiply, move)
    )
    return {"flops": 2 * side**3 / multiplying, "bytes": 2 * 4 * numbers / moving}


def _counted(lowered: jax.stages.Lowered) -> dict[str, float]:
    counted: Any = lowered.compile().cost_analysis()
    return {"flops": float(counted["flops"]), "bytes": float(counted["bytes accessed"])}


def _loops(jaxpr: Jaxpr) -> Iterator[tuple[int, ClosedJaxpr]]:
    """The outermost loops that run more than once: how often, and their bodies."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] > 1:
            yield equation.params["length"], equation.params["jaxpr"]
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    yield from _loops(getattr(inner, "jaxpr", inner))
