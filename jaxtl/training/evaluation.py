"""Runs a network over labelled images and scores it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float

from jaxtl.data.loader import Batch
from jaxtl.metrics import NONE, Evaluation, score
from jaxtl.models import Network, Variables, split
from jaxtl.training.feature_cache import Feed
from jaxtl.training.parallel import lagging, shard
from jaxtl.training.step import make_predict_step
from jaxtl.training.stopping import Stop


class Evaluator:
    """A compiled network that takes its variables with each call.

    Args:
        network: the structure of a network with a head.
        devices: the devices, as for `shard`.
    """

    def __init__(self, network: Network, devices: Sequence[jax.Device]):
        self._devices = devices
        self._graph = split(network)[0]
        self._steps: dict[tuple, Callable[..., jax.Array]] = {}

    def log_probabilities(
        self, variables: Variables, feed: Feed, stop: Stop | None = None
    ) -> Iterator[tuple[Batch, Float[np.ndarray, "batch classes"]]]:
        """Yields each batch with its log probabilities, padding included.

        Raises:
            Interrupted: `stop` asked for it.
        """
        key = (feed.stage, feed.dtype)
        if key not in self._steps:
            self._steps[key] = make_predict_step(
                self._graph, devices=self._devices, start=feed.stage, cached=feed.dtype
            )
        step = self._steps[key]
        batches = feed.epoch(0)
        outputs = (
            (batch, step(variables, feed.table, shard(batch.inputs, self._devices)))
            for batch in (batches if stop is None else stop.interruptible(batches))
        )
        for batch, output in lagging(outputs):
            yield batch, np.asarray(output).reshape(len(batch.labels), -1)

    def evaluate(self, variables: Variables, feed: Feed, stop: Stop | None = None) -> Evaluation:
        """Classifies every image of a feed once.

        Args:
            variables: the variables of the network, on all devices.
            feed: the images or activations, in the order of their source.
            stop: asks to stop between two batches, or while images are read.

        Raises:
            Interrupted: `stop` asked for it.
        """
        sums, labels, predicted = NONE, [], []
        for batch, log_probabilities in self.log_probabilities(variables, feed, stop):
            sums += score(log_probabilities, batch.labels, batch.valid)
            labels.append(batch.labels[batch.valid])
            predicted.append(log_probabilities.argmax(axis=1)[batch.valid])
        return Evaluation(sums, np.concatenate(labels), np.concatenate(predicted))
