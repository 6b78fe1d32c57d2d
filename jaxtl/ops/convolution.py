"""Convolution with the lowering that suits the platform and the size of the maps.

On a CPU, a matrix product is faster than XLA's convolution for windows of one pixel, and ten to a
hundred times faster for windows about as large as the maps
(docs/decisions/0016-small-maps-by-a-matrix-product.md). On large maps XLA takes up to 4.5 times as
long for the gradient of the kernel as matrix products do
(docs/decisions/0017-gradients-of-kernels-image-by-image.md).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxtl.ops.windows import Maps, Output, Padding, Pads, pads_of, windows

Kernel = Float[Array, "rows columns channels out"]

_FEW_PIXELS = 16  # on a CPU, maps of at most so many are convolved by one product
_MANY_PIXELS = 64  # on a CPU and maps of more, products give the gradient of the kernel


def conv(x: Maps, kernel: Kernel, stride: int = 1, padding: Padding = "SAME") -> Output:
    """Convolves feature maps.

    Args:
        x: feature maps (B, H, W, C).
        kernel: the kernel (h, w, C, O); it is rounded to the type of `x`.
        stride: the step of the window along both axes.
        padding: the padding of the feature maps.

    Returns:
        Feature maps (B, H', W', O), of the type of `x`; with SAME padding H' is ceil(H / stride).
    """
    kernel = kernel.astype(x.dtype)
    pads = pads_of(x.shape, kernel.shape, stride, padding)
    if kernel.shape[:2] == (1, 1) and stride == 1 and not np.any(pads):
        return _product(x, kernel)
    pixels = x.shape[1] * x.shape[2]
    if pixels > _MANY_PIXELS:
        return _on_large_maps(x, kernel, stride, tuple(pads))
    if pixels > _FEW_PIXELS:
        return _native(x, kernel, stride, pads)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_gathered, stride=stride, pads=pads),
        default=partial(_native, stride=stride, pads=pads),
    )


def _native(x: Maps, kernel: Kernel, stride: int, pads: Pads) -> Output:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _on_large_maps(x: Maps, kernel: Kernel, stride: int, pads: Pads) -> Output:
    return _native(x, kernel, stride, pads)


def _forward(
    x: Maps, kernel: Kernel, stride: int, pads: Pads
) -> tuple[Output, tuple[Maps, Kernel]]:
    return _native(x, kernel, stride, pads), (x, kernel)


def _backward(
    stride: int, pads: Pads, residuals: tuple[Maps, Kernel], gradient: Output
) -> tuple[Maps, Kernel]:
    return lax.platform_dependent(
        *residuals,
        gradient,
        cpu=partial(_vjp_by_image, stride=stride, pads=pads),
        default=partial(_native_vjp, stride=stride, pads=pads),
    )


_on_large_maps.defvjp(_forward, _backward)


def _native_vjp(
    x: Maps, kernel: Kernel, gradient: Output, stride: int, pads: Pads
) -> tuple[Maps, Kernel]:
    return jax.vjp(partial(_native, stride=stride, pads=pads), x, kernel)[1](gradient)


def _vjp_by_image(
    x: Maps, kernel: Kernel, gradient: Output, stride: int, pads: Pads
) -> tuple[Maps, Kernel]:
    """The kernel's gradient is a product for each of its pixels, summed over the images."""
    (of_x,) = jax.vjp(lambda x: _native(x, kernel, stride, pads), x)[1](gradient)

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        image, its_gradient = (array[None] for array in pair)
        flat = its_gradient.reshape(-1, its_gradient.shape[-1])
        products = [
            jnp.matmul(part.reshape(len(flat), -1).T, flat, preferred_element_type=total.dtype)
            for part in windows(image, kernel.shape, stride, pads)
        ]
        return total + jnp.stack(products).reshape(kernel.shape), None

    none = jnp.zeros(kernel.shape, jnp.promote_types(kernel.dtype, jnp.float32))
    return of_x, lax.scan(add, none, (x, gradient))[0].astype(kernel.dtype)


def _gathered(x: Maps, kernel: Kernel, stride: int, pads: Pads) -> Output:
    """Lays the pixels under each window side by side and multiplies them by the kernel."""
    under = jnp.concatenate(list(windows(x, kernel.shape, stride, pads)), axis=-1)
    return _product(under, kernel)


def _product(x: Maps, kernel: Array) -> Float[Array, "batch height width out"]:
    # In two dimensions: with more, XLA transposes whole feature maps for the kernel's gradient
    # (docs/decisions/0009-speed-of-a-training-step-on-a-cpu.md).
    flat = x.reshape(-1, x.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return flat.reshape(*x.shape[:-1], -1)
