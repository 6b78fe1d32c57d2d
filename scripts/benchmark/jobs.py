"""Whole processes that are no command of jaxtl.

    python -m benchmark.jobs jaxtl_start --cfg FILE ...
    python -m benchmark.jobs single_runs COUNT EPOCHS WEIGHTS FOLDER
    python -m benchmark.jobs keras_seed FOLDER EPOCHS [plain]
    python -m benchmark.jobs keras_start FOLDER

FOLDER of the last two holds what `inputs.Inputs` wrote. Each function imports its framework itself.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

FIRST_STEP = "the first step is done"


def jaxtl_start(*flags: str) -> None:
    """`jaxtl.train`, which prints `FIRST_STEP` when the loop has the sums of its first steps."""
    from jaxtl import cli

    cli.use_large_pages()  # as the command does before it imports jax
    from jaxtl import train
    from jaxtl.console import EpochProgress

    show = EpochProgress.batches

    def say_and_show(*arguments: Any) -> None:
        print(FIRST_STEP, flush=True)
        show(*arguments)

    EpochProgress.batches = say_and_show
    cli.run(train.main, flags)


def single_runs(count: str, epochs: str, weights: str, folder: str) -> None:
    """Trains the first variations of configs/sweep_heads.py, each as `jaxtl.train` would."""
    from jaxtl import cli
    from jaxtl.console import console
    from jaxtl.sweeps.variations import load_sweep
    from jaxtl.training.setup import open_data, train

    cli.keep_compiled_programs()
    flags = {"phases.head.epochs": epochs, "model.weights": weights}
    for variation in load_sweep("sweep_heads.py", flags)[: int(count)]:
        config, workdir = variation.config, Path(folder) / variation.name
        train(config, open_data(config), workdir, console())


def keras_seed(folder: str, epochs: str, *plain: str) -> None:
    """A tutorial's transfer learning, the peer of configs/seed.py, on images in [0, 1].

    The last line is a JSON object: seconds of the import and of an epoch, the last validation
    accuracy and the best one.
    """
    begun = time.perf_counter()
    from benchmark.keras_peer import ImageDataGenerator, classifier

    import_s = time.perf_counter() - begun
    changes = {} if plain else {"shear_range": 0.2, "zoom_range": 0.2, "horizontal_flip": True}
    reading = {"target_size": (224, 224), "batch_size": 32, "class_mode": "sparse"}
    images = ImageDataGenerator(rescale=1 / 255, **changes)
    train = images.flow_from_directory(f"{folder}/seed/train", **reading)
    images = ImageDataGenerator(rescale=1 / 255)
    val = images.flow_from_directory(f"{folder}/seed/val", shuffle=False, **reading)
    model = classifier(Path(folder), 224, rescale=False)
    begun = time.perf_counter()
    history = model.fit(train, epochs=int(epochs), validation_data=val, verbose=0).history
    epoch_s = (time.perf_counter() - begun) / int(epochs)
    *_, last = accuracies = history["val_accuracy"]
    result = {"import_s": import_s, "epoch_s": epoch_s, "accuracy": last, "best": max(accuracies)}
    print(json.dumps(result))


def keras_start(folder: str) -> None:
    """The first phase of configs/mnv2.py on digits; prints `FIRST_STEP` after the first batch."""
    import keras
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from benchmark.keras_peer import ImageDataGenerator, classifier

    digits = load_digits()
    pixels = np.repeat((digits.images * 255 / 16)[..., None], 3, axis=3).astype(np.float32)
    images = keras.ops.convert_to_numpy(keras.ops.image.resize(pixels, (96, 96)))
    train, val, train_labels, val_labels = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    first = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: batch or print(FIRST_STEP, flush=True)
    )
    changed = ImageDataGenerator(shear_range=5.0, zoom_range=0.1)
    classifier(Path(folder), 96, dropout=0.2).fit(
        changed.flow(train, train_labels, batch_size=32),
        epochs=4,
        validation_data=(val, val_labels),
        callbacks=[first],
        verbose=0,
    )


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
