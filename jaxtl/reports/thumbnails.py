"""Small images inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

_SIDE = 128  # pixels
_OPACITY = 0.6  # of the colours that lie over an image


def thumbnail(pixels: UInt8[np.ndarray, "side side 3"]) -> str:
    """An image as a JPEG of at most 128 pixels a side, in a `data:` URI."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    return _uri(image, "JPEG", quality=80)


def overlay(
    pixels: UInt8[np.ndarray, "side side 3"], weights: Float[np.ndarray, "height width"]
) -> str:
    """A thumbnail with colours over it, brighter where the weight is larger.

    Args:
        pixels: RGB, 0..255.
        weights: 0..1, at any resolution.
    """
    from matplotlib import colormaps

    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    coarse = Image.fromarray(weights.astype(np.float32))
    smooth = np.clip(coarse.resize(image.size, Image.Resampling.BICUBIC), 0, 1)
    colours = colormaps["inferno"](smooth)[..., :3] * 255
    # Grey below the colours, so that they mean the weights alone.
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    mixed = grey + _OPACITY * (colours - grey)
    return _uri(Image.fromarray(mixed.astype(np.uint8)), "JPEG", quality=80)


def heat_map(counts: Int[np.ndarray, "classes classes"]) -> str:
    """The fraction of each row in each column, as the opacity of one pixel, in a `data:` URI."""
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # The square root, so that a single image of a hundred is seen.
    alpha = np.round(255 * np.sqrt(fractions)).astype(np.uint8)
    return _uri(Image.fromarray(np.stack([np.full_like(alpha, 128), alpha], -1), "LA"), "PNG")


def _uri(image: Image.Image, form: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
