"""A network with its variables, ready to classify: for validation, and for a run's later use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8

from jaxtl.data.folders import FolderSource
from jaxtl.data.loader import Loader
from jaxtl.data.sources import ArraySource, Source
from jaxtl.errors import UserError
from jaxtl.metrics import Evaluation
from jaxtl.models import Network, build, merge, split
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.directory import RunDirectory
from jaxtl.training.evaluation import Classifier
from jaxtl.training.feature_cache import Feed
from jaxtl.training.step import replicate

_LAG = 2  # batches under way on the device while the host reads the next


class Predictor:
    """A trained run: images in, probabilities out.

    Attributes:
        classes: the names of the classes, in the order of the probabilities.
        config: the run's config.
        metadata: what `run.json` holds.
    """

    def __init__(self, directory: str | Path):
        """Reads a run.

        Raises:
            UserError: there is no run, or it has no checkpoint yet.
        """
        run = RunDirectory(Path(directory))
        self.config = run.config()
        self.metadata = run.metadata()
        self.classes = tuple(self.metadata["classes"])
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
        """Classifies every image of a labelled source once."""
        return self._classifier.evaluate(self._variables, Feed(self._loader(source)))

    def predict(
        self,
        images: str | Path | Sequence[str | Path] | UInt8[np.ndarray, "images height width 3"],
    ) -> Float[np.ndarray, "images classes"]:
        """The probability of each class for each image.

        Args:
            images: one path or several to image files, or an array (N, H, W, 3), RGB, 0..255,
                uint8.

        Returns:
            Probabilities (N, C), float32; each row adds up to 1.

        Raises:
            UserError: a file is missing or is no image; it is named.
        """
        source = _unlabelled([images] if isinstance(images, str | Path) else images)
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


def _unlabelled(images: Sequence[str | Path] | np.ndarray) -> Source:
    labels = np.zeros(len(images), np.int32)
    if isinstance(images, np.ndarray):
        return ArraySource("images", images, labels, classes=())
    return FolderSource(Path(), tuple(map(str, images)), labels, classes=())
