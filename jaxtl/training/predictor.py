"""A trained run, ready to classify images."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from jaxtl.config import Augment
from jaxtl.data.folders import FileSource
from jaxtl.data.loader import Batch, Loader
from jaxtl.data.sources import ArraySource, Source
from jaxtl.data.splits import open_splits
from jaxtl.errors import UserError
from jaxtl.metrics import Evaluation
from jaxtl.models import Network, merge, split, structure
from jaxtl.multilabel import DEFAULT_THRESHOLD
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.directory import RunDirectory
from jaxtl.tasks import MULTI_LABEL, task_named
from jaxtl.training.evaluation import Evaluator
from jaxtl.training.feature_cache import Feed
from jaxtl.training.inference import NO_FLIP, Flip
from jaxtl.training.parallel import replicate


class Predictor:
    """A trained run: images in, probabilities out.

    Args:
        directory: the directory of the run.
        dtype: `float32` or `bfloat16`: the type of the feature maps; None for that of the run.
        tta: test-time augmentation: average the probabilities of an image and of its mirror images,
            by the flips that the run trained with.

    Attributes:
        name: that of the directory.
        classes: the names of the classes, in the order of the probabilities.
        task: what the probabilities are of: one class of each image, or several labels.
        thresholds: of several labels the probability from which on an image has each, (C,), 0.5
            where none was chosen; None of one class.
        config: the config of the run.
        metadata: data, weights, versions and result of the run.
        unfinished: how far a run came that has not ended, in words; None for one that has.

    Raises:
        UserError: there is no run, it is damaged, or it has no checkpoint yet; or with `tta`, it
            trained without flips.
    """

    def __init__(self, directory: str | Path, *, dtype: str | None = None, tta: bool = False):
        run = RunDirectory(Path(directory))
        self._directory, self.name = directory, run.path.resolve().name
        self.config = run.config()
        self.metadata = run.metadata()
        self.classes = self.metadata.classes
        self.task, self.thresholds = task_named(self.metadata.task), None
        if self.task is MULTI_LABEL:
            chosen = self.metadata.thresholds
            self.thresholds = np.asarray([chosen.get(n, DEFAULT_THRESHOLD) for n in self.classes])
        self._devices = jax.local_devices()
        model = self.config.model
        network = structure(
            model.name,
            num_classes=len(self.classes),
            width=model.width,
            convention=self.metadata.convention,
            dtype=dtype or self.config.dtype,
        )
        self._graph, shapes = split(network)
        with contextlib.closing(Checkpoints(run.checkpoints, read_only=True)) as checkpoints:
            newest = checkpoints.newest()
            if newest is None:
                raise UserError(f"{directory} has no checkpoint: its first epoch is not complete")
            phase = run.phase(newest.phase)
            number = newest.result_number(phase)
            variables = checkpoints.variables(number, shapes)
        self.unfinished: str | None = None
        if self.metadata.result is None:
            which = "best" if number == newest.best_number else "newest"
            self.unfinished = (
                f"{newest.epoch} of {phase.epochs} epochs of phase {phase.name} are complete, and "
                f"its {which} variables so far are taken"
            )
        self._variables = replicate(variables, self._devices)
        flips = _flips(self.config.augment) if tta else [NO_FLIP]
        self._evaluator = Evaluator(network, self._devices, flips, self.task)

    @property
    def network(self) -> Network:
        """The network with its trained variables."""
        return merge(self._graph, self._variables)

    def images(self, split: Literal["train", "val", "test"]) -> Source:
        """The labelled images that the run was trained on, validated on, or tested on.

        Raises:
            UserError: the run has no such images, they cannot be read, or have changed.
        """
        where, known = self.metadata.source, getattr(self.metadata.data, split)
        if known is None:
            raise UserError(
                "the run has no images for a test: train one with a folder test/ beside "
                "train/, or with --cfg.data.test_fraction=0.2, or name other images by --data"
            )
        there = self.config.data.model_copy(update={"source": where})
        source = getattr(open_splits(there), split)
        if source is None or source.fingerprint != known.sha256:
            raise UserError(
                f"{where} changed since the run, or an older version of jaxtl wrote it; put it "
                "back as it was, or measure the run on what is there: "
                f"python -m jaxtl.evaluate --run {self._directory} --data {where}"
            )
        return source

    def evaluate(self, source: Source, *, keep_probabilities: bool = False) -> Evaluation:
        """Classifies every image of a labelled source once.

        Args:
            source: the images.
            keep_probabilities: as for `Evaluator.evaluate`.

        Raises:
            UserError: an image cannot be read or decoded; the message names it.
        """
        feed = Feed(self.loader(source))
        return self._evaluator.evaluate(
            self._variables, feed, keep_probabilities=keep_probabilities
        )

    def predict(
        self,
        images: str | Path | Sequence[str | Path] | np.ndarray,
    ) -> Float[np.ndarray, "images classes"]:
        """The probability of each class for each image.

        Args:
            images: a path to an image file, several of them, or an array (N, H, W, 3), uint8, RGB,
                0..255.

        Returns:
            Probabilities (N, C), float32; each row adds up to 1, but of several labels each number
            stands for itself: `labels_of` gives those that reach their thresholds.

        Raises:
            UserError: a file is missing or is not an image, and the message names it; or an array
                has another shape or type.
        """
        source = _unlabelled([images] if isinstance(images, str | Path) else images)
        if not len(source):
            return np.zeros((0, len(self.classes)), np.float32)
        batches = self.log_probabilities(source)
        return np.concatenate([np.exp(logs)[batch.valid] for batch, logs in batches])

    def labels_of(
        self, probabilities: Float[np.ndarray, "images classes"]
    ) -> list[tuple[str, ...]]:
        """The labels of each image: the likeliest class, or all that reach their thresholds.

        Args:
            probabilities: from `predict`.
        """
        if self.thresholds is None:
            return [(self.classes[index],) for index in probabilities.argmax(axis=1)]
        chosen = probabilities >= self.thresholds
        return [tuple(self.classes[i] for i in row.nonzero()[0]) for row in chosen]

    def log_probabilities(
        self, source: Source
    ) -> Iterator[tuple[Batch, Float[np.ndarray, "batch classes"]]]:
        """Yields the decoded images of a source in batches, with their log probabilities.

        Raises:
            UserError: an image cannot be read or decoded; the message names it.
        """
        return self._evaluator.log_probabilities(self._variables, Feed(self.loader(source)))

    def loader(self, source: Source) -> Loader:
        """Decodes the images of a source as the run did, in their order."""
        # A multiple of the devices of this machine; the run may have trained on others.
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
            retry_seconds=self.config.data.retry_seconds,
        )


def load_run(directory: str | Path, *, tta: bool = False) -> Predictor:
    """Loads a trained run from its directory alone.

    Args:
        directory: the directory that `--workdir` named.
        tta: test-time augmentation, see `Predictor`.

    Raises:
        UserError: as `Predictor`.
    """
    return Predictor(directory, tta=tta)


def _flips(config: Augment) -> list[Flip]:
    """All mirror images that training made, the image itself first."""
    rows, columns = (
        (False, True)[: 1 + made] for made in (config.vertical_flip, config.horizontal_flip)
    )
    flips = list(itertools.product(rows, columns))
    if flips == [NO_FLIP]:
        raise UserError(
            "the run trained without flips, so there is nothing to average; leave --tta out"
        )
    return flips


def _unlabelled(images: Sequence[str | Path] | np.ndarray) -> Source:
    labels = np.zeros(len(images), np.int32)
    if not isinstance(images, np.ndarray):
        return FileSource(Path(), tuple(map(str, images)), labels, classes=())
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(
            f"predict takes no {images.dtype} array of shape {images.shape}: give images as uint8 "
            "(N, H, W, 3); for one image: image[None]"
        )
    return ArraySource("images", images, labels, classes=())
