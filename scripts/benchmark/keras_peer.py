"""Keras on TensorFlow: `train_on_batch` of a compiled model, inference in a `tf.function`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from benchmark.protocol import CLASSES, LEARNING_RATE, Peer, Predict, Step

ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator


def classifier(
    folder: Path,
    size: int,
    *,
    row: str = "frozen",
    rescale: bool = True,
    dropout: float = 0.0,
    dtype: str = "float32",
) -> keras.Model:
    """MobileNetV2 with a new head, compiled, on images (size, size, 3).

    Args:
        folder: the folder of the weights.
        size: pixels a side.
        row: the stages that train: `full`, `full_frozen` (all, with frozen statistics), `block_14`
            (from there up), or just the head.
        rescale: take images with values 0..255; otherwise they are in the network's range.
        dropout: fraction of the features that training drops.
        dtype: the type of the images.
    """
    trunk = keras.applications.MobileNetV2(
        input_shape=(size, size, 3), include_top=False, weights=folder / "keras.weights.h5"
    )
    trunk.trainable = row in ("full", "full_frozen", "block_14")
    if row == "block_14":
        names = [layer.name for layer in trunk.layers]
        for layer in trunk.layers[: names.index("block_14_expand")]:
            layer.trainable = False
    layers = keras.layers
    inputs = keras.Input((size, size, 3), dtype=dtype)
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs) if rescale else inputs
    # `training=False` keeps the statistics of BatchNorm, as the transfer-learning guide has it.
    x = trunk(x) if row == "full" else trunk(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(dropout)(x) if dropout else x
    model = keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(x))
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE[row]),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


class KerasPeer(Peer):
    """The operations in Keras."""

    def operation(self, row: str) -> Callable[[], object]:
        """Builds what is timed."""
        if row.startswith("jpeg"):
            batches = self._batches(antialias=row == "jpeg_smooth")
            return lambda: [len(batch) for batch in batches]
        images, labels = map(tf.constant, self.batch())
        model = self._model(row)
        if row == "forward":
            forward = _forward(model)
            return lambda: forward(images).numpy()
        return lambda: model.train_on_batch(images, labels)

    def learner(self, row: str) -> tuple[Step, Predict]:
        """A fresh model: its training step, and its inference."""
        model = self._model(row)
        forward = _forward(model)
        return model.train_on_batch, lambda images: forward(tf.constant(images)).numpy()

    def _model(self, row: str) -> keras.Model:
        return classifier(self.folder, self.sizes.image_size, row=row, dtype="uint8")

    def _batches(self, *, antialias: bool) -> tf.data.Dataset:
        size = self.sizes.image_size

        def image(path: tf.Tensor) -> tf.Tensor:
            pixels = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
            return tf.cast(tf.image.resize(pixels, (size, size), antialias=antialias), tf.uint8)

        return (
            tf.data.Dataset.from_tensor_slices([str(path) for path in self.jpegs()])
            .map(image, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(self.sizes.batch)
            .prefetch(tf.data.AUTOTUNE)
        )


def _forward(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    return tf.function(lambda images: model(images, training=False))
