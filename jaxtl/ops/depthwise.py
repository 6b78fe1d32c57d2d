"""Depthwise convolution with the lowering that suits the platform.

XLA's CPU backend runs a grouped convolution several times slower than the same sum written as one
multiply-add for each kernel position; GPUs and TPUs have a native convolution for it
(docs/decisions/0003-depthwise-by-platform.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
Kernel = Float[Array, "rows columns 1 channels"]
Pads = Sequence[tuple[int, int]]

Padding = str | tuple[tuple[int, int], tuple[int, int]]
"""`SAME`, or how many rows and columns of zeros go before and after."""


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: Images, kernel: Kernel, stride: int = 1, padding: Padding = "SAME") -> Images:
    """Convolves each channel with its own kernel.

    Args:
        x: feature maps (B, H, W, C).
        kernel: (h, w, 1, C); it is rounded to the type of `x`, its gradient is not.
        stride: step of the window along both axes.
        padding: of the feature maps.

    Returns:
        Feature maps (B, H', W', C), of the type of `x`; with SAME padding H' is ceil(H / stride).
    """
    pads = _pads(x.shape, kernel.shape, stride, padding)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_shifted, stride=stride, pads=pads),
        default=partial(_native, stride=stride, pads=pads),
    )


def _forward(
    x: Images, kernel: Kernel, stride: int, padding: Padding
) -> tuple[Images, tuple[Images, Kernel]]:
    return depthwise_conv(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: Padding, residuals: tuple[Images, Kernel], gradient: Images
) -> tuple[Images, Kernel]:
    x, kernel = residuals
    pads = _pads(x.shape, kernel.shape, stride, padding)
    return lax.platform_dependent(
        *residuals,
        gradient,
        cpu=partial(_shifted_pull_back, stride=stride, pads=pads),
        default=partial(_native_pull_back, stride=stride, pads=pads),
    )


depthwise_conv.defvjp(_forward, _backward)


def _pads(
    shape: tuple[int, ...], window: tuple[int, ...], stride: int, padding: Padding
) -> Sequence[tuple[int, int]]:
    if isinstance(padding, str):
        return lax.padtype_to_pads(shape[1:3], window[:2], (stride, stride), padding)
    return padding


def _native(x: Images, kernel: Kernel, stride: int, pads: Pads) -> Images:
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _native_pull_back(
    x: Images, kernel: Kernel, gradient: Images, stride: int, pads: Pads
) -> tuple[Images, Kernel]:
    return jax.vjp(partial(_native, stride=stride, pads=pads), x, kernel)[1](gradient)


def _shifted(x: Images, kernel: Kernel, stride: int, pads: Pads) -> Images:
    padded, kernel = _pad(x, pads), kernel.astype(x.dtype)
    rows, columns = (
        (full - window) // stride + 1
        for full, window in zip(padded.shape[1:3], kernel.shape[:2], strict=True)
    )
    size = (rows, columns)
    products = (
        _window(padded, place, size, stride) * kernel[*place, 0] for place in _places(kernel)
    )
    return reduce(jnp.add, products)


def _shifted_pull_back(
    x: Images, kernel: Kernel, gradient: Images, stride: int, pads: Pads
) -> tuple[Images, Kernel]:
    """Both gradients picture by picture: what lies between stays within the cache."""

    def of_one(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        picture, its_gradient = (array[None] for array in pair)
        padded, size = _pad(picture, pads), its_gradient.shape[1:3]
        products = (
            _window(padded, place, size, stride) * its_gradient for place in _places(kernel)
        )
        sums = [jnp.sum(product, axis=(0, 1, 2), dtype=kernel.dtype) for product in products]
        pull_back = jax.vjp(lambda x: _shifted(x, kernel, stride, pads), picture)[1]
        return pull_back(its_gradient)[0][0], jnp.stack(sums).reshape(kernel.shape)

    of_x, of_kernel = lax.map(of_one, (x, gradient))
    return of_x, jnp.sum(of_kernel, axis=0)


def _places(kernel: Kernel) -> list[tuple[int, int]]:
    rows, columns = kernel.shape[:2]
    return [(row, column) for row in range(rows) for column in range(columns)]


def _pad(x: Images, pads: Pads) -> Images:
    return jnp.pad(x, [(0, 0), *pads, (0, 0)])


def _window(padded: Images, place: tuple[int, int], size: tuple[int, ...], stride: int) -> Images:
    """What the kernel's position at `place` is multiplied with."""
    (row, column), (height, width) = place, size
    last = (row + (height - 1) * stride + 1, column + (width - 1) * stride + 1)
    batch, channels = padded.shape[0], padded.shape[3]
    return lax.slice(padded, (0, row, column, 0), (batch, *last, channels), (1, stride, stride, 1))
