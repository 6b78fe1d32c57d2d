"""Depthwise convolution with the lowering that suits the platform.

XLA's CPU backend runs a grouped convolution several times slower than the same sum written as one
multiply-add for each kernel position; GPUs and TPUs have a native convolution for it
(docs/decisions/0003-depthwise-by-platform.md). On NVIDIA GPUs that sum moves fewer bytes with
stride 2, where the native convolution has to write its maps with padding, or with zeros between
their pixels, first (docs/decisions/0040-fewer-bytes-on-accelerators.md).
"""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxtl.ops.windows import Maps, Padding, Pads, pads_of, windows

Kernel = Float[Array, "rows columns 1 channels"]
Output = Float[Array, "batch _height _width channels"]  # feature maps of another size


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: Maps, kernel: Kernel, stride: int = 1, padding: Padding = "SAME") -> Output:
    """Convolves each channel with its own kernel.

    Args:
        x: feature maps (B, H, W, C).
        kernel: the kernel (h, w, 1, C). It is rounded to the type of `x`, but its gradient is not.
        stride: the step of the window along both axes.
        padding: the padding of the feature maps.

    Returns:
        Feature maps (B, H', W', C), of the type of `x`; with SAME padding H' is ceil(H / stride).
    """
    pads = pads_of(x.shape, kernel.shape, stride, padding)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_shifted, stride=stride, pads=pads),
        cuda=partial(_native if stride == 1 else _shifted, stride=stride, pads=pads),
        default=partial(_native, stride=stride, pads=pads),
    )


def _forward(
    x: Maps, kernel: Kernel, stride: int, padding: Padding
) -> tuple[Output, tuple[Maps, Kernel]]:
    return depthwise_conv(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: Padding, residuals: tuple[Maps, Kernel], gradient: Output
) -> tuple[Maps, Kernel]:
    x, kernel = residuals
    pads = pads_of(x.shape, kernel.shape, stride, padding)
    return lax.platform_dependent(
        *residuals,
        gradient,
        cpu=partial(_shifted_vjp, stride=stride, pads=pads),
        cuda=partial(_native_vjp if stride == 1 else _mixed_vjp, stride=stride, pads=pads),
        default=partial(_native_vjp, stride=stride, pads=pads),
    )


depthwise_conv.defvjp(_forward, _backward)


def _native(x: Maps, kernel: Kernel, stride: int, pads: Pads) -> Output:
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _native_vjp(
    x: Maps, kernel: Kernel, gradient: Output, stride: int, pads: Pads
) -> tuple[Maps, Kernel]:
    return jax.vjp(partial(_native, stride=stride, pads=pads), x, kernel)[1](gradient)


def _mixed_vjp(
    x: Maps, kernel: Kernel, gradient: Output, stride: int, pads: Pads
) -> tuple[Maps, Kernel]:
    (of_x,) = jax.vjp(lambda x: _shifted(x, kernel, stride, pads), x)[1](gradient)
    (of_kernel,) = jax.vjp(lambda kernel: _native(x, kernel, stride, pads), kernel)[1](gradient)
    return of_x, of_kernel


def _shifted(x: Maps, kernel: Kernel, stride: int, pads: Pads) -> Output:
    weights = kernel.astype(x.dtype).reshape(-1, kernel.shape[-1])
    parts = windows(x, kernel.shape, stride, pads)
    return reduce(jnp.add, (part * weight for part, weight in zip(parts, weights, strict=True)))


def _shifted_vjp(
    x: Maps, kernel: Kernel, gradient: Output, stride: int, pads: Pads
) -> tuple[Maps, Kernel]:
    """Takes both gradients image by image: intermediate results stay in the cache."""

    def of_one(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        image, its_gradient = (array[None] for array in pair)
        products = (part * its_gradient for part in windows(image, kernel.shape, stride, pads))
        sums = [jnp.sum(product, axis=(0, 1, 2), dtype=kernel.dtype) for product in products]
        vjp = jax.vjp(lambda x: _shifted(x, kernel, stride, pads), image)[1]
        return vjp(its_gradient)[0][0], jnp.stack(sums).reshape(kernel.shape)

    of_x, of_kernel = lax.map(of_one, (x, gradient))
    return of_x, jnp.sum(of_kernel, axis=0)
