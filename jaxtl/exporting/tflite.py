"""TensorFlow Lite (LiteRT), by way of Keras on TensorFlow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxtl.errors import UserError
from jaxtl.exporting.classifier import Classify
from jaxtl.models import Network
from jaxtl.tasks import Activation


def write(
    network: Network, path: Path, image_size: int, activation: Activation = "softmax"
) -> None:
    """Writes a network as a TensorFlow Lite model.

    Raises:
        UserError: Keras Applications has no network that computes the same, or Keras runs on
            another backend than TensorFlow.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    from jaxtl.exporting.keras import keras_model

    if (backend := keras.backend.backend()) != "tensorflow":
        raise UserError(f"{path.name} needs KERAS_BACKEND=tensorflow, not {backend}")
    model = keras_model(network, path.parent, image_size, activation)
    model.export(path, format="litert", verbose=False)


def load(path: Path) -> Classify:
    """Loads a model in LiteRT's interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    return lambda images: _run(interpreter, images)


def _run(interpreter: Any, images: np.ndarray) -> np.ndarray:
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(target["index"])
