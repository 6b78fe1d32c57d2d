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

_LAG = 2  # batches under way on the device while the host reads the next


class Evaluator:
    """A compiled network that takes its variables with each call.

    Args:
        network: the structure, with a head.
        devices: as for `shard`.
    """

    def __init__(self, network: Network, devices: Sequence[jax.Device]):
        self._devices = devices
        self._graph = split(network)[0]
        self._steps: dict[tuple, Callable[..., jax.Array]] = {}

    def log_probabilities(
        self, variables: Variables, feed: Feed
    ) -> Iterator[tuple[Batch, Float[np.ndarray, "batch classes"]]]:
        """Yields each batch with its log probabilities, padding included."""
        entry = (feed.stage, feed.dtype)
        if entry not in self._steps:
            self._steps[entry] = make_predict_step(
                self._graph, devices=self._devices, start=feed.stage, cached=feed.dtype
            )
        step = self._steps[entry]
        outputs = (
            (batch, step(variables, feed.table, shard(batch.inputs, self._devices)))
            for batch in feed.epoch(0)
        )
        for batch, output in lagging(outputs, _LAG):
            yield batch, np.asarray(output).reshape(len(batch.labels), -1)

    def evaluate(self, variables: Variables, feed: Feed) -> Evaluation:
        """Classifies every image of a feed once.

        Args:
            variables: of the network, on all devices.
            feed: in the order of its source.
        """
        sums, labels, predicted = NONE, [], []
        for batch, log_probabilities in self.log_probabilities(variables, feed):
            sums += score(log_probabilities, batch.labels, batch.valid)
            labels.append(batch.labels[batch.valid])
            predicted.append(log_probabilities.argmax(axis=1)[batch.valid])
        return Evaluation(sums, np.concatenate(labels), np.concatenate(predicted))
