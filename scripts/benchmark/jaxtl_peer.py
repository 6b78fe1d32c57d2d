"""jaxtl: the compiled steps that `jaxtl.train` runs, called by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmark.protocol import CLASSES, LEARNING_RATE, WEIGHTS, Peer, Predict, Sizes, Step
from benchmark.roofline import peaks, program_cost
from jaxtl.cli import keep_compiled_programs
from jaxtl.config import Augment, Phase, everything, from_stage, head_only
from jaxtl.data.folders import FolderSource
from jaxtl.data.loader import Batch, Loader
from jaxtl.models import output_spec, split
from jaxtl.training.feature_cache import Feed
from jaxtl.training.optimizer import hyperparameters, optimizer
from jaxtl.training.parallel import AXIS, lagging, replicate, shard
from jaxtl.training.step import TrainState, make_feature_step, make_predict_step, make_train_step
from jaxtl.training.trainable import partition, running_momentum, select_trainable, training_graph
from jaxtl.weights import load_weights, plan_network

NETWORK = "mobilenet_v2"
_STEPS_PER_EPOCH = 6  # of the seed job, whole batches

Program = tuple[Callable[[], Any], Callable[[], dict[str, float]]]
"""Starts a compiled program, whose result is on its way; and counts its operations and bytes."""


class Training:
    """MobileNetV2 in a phase of training, as `jaxtl.training.loop` begins it.

    Args:
        phase: what trains.
        image_size: pixels a side.
        cached: whether training starts from the activations at the frontier.
        dtype: of the feature maps.
    """

    def __init__(self, phase: Phase, image_size: int, *, cached: bool, dtype: str):
        self.devices = jax.local_devices()
        planned = plan_network(NETWORK, num_classes=CLASSES, weights=WEIGHTS, dtype=dtype)
        network, variables, _ = load_weights(
            planned, WEIGHTS, image_size=image_size, fresh_head=True
        )
        trainable = select_trainable(network, phase.train, phase.batch_norm)
        momentum = running_momentum(phase.epochs * _STEPS_PER_EPOCH)
        stage, graph = trainable.frontier, split(network)[0]
        self.train_step: Any = make_train_step(
            training_graph(network, trainable, momentum=momentum, axis_name=AXIS),
            trainable,
            phase,
            steps_per_epoch=_STEPS_PER_EPOCH,
            augmentation=Augment(),
            cached=output_spec(network, image_size, stage).dtype if cached else None,
            devices=self.devices,
        )
        self.predict_step: Any = make_predict_step(graph, devices=self.devices)
        self._feature_step = cached and make_feature_step(
            graph, stage, augmentation=Augment(), devices=self.devices
        )
        hyper = hyperparameters(phase, 0, 0)
        parameters = {path: variables[path] for path in trainable.labels}
        moments = optimizer(phase, trainable, _STEPS_PER_EPOCH, hyper).init(parameters)
        changing, self.fixed = partition(variables, trainable.variables)
        self.state, self.fixed, self.hyper = replicate(
            (TrainState(jnp.int32(0), changing, moments), self.fixed, hyper), self.devices
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
    that stage on trains, from images or from cached activations; and `data` and `data:one`: an
    epoch of frozen-trunk steps on the JPEG files, or as many steps on one of its batches.
    """

    def __init__(self, sizes: Sizes, folder: Path, *, dtype: str = "float32"):
        keep_compiled_programs()
        super().__init__(sizes, folder)
        self._dtype = dtype

    def operation(self, row: str) -> Callable[[], object]:
        """Builds what is timed."""
        if row.startswith("jpeg"):
            return lambda: sum(int(b.valid.sum()) for b in self._loader(memory_bytes=0).epoch(0))
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
        kind, _, stage = row.rpartition(":")
        whole = {"forward": head_only(), "frozen": head_only(), "full": everything()}
        phase = Phase(
            name="bench",
            train=whole.get(row) or from_stage(stage, decay=1.0),
            epochs=self.sizes.epochs,
            lr=LEARNING_RATE.get(row, 1e-4),
            batch_norm="train" if row == "full" else "frozen",
        )
        cached = cached or row == "block_14" or kind == "cached"
        return Training(phase, self.sizes.image_size, cached=cached, dtype=self._dtype)

    def _epoch(self, *, one: bool) -> Callable[[], object]:
        training, feed = self.training("frozen"), Feed(self._loader(memory_bytes=1e9))
        first = next(feed.chunks(0))

        def epoch() -> None:
            steps = feed.loader.steps_per_epoch
            chunks = itertools.repeat(first, steps) if one else feed.chunks(0)
            for chunk in lagging((shard(chunk, training.devices, axis=1) for chunk in chunks), 2):
                sums = training.train(None, chunk)[0]()
            jax.block_until_ready(sums)

        return epoch

    def _loader(self, *, memory_bytes: float) -> Loader:
        """The JPEG files in their order."""
        paths = tuple(path.name for path in self.jpegs())
        labels = np.zeros(len(paths), np.int32)
        return Loader(
            FolderSource(self.folder / "jpegs", paths, labels, ("all",)),
            image_size=self.sizes.image_size,
            resize="stretch",
            batch_size=self.sizes.batch,
            seed=0,
            shuffle=False,
            memory_bytes=memory_bytes,
        )


def whole(inputs: np.ndarray, labels: np.ndarray) -> Batch:
    """A batch without padding."""
    rows = np.arange(len(labels), dtype=np.int32)
    return Batch(inputs, labels, np.ones(len(labels), bool), rows, np.zeros_like(rows))
