"""Keras on TensorFlow; `scripts/bench.py` starts it.

A training step is `train_on_batch` of the compiled model, inference its call in a `tf.function`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmark.keras_model import trunk
from benchmark.protocol import CLASSES, LEARNING_RATE, Predict, Setup, Step, serve


class KerasPeer:
    """The operations in Keras."""

    def __init__(self, setup: Setup):
        self._setup = setup

    def operation(self, row: str) -> Callable[[], object]:
        """Builds what is timed."""
        if row.startswith("jpeg"):
            return functools.partial(self._decode, antialias=row == "jpeg_smooth")
        images, labels = (tf.constant(array) for array in self._setup.batch())
        model = self._model(row)
        if row == "forward":
            forward = _forward(model)
            return lambda: forward(images).numpy()
        return lambda: model.train_on_batch(images, labels)

    def learner(self, row: str) -> tuple[Step, Predict]:
        """A fresh model, by its training step and its inference."""
        model = self._model(row)
        forward = _forward(model)
        return model.train_on_batch, lambda images: forward(tf.constant(images)).numpy()

    def _model(self, row: str) -> keras.Model:
        size = self._setup.image_size
        base = trunk(self._setup.weights, size)
        base.trainable = row in ("full", "block_14")
        if row == "block_14":
            names = [layer.name for layer in base.layers]
            for layer in base.layers[: names.index("block_14_expand")]:
                layer.trainable = False
        inputs = keras.Input((size, size, 3), dtype="uint8")
        x = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
        # `training=False` keeps the statistics of BatchNorm, as the transfer-learning guide has it.
        x = base(x) if row == "full" else base(x, training=False)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(x))
        model.compile(
            optimizer=keras.optimizers.Adam(LEARNING_RATE[row]),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        return model

    def _decode(self, *, antialias: bool) -> int:
        size, count = self._setup.image_size, 0
        paths = sorted(str(path) for path in Path(self._setup.jpegs).iterdir())
        for batch in (
            tf.data.Dataset.from_tensor_slices(paths)
            .map(lambda path: _image(path, size, antialias), num_parallel_calls=tf.data.AUTOTUNE)
            .batch(self._setup.batch_size)
            .prefetch(tf.data.AUTOTUNE)
        ):
            count += len(batch)
        assert count == len(paths)
        return count


def _forward(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    return tf.function(lambda images: model(images, training=False))


def _image(path: tf.Tensor, size: int, antialias: bool) -> tf.Tensor:
    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
    return tf.cast(tf.image.resize(image, (size, size), antialias=antialias), np.uint8)


if __name__ == "__main__":
    serve(KerasPeer)
