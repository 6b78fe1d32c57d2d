"""The pieces that `jaxtl.training.loop` puts together for a phase, to be run by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmark.protocol import CLASSES
from benchmark.roofline import program_cost
from jaxtl.config.config_file import Augment, Phase
from jaxtl.data.loader import Batch
from jaxtl.metrics import Sums
from jaxtl.models import build, output_spec, split
from jaxtl.training.optimizer import hyperparameters, optimizer
from jaxtl.training.parallel import AXIS, replicate, shard
from jaxtl.training.step import (
    TrainState,
    make_feature_step,
    make_predict_step,
    make_train_step,
)
from jaxtl.training.trainable import partition, running_momentum, select_trainable, training_graph
from jaxtl.weights import create

NETWORK = "mobilenet_v2"


class Training:
    """A phase of training, fed by hand: each call is what the loop does with a batch.

    Args:
        weights: the Keras file.
        image_size: pixels a side.
        phase: what trains.
        steps_per_epoch: of the phase's schedule.
        cached: whether training starts from the activations at the frontier.
        dtype: of the feature maps.
    """

    def __init__(
        self,
        weights: str,
        image_size: int,
        phase: Phase,
        *,
        steps_per_epoch: int,
        cached: bool = False,
        dtype: str = "float32",
    ):
        self.devices = jax.local_devices()
        network = build(NETWORK, num_classes=CLASSES, dtype=dtype)
        loaded, _ = create(
            NETWORK, num_classes=CLASSES, weights=weights, image_size=image_size, fresh_head=True
        )
        variables = split(loaded)[1]
        trainable = select_trainable(network, phase.train, phase.batch_norm)
        self.frontier = trainable.frontier
        self._graph = split(network)[0]
        momentum = running_momentum(phase.epochs * steps_per_epoch)
        row = output_spec(network, image_size, trainable.frontier)
        self.step = make_train_step(
            training_graph(network, trainable, momentum=momentum, axis_name=AXIS),
            trainable,
            phase,
            steps_per_epoch=steps_per_epoch,
            augmentation=Augment(),
            cached=row.dtype if cached else None,
            devices=self.devices,
        )
        self._predict = make_predict_step(self._graph, devices=self.devices)
        hyper = hyperparameters(phase, 0, 0)
        parameters = {path: variables[path] for path in trainable.labels}
        state = optimizer(phase, trainable, steps_per_epoch, hyper).init(parameters)
        changing, fixed = partition(variables, trainable.variables)
        self._state = self._everywhere(TrainState(jnp.int32(0), changing, state))
        self._fixed, self._hyper = self._everywhere(fixed), self._everywhere(hyper)

    @property
    def variables(self) -> dict[str, jax.Array]:
        """All of them, as they are now."""
        return self._fixed | self._state.variables

    def train(self, chunk: Batch, table: jax.Array | None = None) -> Sums:
        """Trains on a chunk from `chunk`; the sums of its batches, on their way."""
        self._state, sums = self.step(self._state, self._fixed, table, self._hyper, chunk)
        return sums

    def train_cost(self, chunk: Batch, table: jax.Array | None = None) -> dict[str, float]:
        """Operations and bytes of `train`."""
        return program_cost(self.step, self._state, self._fixed, table, self._hyper, chunk)

    def predict(self, images: jax.Array) -> jax.Array:
        """Log probabilities (D, B / D, classes) of sharded images (D, B / D, H, W, 3)."""
        return self._predict(self.variables, None, images)

    def predict_cost(self, images: jax.Array) -> dict[str, float]:
        """Operations and bytes of `predict`."""
        return program_cost(self._predict, self.variables, None, images)

    def activations(self) -> Callable[[np.ndarray], jax.Array]:
        """The frozen stages: images (B, H, W, 3) -> a table (B, ...), on all devices."""
        step = make_feature_step(
            self._graph, self.frontier, augmentation=Augment(), devices=self.devices
        )
        seed = self._everywhere(np.int32(0))

        def run(images: np.ndarray) -> jax.Array:
            labels = np.zeros(len(images), np.int32)
            made = step(self.variables, seed, shard(batch(images, labels), self.devices))
            return self._everywhere(made.reshape(-1, *made.shape[2:]))

        return run

    def chunk(self, inputs: np.ndarray, labels: np.ndarray, *, steps: int = 1) -> Batch:
        """The same batch some times over, where the devices want it."""
        one = batch(inputs, labels)
        return shard(jax.tree.map(lambda x: np.stack([x] * steps), one), self.devices, axis=1)

    def _everywhere(self, tree: Any) -> Any:
        return replicate(tree, self.devices)


def batch(inputs: np.ndarray, labels: np.ndarray) -> Batch:
    """A batch without padding."""
    count = len(labels)
    rows = np.arange(count, dtype=np.int32)
    return Batch(inputs, labels, np.ones(count, bool), rows, np.zeros(count, np.int32))
