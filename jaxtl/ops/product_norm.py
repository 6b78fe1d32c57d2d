"""A pointwise convolution and the BatchNorm after it as one operation, for accelerators.

Their speed is that of their memory, and the maps after a widening convolution are its largest. But
those maps are a product of narrow ones and a small kernel: mean and variance follow from the sums
and products of the narrow maps' channels, and so does everything that BatchNorm's gradient adds. So
the wide maps are written once, normalised, and read only where a convolution needs them
(docs/decisions/0040-the-moments-of-a-product.md).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxtl.ops.batch_norm import inside, over_devices
from jaxtl.ops.windows import Maps, Output

Kernel = Float[Array, "1 1 channels out"]
PerChannel = Float[Array, "out"]
Normalised = tuple[Output, PerChannel, PerChannel]

_MORE = 8  # channels, which keep rows of bfloat16 aligned to 16 bytes
_matmul = partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def product_norm(
    x: Maps,
    kernel: Kernel,
    scale: PerChannel,
    bias: PerChannel,
    weights: Float[Array, "batch"],
    epsilon: float,
    axis_name: str | None,
    limits: tuple[float, float],
) -> Normalised:
    """Convolves by a window of one pixel, normalises by the batch's statistics, and clips.

    The arguments are those of `conv` and `batch_norm`; the kernel is rounded to the type of `x`.
    With z = x W, of which x has mean m and covariance C: the mean of z is m W, and its variance the
    diagonal of W' C W. No gradient flows through the mean and variance that it returns, nor to
    `weights`.

    Returns:
        The normalised maps in the type of `x`, and the mean and the (biased) variance.
    """
    return _forward(x, kernel, scale, bias, weights, epsilon, axis_name, limits)[0]


def _forward(
    x: Maps,
    kernel: Kernel,
    scale: PerChannel,
    bias: PerChannel,
    weights: Array,
    epsilon: float,
    axis_name: str | None,
    limits: tuple[float, float],
) -> tuple[Normalised, tuple[Array, ...]]:
    w, augmented = kernel.reshape(kernel.shape[2:]), _augmented(x, weights)
    own = _sums(augmented, augmented)  # of this device
    products, sums, count = _parts(over_devices((own,), axis_name)[0], x.shape[-1])
    mean_x = sums / count
    covariance = products / count - jnp.outer(mean_x, mean_x)
    mean = _matmul(mean_x, w)
    var = jnp.maximum(jnp.sum(w * _matmul(covariance, w), 0), 0)
    inverse = lax.rsqrt(var + epsilon)
    scaled = (w * (scale * inverse)).astype(x.dtype)
    # XLA adds to a product, as it writes it, only what it need not compute for that.
    shift = lax.optimization_barrier(bias - _matmul(mean_x, scaled.astype(jnp.float32)))
    y = jnp.matmul(_flat(x), scaled, preferred_element_type=jnp.float32) + shift
    y = jnp.clip(y, *limits).astype(x.dtype)
    y = y.reshape(*x.shape[:-1], -1)
    return (y, mean, var), (augmented, kernel, scale, y, mean, inverse, count, own)


def _backward(
    epsilon: float,
    axis_name: str | None,
    limits: tuple[float, float],
    residuals: tuple[Array, ...],
    cotangents: Normalised,
) -> tuple[Array | None, ...]:
    """The gradient of `batch_norm`, taken through the product.

    What BatchNorm subtracts from the gradient of z is, in each channel, a constant and a multiple
    of z = x W. So its product with W' is one of x with a small matrix.
    """
    augmented, kernel, scale, y, mean, inverse, count, own = residuals
    w, channels = kernel.reshape(kernel.shape[2:]), kernel.shape[2]
    products, sums, _ = _parts(own, channels)
    dy = _flat(inside(y, limits, cotangents[0]))
    with_x = _sums(augmented, dy)
    with_x, of_bias = with_x[:channels], with_x[channels]
    of_scale = inverse * (jnp.sum(w * with_x, 0) - mean * of_bias)
    mean_dy, mean_product = (of / count for of in over_devices((of_bias, of_scale), axis_name))
    # Subtracted from dy in each channel, where images are valid: constant + slope * z.
    slope = inverse * mean_product
    constant = mean_dy - mean * slope
    factor = scale * inverse
    of_kernel = factor * (with_x - jnp.outer(sums, constant) - slope * _matmul(products, w))
    scaled = (w * factor).astype(y.dtype)
    right = jnp.concatenate([w * slope, constant[None]]) 
    of_statistics = _product(augmented, _matmul(right, scaled.astype(jnp.float32).T))
    of_x = jnp.matmul(dy, scaled.T, preferred_element_type=jnp.float32) - of_statistics
    of_x = of_x.astype(y.dtype).reshape(*y.shape[:-1], -1)
    return of_x, of_kernel.reshape(kernel.shape), of_scale, of_bias, None


product_norm.defvjp(_forward, _backward)


def _augmented(x: Maps, weights: Array) -> Float[Array, "pixels more"]:
    """The valid pixels, with channels of ones: sums and constants are products then."""
    valid = jnp.broadcast_to(weights.astype(x.dtype)[:, None, None, None], (*x.shape[:-1], 2))
    more = jnp.pad(valid, [(0, 0)] * 3 + [(0, _MORE - 2)])
    return _flat(jnp.concatenate([x * valid[..., :1], more], -1))


def _sums(left: Array, right: Array) -> Array:
    """Sums over pixels of the products of channels."""
    return _matmul(left.T, right)


def _parts(sums: Array, channels: int) -> tuple[Array, Array, Array]:
    """Of the sums of augmented pixels by themselves: products, sums, and the number of pixels."""
    return sums[:channels, :channels], sums[channels, :channels], sums[channels, channels]


def _product(augmented: Array, matrix: Array) -> Array:
    """Augmented pixels times a matrix, whose last row belongs to the ones.

    The last row goes as a sum of two numbers, which are rounded less than one.
    """
    rounded = matrix.astype(augmented.dtype)
    rest = (matrix[-1:] - rounded[-1:].astype(matrix.dtype)).astype(augmented.dtype)
    nothing = jnp.zeros((_MORE - 2, matrix.shape[1]), augmented.dtype)
    full = jnp.concatenate([rounded, rest, nothing])
    return jnp.matmul(augmented, full, preferred_element_type=jnp.float32)


def _flat(maps: Array) -> Array:
    return maps.reshape(-1, maps.shape[-1])
