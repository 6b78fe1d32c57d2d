"""Depthwise convolution with the lowering that suits the platform.

XLA's CPU backend runs a grouped convolution several times slower than the same sum written as one
multiply-add for each kernel position; GPUs and TPUs have a native convolution for it
(docs/decisions/0003-depthwise-by-platform.md).
"""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Images = Float[Array, "batch height width channels"]
Kernel = Float[Array, "rows columns 1 channels"]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(x: Images, kernel: Kernel, stride: int = 1) -> Images:
    """Convolves each channel with its own kernel, SAME padding.

    Args:
        x: feature maps (B, H, W, C).
        kernel: (h, w, 1, C); it is rounded to the type of `x`, its gradient is not.
        stride: step of the window along both axes.

    Returns:
        Feature maps (B, ceil(H / stride), ceil(W / stride), C), of the type of `x`.
    """
    return lax.platform_dependent(
        x, kernel, cpu=partial(_shifted, stride=stride), default=partial(_native, stride=stride)
    )


def _forward(x: Images, kernel: Kernel, stride: int) -> tuple[Images, tuple[Images, Kernel]]:
    return depthwise_conv(x, kernel, stride), (x, kernel)


def _backward(
    stride: int, residuals: tuple[Images, Kernel], gradient: Images
) -> tuple[Images, Kernel]:
    return lax.platform_dependent(
        *residuals,
        gradient,
        cpu=partial(_shifted_pull_back, stride=stride),
        default=partial(_native_pull_back, stride=stride),
    )


depthwise_conv.defvjp(_forward, _backward)


def _native(x: Images, kernel: Kernel, stride: int) -> Images:
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _native_pull_back(
    x: Images, kernel: Kernel, gradient: Images, stride: int
) -> tuple[Images, Kernel]:
    return jax.vjp(partial(_native, stride=stride), x, kernel)[1](gradient)


def _shifted(x: Images, kernel: Kernel, stride: int) -> Images:
    padded, kernel = _pad(x, kernel, stride), kernel.astype(x.dtype)
    size = (-(-x.shape[1] // stride), -(-x.shape[2] // stride))
    products = (
        _window(padded, place, size, stride) * kernel[*place, 0] for place in _places(kernel)
    )
    return reduce(jnp.add, products)


def _shifted_pull_back(
    x: Images, kernel: Kernel, gradient: Images, stride: int
) -> tuple[Images, Kernel]:
    """Both gradients picture by picture: what lies between stays within the cache."""

    def of_one(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        picture, its_gradient = (array[None] for array in pair)
        padded, size = _pad(picture, kernel, stride), its_gradient.shape[1:3]
        products = (
            _window(padded, place, size, stride) * its_gradient for place in _places(kernel)
        )
        sums = [jnp.sum(product, axis=(0, 1, 2), dtype=kernel.dtype) for product in products]
        pull_back = jax.vjp(lambda x: _shifted(x, kernel, stride), picture)[1]
        return pull_back(its_gradient)[0][0], jnp.stack(sums).reshape(kernel.shape)

    of_x, of_kernel = lax.map(of_one, (x, gradient))
    return of_x, jnp.sum(of_kernel, axis=0)


def _places(kernel: Kernel) -> list[tuple[int, int]]:
    rows, columns = kernel.shape[:2]
    return [(row, column) for row in range(rows) for column in range(columns)]


def _pad(x: Images, kernel: Kernel, stride: int) -> Images:
    pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (stride, stride), "SAME")
    return jnp.pad(x, [(0, 0), *pads, (0, 0)])


def _window(padded: Images, place: tuple[int, int], size: tuple[int, ...], stride: int) -> Images:
    """What the kernel's position at `place` is multiplied with."""
    (row, column), (height, width) = place, size
    last = (row + (height - 1) * stride + 1, column + (width - 1) * stride + 1)
    batch, channels = padded.shape[0], padded.shape[3]
    return lax.slice(padded, (0, row, column, 0), (batch, *last, channels), (1, stride, stride, 1))
