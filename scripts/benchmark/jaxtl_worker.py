"""jaxtl; `scripts/bench.py` starts it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmark.jaxtl_model import NETWORK, Training
from benchmark.protocol import CLASSES, LEARNING_RATE, Predict, Setup, Step, serve
from benchmark.roofline import peaks
from jaxtl.cli import keep_compiled_programs
from jaxtl.config.config_file import Phase
from jaxtl.data.folders import FolderSource
from jaxtl.data.loader import Batch, Loader
from jaxtl.models import build
from jaxtl.training.feature_cache import Feed
from jaxtl.training.parallel import lagging, shard


class JaxtlPeer:
    """The operations in jaxtl.

    Besides the rows of every framework there are `from:STAGE` and `cached:STAGE`: everything from
    that stage on trains, from images or from cached activations; and `data` and `data:one`: an
    epoch of steps on files, or on one batch.
    """

    def __init__(self, setup: Setup):
        keep_compiled_programs()
        self._setup = setup

    def operation(self, row: str) -> Callable[[], object]:
        """Builds what is timed."""
        if row.startswith("jpeg"):
            return self._decode
        if row in ("data", "data:one"):
            return self._fed(row == "data:one")
        training = self._training(row)
        images, labels = self._setup.batch()
        if row == "forward":
            sharded = shard(images, training.devices)
            return lambda: training.predict(sharded).block_until_ready()
        given = _given(training, row, images, labels)
        return lambda: jax.block_until_ready(training.train(*given))

    def learner(self, row: str) -> tuple[Step, Predict]:
        """A fresh network, by its training step and its inference."""
        training = self._training(row)
        activations = training.activations() if _is_cached(row) else None

        def step(images: np.ndarray, labels: np.ndarray) -> None:
            if activations is None:
                training.train(training.chunk(images, labels))
            else:
                rows = np.arange(len(labels), dtype=np.int32)
                training.train(training.chunk(rows, labels), activations(images))

        def predict(images: np.ndarray) -> np.ndarray:
            scores = np.asarray(training.predict(shard(images, training.devices)))
            return scores.reshape(-1, CLASSES)

        return step, predict

    def cost(self, row: str) -> dict[str, float]:
        """Operations and bytes of one call, as the compiler counts them."""
        training = self._training(row)
        images, labels = self._setup.batch()
        if row == "forward":
            return training.predict_cost(shard(images, training.devices))
        return training.train_cost(*_given(training, row, images, labels))

    def peaks(self, row: str) -> dict[str, float]:
        """Operations and bytes a second that this machine reaches at best."""
        return peaks("float32", side=4096, numbers=2**27)

    def _training(self, row: str) -> Training:
        steps = 6  # an epoch of the seed job, whole batches
        phase = Phase(
            name="bench",
            train=_patterns(row),
            epochs=self._setup.epochs,
            lr=LEARNING_RATE.get(row, 1e-4),
            batch_norm="train" if row == "full" else "frozen",
        )
        setup = self._setup
        cached = _is_cached(row)
        return Training(
            setup.weights, setup.image_size, phase, steps_per_epoch=steps, cached=cached
        )

    def _fed(self, one: bool) -> Callable[[], object]:
        """An epoch of frozen-trunk steps on the JPEG files, or as many steps on one batch."""
        training, feed = self._training("frozen"), Feed(self._loader(memory_bytes=1e9))
        first = next(feed.chunks(0))

        def epoch() -> None:
            chunks = feed.chunks(0)
            if one:
                chunks = itertools.repeat(first, feed.loader.steps_per_epoch)
            for chunk in lagging((shard(chunk, training.devices, axis=1) for chunk in chunks), 2):
                sums = training.train(chunk)
            jax.block_until_ready(sums)

        return epoch

    def _decode(self) -> int:
        loader = self._loader(memory_bytes=0)
        count = sum(int(batch.valid.sum()) for batch in loader.epoch(0))
        assert count == len(loader)
        return count

    def _loader(self, *, memory_bytes: float) -> Loader:
        """The JPEG files in their order."""
        setup = self._setup
        paths = tuple(sorted(path.name for path in Path(setup.jpegs).iterdir()))
        source = FolderSource(Path(setup.jpegs), paths, np.zeros(len(paths), np.int32), ("all",))
        return Loader(
            source,
            image_size=setup.image_size,
            resize="stretch",
            batch_size=setup.batch_size,
            seed=0,
            shuffle=False,
            memory_bytes=memory_bytes,
        )


def _given(
    training: Training, row: str, images: np.ndarray, labels: np.ndarray
) -> tuple[Batch, jax.Array | None]:
    """What the training step of a row is called with."""
    if not _is_cached(row):
        return training.chunk(images, labels), None
    rows = np.arange(len(labels), dtype=np.int32)
    return training.chunk(rows, labels), training.activations()(images)


def _is_cached(row: str) -> bool:
    return row == "block_14" or row.startswith("cached:")


def _patterns(row: str) -> dict[str, float]:
    """What trains."""
    if row in ("forward", "frozen"):
        return {"head/.*": 1.0}
    if row == "full":
        return {".*": 1.0}
    stage = row.rpartition(":")[2]
    stages = build(NETWORK, num_classes=CLASSES).between(stage, None)
    trained = [name for name in stages if name != "pool"]
    return {f"({'|'.join(trained)})/.*": 1.0}


if __name__ == "__main__":
    serve(JaxtlPeer)
