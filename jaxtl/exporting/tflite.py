"""TensorFlow Lite, by way of Keras."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxtl.errors import UserError
from jaxtl.exporting.classifier import Classify
from jaxtl.models import Network


def write(network: Network, path: Path, image_size: int) -> None:
    """Writes a network as a TensorFlow Lite model.

    Raises:
        UserError: Keras Applications has no network that computes the same, or Keras runs on
            another backend than TensorFlow.
    """
    from jaxtl.exporting.keras import keras_model

    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UserError(f"{path.name} needs Keras on TensorFlow: set KERAS_BACKEND=tensorflow")
    import tensorflow as tf

    model = keras_model(network, path.parent, image_size)
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def load(path: Path) -> Classify:
    """Loads a model in TensorFlow Lite's interpreter."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(path))
    return lambda images: _run(interpreter, images)


def _run(interpreter: Any, images: np.ndarray) -> np.ndarray:
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    if tuple(source["shape"]) != images.shape:
        interpreter.resize_tensor_input(source["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(target["index"])
