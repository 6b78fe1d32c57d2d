"""A network with its variables, ready to classify: for validation, and for a run's later use."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxtl.checkpoint import Checkpoints
from jaxtl.data.folders import FolderSource
from jaxtl.data.loader import Batch, Loader
from jaxtl.data.sources import ArraySource, Source
from jaxtl.errors import UserError
from jaxtl.frontier import Feed
from jaxtl.metrics import NONE, Sums, score
from jaxtl.models import Network, Variables, build, merge, split
from jaxtl.run import RunDirectory
from jaxtl.steps import make_predict_step, replicate, shard

_LAG = 2  # batches under way on the device while the host reads the next


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a network makes of labelled pictures.

    Attributes:
        sums: exact, over every picture once.
        labels: the right classes, in the order of the source.
        predicted: the likeliest classes.
    """

    sums: Sums
    labels: Int[np.ndarray, "pictures"]
    predicted: Int[np.ndarray, "pictures"]


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
        """Classifies every picture of a feed once.

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


class Predictor:
    """A trained run: pictures in, probabilities out.

    Attributes:
        classes: the names of the classes, in the order of the probabilities.
        config: the run's config.
        facts: what `run.json` holds.
    """

    def __init__(self, directory: str | Path):
        """Reads a run.

        Raises:
            UserError: there is no run, or it has no checkpoint yet.
        """
        run = RunDirectory(Path(directory))
        self.config = run.config()
        self.facts = run.facts()
        self.classes = tuple(self.facts["classes"])
        self._devices = jax.local_devices()
        model = self.config.model
        network = build(
            model.name,
            num_classes=len(self.classes),
            width=model.width,
            convention=run.convention(),
            dtype=self.config.dtype,
        )
        checkpoints = Checkpoints(run.checkpoints, read_only=True)
        newest = checkpoints.newest()
        if newest is None:
            raise UserError(f"{directory} has no checkpoint: its first epoch is not complete")
        best = newest.best_step if self.config.phases[newest.phase].restore_best else None
        step = newest.step if best is None else best
        variables = checkpoints.variables(step, split(network)[1])
        checkpoints.close()
        self._variables = replicate(variables, self._devices)
        self._graph = split(network)[0]
        self._classifier = Classifier(network, self._devices)

    @property
    def network(self) -> Network:
        """The network with the variables that it classifies with."""
        return merge(self._graph, self._variables)

    def evaluate(self, source: Source) -> Evaluation:
        """Classifies every picture of a labelled source once."""
        return self._classifier.evaluate(self._variables, Feed(self._loader(source)))

    def predict(
        self,
        pictures: str | Path | Sequence[str | Path] | UInt8[np.ndarray, "pictures height width 3"],
    ) -> Float[np.ndarray, "pictures classes"]:
        """The probability of each class for each picture.

        Args:
            pictures: one path or several to picture files, or an array (N, H, W, 3), RGB, 0..255,
                uint8.

        Returns:
            Probabilities (N, C), float32; each row adds up to 1.

        Raises:
            UserError: a file is missing or is no picture; it is named.
        """
        source = _unlabelled([pictures] if isinstance(pictures, str | Path) else pictures)
        if not len(source):
            return np.zeros((0, len(self.classes)), np.float32)
        feed = Feed(self._loader(source))
        batches = self._classifier.log_probabilities(self._variables, feed)
        return np.concatenate([np.exp(logs)[batch.valid] for batch, logs in batches])

    def _loader(self, source: Source) -> Loader:
        # A batch size that divides by the devices here, which need not be those of the training.
        devices = len(self._devices)
        batch_size = -(-min(self.config.data.batch_size, len(source)) // devices) * devices
        return Loader(
            source,
            image_size=self.config.model.image_size,
            resize=self.config.data.resize,
            batch_size=batch_size,
            seed=0,
            shuffle=False,
            memory_bytes=0,
        )


def load_run(directory: str | Path) -> Predictor:
    """Loads a trained run from its directory alone.

    Args:
        directory: what `--workdir` named.

    Raises:
        UserError: there is no run, or it has no checkpoint yet.
    """
    return Predictor(directory)


def _unlabelled(pictures: Sequence[str | Path] | np.ndarray) -> Source:
    labels = np.zeros(len(pictures), np.int32)
    if isinstance(pictures, np.ndarray):
        return ArraySource("pictures", pictures, labels, classes=())
    return FolderSource(Path(), tuple(map(str, pictures)), labels, classes=())
