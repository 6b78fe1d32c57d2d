"""Small images inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

_SIDE = 128  # pixels
_RIGHT, _WRONG = (128, 128, 128), (224, 96, 16)  # on light ground and on dark
_FAINTEST = 0.4
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
    smooth = np.asarray(coarse.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)
    colours = colormaps["inferno"](smooth)[..., :3] * 255
    # Grey below the colours, so that they mean the weights alone.
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    mixed = grey + _OPACITY * (colours - grey)
    return _uri(Image.fromarray(mixed.astype(np.uint8)), "JPEG", quality=80)


def heat_map(counts: Int[np.ndarray, "classes classes"]) -> str:
    """A pixel for each entry, grey on the diagonal and orange off it, in a `data:` URI.

    The opacity grows with the part of the row, by its square root; a single image is seen.
    """
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    alpha = np.where(counts > 0, _FAINTEST + (1 - _FAINTEST) * np.sqrt(fractions), 0)
    colours = np.where(np.eye(len(counts), dtype=bool)[..., None], _RIGHT, _WRONG)
    pixels = np.concatenate([colours, np.round(255 * alpha)[..., None]], axis=-1)
    return _uri(Image.fromarray(pixels.astype(np.uint8), "RGBA"), "PNG")


def _uri(image: Image.Image, form: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
