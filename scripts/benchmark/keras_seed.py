"""A tutorial's transfer learning in Keras, the peer of configs/seed.py; `scripts/bench.py` runs it.

    python -m benchmark.keras_seed FOLDER WEIGHTS EPOCHS [--plain]

FOLDER holds `train/` and `val/` with a folder for each class. `--plain` leaves the images as they
are. The last line is a JSON object: seconds of the parts, validation accuracy.
"""

from __future__ import annotations

import time

BEGUN = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402

import tensorflow as tf  # noqa: E402
from tensorflow.keras.preprocessing.image import ImageDataGenerator  # noqa: E402

from benchmark.keras_model import trunk  # noqa: E402
from benchmark.protocol import CLASSES  # noqa: E402

IMPORTED = time.perf_counter()
SIZE = 224


def main() -> None:
    """Trains a new head on the frozen network."""
    flags = argparse.ArgumentParser()
    flags.add_argument("folder")
    flags.add_argument("weights")
    flags.add_argument("epochs", type=int)
    flags.add_argument("--plain", action="store_true")
    given = flags.parse_args()

    changes = {"shear_range": 0.2, "zoom_range": 0.2, "horizontal_flip": True}
    reading = {"target_size": (SIZE, SIZE), "batch_size": 32, "class_mode": "sparse"}
    train = ImageDataGenerator(
        rescale=1 / 255, **({} if given.plain else changes)
    ).flow_from_directory(f"{given.folder}/train", **reading)
    val = ImageDataGenerator(rescale=1 / 255).flow_from_directory(
        f"{given.folder}/val", shuffle=False, **reading
    )
    base = trunk(given.weights, SIZE)
    base.trainable = False
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [base, layers.GlobalAveragePooling2D(), layers.Dense(CLASSES, activation="softmax")]
    )
    model.compile(
        optimizer=tf.keras.optimizers.Adam(),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    fit_begun = time.perf_counter()
    history = model.fit(train, epochs=given.epochs, validation_data=val, verbose=0).history
    done = time.perf_counter()
    metadata = {
        "import_s": IMPORTED - BEGUN,
        "epoch_s": (done - fit_begun) / given.epochs,
        "accuracy": float(history["val_accuracy"][-1]),
        "best": float(max(history["val_accuracy"])),
    }
    print(json.dumps(metadata))


if __name__ == "__main__":
    main()
