"""The first phase of configs/mnv2.py on digits in Keras; `scripts/bench.py` runs it.

    python -m benchmark.keras_start WEIGHTS

It says when the first training step is done.
"""

from __future__ import annotations

import sys

import keras
import numpy as np
import tensorflow as tf
from keras.src.legacy.preprocessing.image import ImageDataGenerator
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from benchmark.keras_model import trunk
from benchmark.protocol import FIRST_STEP

SIZE = 96


class SayFirst(keras.callbacks.Callback):
    """Prints a line after the first batch."""

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Prints once."""
        if batch == 0:
            print(FIRST_STEP, flush=True)


def main() -> None:
    """Trains a new head on the frozen network."""
    digits = load_digits()
    pixels = np.repeat((digits.images * 255 / 16)[..., None], 3, axis=3).astype(np.float32)
    images = tf.image.resize(pixels, (SIZE, SIZE)).numpy()
    train, val, train_labels, val_labels = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    base = trunk(sys.argv[1], SIZE)
    base.trainable = False
    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3))
    x = base(layers.Rescaling(1 / 127.5, offset=-1)(inputs), training=False)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    changed = ImageDataGenerator(shear_range=5.0, zoom_range=0.1)
    model.fit(
        changed.flow(train, train_labels, batch_size=32),
        epochs=4,
        validation_data=(val, val_labels),
        callbacks=[SayFirst()],
        verbose=0,
    )


if __name__ == "__main__":
    main()
