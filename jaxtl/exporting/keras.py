"""Keras 3 models, for any of its backends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxtl.errors import UserError
from jaxtl.exporting.classifier import Classify
from jaxtl.models import Network, definition, split
from jaxtl.tasks import Activation
from jaxtl.weights.write import without_head, write_weights


def write(
    network: Network, path: Path, image_size: int, activation: Activation = "softmax"
) -> None:
    """Writes a network as a Keras model, a `.keras` file.

    Raises:
        UserError: Keras Applications has no network that computes the same.
    """
    keras_model(network, path.parent, image_size, activation).save(path)


def load(path: Path) -> Classify:
    """Loads a model as Keras does."""
    model = _keras().saving.load_model(path)
    return lambda images: np.asarray(model.predict_on_batch(images))


def keras_model(
    network: Network, folder: Path, image_size: int, activation: Activation = "softmax"
) -> Any:
    """The network of Keras Applications with these weights, between normalisation and activation.

    Args:
        network: with its variables and a head.
        folder: where a file of weights may be written.
        image_size: pixels a side of the images.
        activation: what makes probabilities of the logits.

    Raises:
        UserError: Keras Applications has no network that computes the same.
    """
    spec, known = network.spec, definition(network.name)
    name = known.names[network.name].keras
    if name is None:
        raise UserError(f"Keras Applications has no {network.name}; write .onnx or .stablehlo")
    if spec.convention.name != "keras" and not known.portable:
        raise UserError(
            f"the weights of this run are of the {spec.convention.name} convention: {network.name} "
            "pads, strides or pools otherwise in Keras; write .onnx or .stablehlo"
        )
    keras = _keras()
    shape = (image_size, image_size, 3)
    options = {} if spec.width == 1 else {"alpha": spec.width}
    trunk = getattr(keras.applications, name)(
        weights=None, include_top=False, pooling="avg", input_shape=shape, **options
    )
    weights = folder / "trunk.weights.h5"
    write_weights(without_head(network), weights, image_size=image_size)
    trunk.load_weights(weights)
    weights.unlink()

    images = keras.Input(shape, dtype="uint8", name="images")
    mean, std = (np.asarray(of, np.float32) for of in (spec.convention.mean, spec.convention.std))
    normalised = keras.layers.Normalization(mean=mean, variance=std**2)(images)
    if spec.convention.bgr:
        normalised = keras.ops.flip(normalised, axis=-1)
    head = keras.layers.Dense(network.num_classes, activation=activation, name="probabilities")
    model = keras.Model(images, head(trunk(normalised)))
    variables = split(network)[1]
    head.set_weights([np.asarray(variables[f"head/{part}"]) for part in ("kernel", "bias")])
    return model


def _keras() -> Any:
    # Keras would take TensorFlow, which need not be there.
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    return keras
