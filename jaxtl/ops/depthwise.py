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
        kernel: (h, w, 1, C).
        stride: step of the window along both axes.

    Returns:
        Feature maps (B, ceil(H / stride), ceil(W / stride), C).
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
        cpu=partial(_pull_back, partial(_shifted, stride=stride)),
        default=partial(_pull_back, partial(_native, stride=stride)),
    )


depthwise_conv.defvjp(_forward, _backward)


def _pull_back(convolve, x, kernel, gradient):
    return jax.vjp(convolve, x, kernel)[1](gradient)


def _native(x: Images, kernel: Kernel, stride: int) -> Images:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _shifted(x: Images, kernel: Kernel, stride: int) -> Images:
    rows, columns = kernel.shape[:2]
    batch, height, width, channels = x.shape
    out_height, out_width = -(-height // stride), -(-width // stride)
    pads = lax.padtype_to_pads((height, width), (rows, columns), (stride, stride), "SAME")
    padded = lax.pad(x, x.dtype.type(0), [(0, 0, 0), *((lo, hi, 0) for lo, hi in pads), (0, 0, 0)])

    def window(row: int, column: int) -> Images:
        return lax.slice(
            padded,
            (0, row, column, 0),
            (
                batch,
                row + (out_height - 1) * stride + 1,
                column + (out_width - 1) * stride + 1,
                channels,
            ),
            (1, stride, stride, 1),
        )

    products = (
        window(row, column) * kernel[row, column, 0]
        for row in range(rows)
        for column in range(columns)
    )
    return reduce(jnp.add, products)
