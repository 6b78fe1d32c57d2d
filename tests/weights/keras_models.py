"""Keras models with random weights and BatchNorm statistics, the reference for these tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import keras
import numpy as np
from keras import layers
from parity import quick_jit

from jaxtl.models import REGISTRY

CLASSES = 7

# Keras' variables and the names that they have here.
_OURS = {
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}


def blank(name, *, size, width=1.0, top=False, classes=CLASSES) -> keras.Model:
    """A network of Keras Applications, all zeros; with `top`, it returns logits."""
    options = {"classes": classes, "classifier_activation": None} if top else {"pooling": "avg"}
    if len(REGISTRY[name].widths) > 1:
        options["alpha"] = width
    function = getattr(keras.applications, REGISTRY[name].names[name].keras)
    with quick_initialisers():
        return function(weights=None, input_shape=(size, size, 3), include_top=top, **options)


def application(name, *, seed=0, **options) -> keras.Model:
    """One with random weights; options are those of `blank`."""
    model = blank(name, **options)
    randomise(model, seed)
    return model


def mobilenet_v2(*, width=0.35, size=32, top=False, classes=CLASSES, seed=0) -> keras.Model:
    """MobileNetV2 of Keras Applications; with `top`, it returns logits."""
    return application("mobilenet_v2", size=size, width=width, top=top, classes=classes, seed=seed)


@contextlib.contextmanager
def quick_initialisers() -> Iterator[None]:
    """Lets Keras start from zeros: it compiles its initialisers for every shape, 20 s a model."""

    def zeros(self, shape, dtype=None, **_):
        return np.zeros(shape, dtype)

    with contextlib.ExitStack() as stack:
        for name in ("GlorotUniform", "Zeros", "Ones"):
            initialiser = getattr(keras.initializers, name)
            stack.enter_context(mock.patch.object(initialiser, "__call__", zeros))
        yield


def randomise(model: keras.Model, seed: int) -> None:
    """Gives every variable values that would tell if any two were swapped."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        name, shape = variable.path.split("/")[-1], variable.shape
        if name in ("gamma", "moving_variance"):
            values = rng.uniform(0.5, 1.5, shape)
        elif name in ("beta", "moving_mean", "bias"):
            values = rng.normal(0, 0.2, shape)
        else:
            fan_in = 9 if _is_depthwise(variable) else np.prod(shape[:-1])
            values = rng.normal(0, np.sqrt(2 / fan_in), shape)
        variable.assign(values.astype(np.float32))


def _is_depthwise(variable) -> bool:
    return "depthwise" in variable.path or "conv_dw" in variable.path


def nested_sequential(trunk: keras.Model, dense: str = "dense") -> keras.Model:
    """The model of Keras' guide to transfer learning, with augmentation in front."""
    augment = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)])
    return _headed(
        keras.Sequential(
            [
                keras.Input(trunk.input_shape[1:]),
                augment,
                layers.Rescaling(1 / 127.5, offset=-1),
                trunk,
                layers.Dropout(0.2),
                layers.Dense(CLASSES, name=dense),
            ]
        )
    )


def nested_functional(trunk: keras.Model, *dense: str) -> keras.Model:
    """A network inside a functional model, with one dense layer for each name."""
    inputs = keras.Input(trunk.input_shape[1:])
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = layers.Dropout(0.2)(trunk(x, training=False))
    for name in dense:
        x = layers.Dense(CLASSES, name=name)(x)
    return _headed(keras.Model(inputs, x))


def flat(trunk: keras.Model) -> keras.Model:
    """A head put on the network's own output, in one model."""
    return _headed(keras.Model(trunk.input, layers.Dense(CLASSES, name="breeds")(trunk.output)))


def _headed(model: keras.Model) -> keras.Model:
    rng = np.random.default_rng(99)
    for variable in model.weights:
        if variable.shape[-1] == CLASSES:
            variable.assign(rng.normal(0, 0.1, variable.shape).astype(np.float32))
    return model


def arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """Every array of a Keras model by the path that it should have here, in the layout of here.

    Written from the names alone, so that it shares nothing with the code under test.
    """
    found = {}
    for variable in model.weights:
        layer, name = variable.path.split("/")[-2:]
        value = np.asarray(variable.value)
        if "depthwise" in layer and name == "kernel":
            value = value.transpose(0, 1, 3, 2)
        found[f"{_path(layer, value)}/{_OURS.get(name, name)}"] = value
    return found


def _path(layer: str, value: np.ndarray) -> str:
    named = {
        "Conv1": "stem/conv",
        "bn_Conv1": "stem/bn",
        "Conv_1": "top/conv",
        "Conv_1_bn": "top/bn",
    }
    if layer in named:
        return named[layer]
    if value.shape[-1] == CLASSES:
        return "head"
    block, _, part = layer.replace("expanded_conv", "block_0").rpartition("_")
    if part == "BN":
        block, _, part = block.rpartition("_")
        part += "_bn"
    return f"{block}/{part}"


def preprocessed(name: str, images: np.ndarray) -> np.ndarray:
    """RGB images 0..255 as a network of Keras Applications takes them, by its own function."""
    module = getattr(keras.applications, REGISTRY[name].names[name].module)
    return module.preprocess_input(images.astype(np.float32))


def outputs(model: keras.Model, preprocessed: np.ndarray) -> list[np.ndarray]:
    """Features and, with top, logits as Keras computes them.

    Args:
        model: one of Keras Applications.
        preprocessed: images (B, H, W, 3) as the model takes them.
    """
    pools = [x for x in model.layers if isinstance(x, layers.GlobalAveragePooling2D)]
    features = (pools or model.layers[-2:])[0].output
    both = keras.Model(model.input, [features, model.output])
    trained = [v.value for v in both.trainable_variables]
    other = [v.value for v in both.non_trainable_variables]
    run = quick_jit(lambda t, o, x: both.stateless_call(t, o, x, training=False)[0])
    found = [np.asarray(y) for y in run(trained, other, preprocessed)]
    found = [y.reshape(len(y), -1) for y in found]
    return found[:1] if model.output is features else found
