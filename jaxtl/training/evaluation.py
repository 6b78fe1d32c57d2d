"""Runs a network over labelled images and scores it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float

from jaxtl.data.loader import Batch
from jaxtl.metrics import NONE, Evaluation, score
from jaxtl.models import Network, Variables, split
from jaxtl.training.feature_cache import Feed
from jaxtl.training.step import make_predict_step, shard

_LAG = 2  # batches under way on the device while the host reads the next


class Classifier:
    """A compiled network that takes its variables with each call.

    Args:
        network: with a head; only its structure counts.
        devices: what the batches are split over.
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
        waiting: deque = deque()
        for batch in feed.epoch(0):
            inputs = shard(batch.inputs, self._devices)
            waiting.append((batch, self._steps[entry](variables, feed.table, inputs)))
            if len(waiting) > _LAG:
                yield _fetch(*waiting.popleft())
        while waiting:
            yield _fetch(*waiting.popleft())

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


def _fetch(
    batch: Batch, log_probabilities: jax.Array
) -> tuple[Batch, Float[np.ndarray, "batch classes"]]:
    return batch, np.asarray(log_probabilities).reshape(len(batch.labels), -1)
