"""The windows that a convolution slides over feature maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Maps = Float[Array, "batch height width channels"]
Output = Float[Array, "batch _height _width out"]  # feature maps of another size
Pads = Sequence[tuple[int, int]]

Padding = str | tuple[tuple[int, int], tuple[int, int]]
"""`SAME`, `VALID`, or how many rows and columns of zeros go before and after."""


def pads_of(shape: tuple[Any, ...], window: tuple[int, ...], stride: int, padding: Padding) -> Pads:
    """The rows and columns of zeros around maps.

    Args:
        shape: the shape of the maps, (B, H, W, C); the batch may be a symbol of `jax.export`.
        window: the shape of the window, (height, width, ...).
        stride: the step of the window along both axes.
        padding: the padding as for a convolution.
    """
    if isinstance(padding, str):
        return lax.padtype_to_pads(shape[1:3], window[:2], (stride, stride), padding)
    return padding


def windows(x: Maps, window: tuple[int, ...], stride: int, pads: Pads) -> Iterator[Array]:
    """Yields, for each position in the window, the pixels under it as the window slides.

    Args:
        x: feature maps (B, H, W, C).
        window: the shape of the window, (height, width, ...).
        stride: the step of the window along both axes.
        pads: the rows and columns of zeros around the maps.

    Yields:
        Feature maps (B, H', W', C), row by row of the window.
    """
    padded = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    batch, *full, channels = padded.shape
    spans = [
        (length - size) // stride * stride + 1
        for length, size in zip(full, window[:2], strict=True)
    ]
    for row in range(window[0]):
        for column in range(window[1]):
            ends = (row + spans[0], column + spans[1])
            yield lax.slice(
                padded, (0, row, column, 0), (batch, *ends, channels), (1, stride, stride, 1)
            )
