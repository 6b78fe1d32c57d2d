"""Runs a network over labelled images and scores it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float

from jaxtl.data.loader import Batch
from jaxtl.metrics import NONE, Evaluation, Sums
from jaxtl.models import Network, Variables, split
from jaxtl.tasks import SINGLE_LABEL, Task
from jaxtl.training import hosts
from jaxtl.training.feature_cache import Feed
from jaxtl.training.inference import NO_FLIP, Flip, make_predict_step
from jaxtl.training.parallel import lagging, shard
from jaxtl.training.stopping import Stop


class Evaluator:
    """A compiled network that takes its variables with each call.

    Args:
        network: the structure of a network with a head.
        devices: the devices, as for `shard`, of this process.
        flips: how images are mirrored; of several the probabilities are averaged.
        task: what it is to say of an image.

    Attributes:
        task: the same.
    """

    def __init__(
        self,
        network: Network,
        devices: Sequence[jax.Device],
        flips: Sequence[Flip] = (NO_FLIP,),
        task: Task = SINGLE_LABEL,
    ):
        self._devices, self._flips, self.task = devices, flips, task
        self._classes = network.num_classes or 0
        self._graph = split(network)[0]
        self._steps: dict[tuple, Callable[..., jax.Array]] = {}

    def log_probabilities(
        self, variables: Variables, feed: Feed, stop: Stop | None = None
    ) -> Iterator[tuple[Batch, Float[np.ndarray, "batch classes"]]]:
        """Yields each batch, or this host's part, with its log probabilities, padding included.

        Raises:
            Interrupted: `stop` asked for it.
        """
        key = (feed.stage, feed.dtype)
        if key not in self._steps:
            self._steps[key] = make_predict_step(
                self._graph,
                devices=self._devices,
                start=feed.stage,
                cached=feed.dtype,
                flips=self._flips,
                task=self.task,
            )
        step = self._steps[key]
        batches = feed.epoch(0)
        outputs = (
            (batch, step(variables, feed.table, shard(batch.inputs, self._devices)))
            for batch in (batches if stop is None else in_step(batches, stop))
        )
        for batch, output in lagging(outputs):
            yield batch, np.asarray(output).reshape(len(batch.labels), -1)

    def measure(
        self, variables: Variables, feed: Feed, stop: Stop | None, monitor: str | None
    ) -> dict[str, float]:
        """All metrics of the images of a feed, with what a phase monitors; see `evaluate`."""
        evaluation = self.evaluate(variables, feed, stop, monitor=monitor)
        return self.task.metrics(evaluation, self._classes, monitor)

    def evaluate(
        self,
        variables: Variables,
        feed: Feed,
        stop: Stop | None = None,
        *,
        keep_probabilities: bool = False,
        monitor: str | None = None,
    ) -> Evaluation:
        """Classifies every image of a feed once, on one host where each reads a part of it.

        Args:
            variables: the variables of the network, on all devices.
            feed: the images or activations, in the order of their source.
            stop: asks to stop between two batches, or while images are read.
            keep_probabilities: keep the probabilities of all classes too: four bytes for each image
                and class. They are kept anyway where the task or `monitor` needs them.
            monitor: what a phase monitors.

        Returns:
            The same on every host.

        Raises:
            Interrupted: `stop` asked for it.
        """
        sums, parts = NONE, []
        keep_probabilities |= self.task.needs_probabilities(monitor)
        for batch, of_batch in self.log_probabilities(variables, feed, stop):
            sums += self.task.score(of_batch, batch.labels, batch.valid)
            # The probabilities say what is predicted: one of the two is gathered.
            kept = of_batch if keep_probabilities else self.task.predicted(of_batch)
            parts.append((batch.labels, batch.valid, kept))
        gather = hosts.gather if feed.loader.parts > 1 else _alone
        loss, *counts = gather(np.array(sums, np.float64)).sum(axis=0).tolist()
        # Host by host, each with its part of every batch, becomes batch by batch.
        labels, valid, found = (
            _in_order(gather(np.stack(part))) for part in zip(*parts, strict=True)
        )
        logs = found[valid] if keep_probabilities else None
        predicted = found[valid] if logs is None else self.task.predicted(logs)
        return Evaluation(Sums(loss, *map(int, counts)), labels[valid], predicted, logs)


def _alone(array: np.ndarray) -> np.ndarray:
    return array[None]


def _in_order(gathered: np.ndarray) -> np.ndarray:
    """From (hosts, batches, images, ...) to (all images, ...), batch by batch."""
    by_batch = np.moveaxis(gathered, 0, 1)
    return by_batch.reshape(-1, *gathered.shape[3:])


def in_step(batches: Iterator[Batch], stop: Stop) -> Iterator[Batch]:
    """The batches until a signal asks to stop, or one cannot be read, on any of the hosts."""
    return (batch for batch, _ in hosts.in_step(stop.interruptible(batches)))
