"""A convolution by a window of one pixel and the BatchNorm after it as one operation.

Accelerators are bound by their memory here, and the maps behind a convolution that widens them are
the largest of a network. But those are a product of narrow maps and a small kernel: their mean and
variance follow from the sums and the products of the narrow channels, and so does all that
BatchNorm adds to a gradient. So the wide maps are written once, normalised and clipped
(docs/decisions/0040-fewer-bytes-on-accelerators.md).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxtl.ops.batch_norm import Limits, inside, over_devices
from jaxtl.ops.windows import Maps, Output

Kernel = Float[Array, "1 1 channels out"]
PerChannel = Float[Array, "out"]
Normalised = tuple[Output, PerChannel, PerChannel]

_MORE = 8  # channels beside those of the maps, which keeps rows of bfloat16 aligned to 16 bytes

_matmul = partial(jnp.matmul, precision="highest")


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def product_norm(
    x: Maps,
    kernel: Kernel,
    scale: PerChannel,
    bias: PerChannel,
    weights: Float[Array, "batch"],
    epsilon: float,
    axis_name: str | None,
    limits: Limits,
) -> Normalised:
    """Convolves feature maps, normalises them by the batch's statistics, and clips them.

    With z = x W, where x has the mean m and the covariance C, z has the mean m W, and the diagonal
    of W' C W is its variance. Maps that only pad a batch must have gradients of zero, as they do
    where a loss leaves them out. No gradient flows through the mean and variance that it returns,
    nor to `weights`.

    Args:
        x: feature maps (B, H, W, C).
        kernel: W; the product of it and the normalising factor is rounded to the type of `x`.
        scale, bias, weights, epsilon, axis_name, limits: as for `batch_norm`.

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
    limits: Limits,
) -> tuple[Normalised, tuple[Array, ...]]:
    w, valid = kernel[0, 0], _augmented(x, weights)
    own = _over_pixels(valid, valid)  # of this device
    products, sums, count = _parts(over_devices((own,), axis_name)[0])
    mean_x = sums / count
    covariance = products / count - jnp.outer(mean_x, mean_x)
    mean = _matmul(mean_x, w)
    var = jnp.maximum(jnp.sum(w * _matmul(covariance, w), 0), 0)
    inverse = lax.rsqrt(var + epsilon)
    factor = (w * (scale * inverse)).astype(x.dtype)
    # A barrier, since XLA adds what is still to be computed to a product in a pass of its own.
    shift = lax.optimization_barrier(bias - _matmul(mean_x, factor.astype(jnp.float32)))
    y = jnp.clip(_product(x, factor) + shift, *limits).astype(x.dtype)
    return (y, mean, var), (valid, w, scale, y, mean, inverse, count, own)


def _backward(
    epsilon: float,
    axis_name: str | None,
    limits: Limits,
    residuals: tuple[Array, ...],
    cotangents: Normalised,
) -> tuple[Array | None, ...]:
    """The gradient of `batch_norm`, taken through the product.

    What BatchNorm subtracts from dy is constant + slope * z in each channel, and z = x W.
    """
    valid, w, scale, y, mean, inverse, count, own = residuals
    products, sums, _ = _parts(own)
    dy = inside(y, limits, cotangents[0])
    with_valid = _over_pixels(valid, dy)
    with_x, of_bias = with_valid[:-_MORE], with_valid[-_MORE]
    of_scale = inverse * (jnp.sum(w * with_x, 0) - mean * of_bias)
    mean_dy, mean_product = (of / count for of in over_devices((of_bias, of_scale), axis_name))
    slope = inverse * mean_product
    constant = mean_dy - mean * slope
    of_kernel = with_x - jnp.outer(sums, constant) - slope * _matmul(products, w)
    factor = (w * (scale * inverse)).astype(y.dtype)
    subtracted = _matmul(jnp.vstack([w * slope, constant]), factor.astype(jnp.float32).T)
    of_x = _product(dy, factor.T) - _product(valid, _rounded(subtracted, y.dtype))
    of_x = of_x.astype(y.dtype)
    return of_x, (scale * inverse * of_kernel)[None, None], of_scale, of_bias, None


product_norm.defvjp(_forward, _backward)


def _augmented(x: Maps, weights: Array) -> Float[Array, "batch height width more"]:
    """Zero for padding; else the maps and channels of ones, with which products are sums."""
    valid = weights.astype(x.dtype)[:, None, None, None]
    ones = jnp.asarray([1, 1] + [0] * (_MORE - 2), x.dtype)
    more = jnp.broadcast_to(valid * ones, (*x.shape[:-1], _MORE))
    return jnp.concatenate([x * valid, more], -1)


def _parts(sums: Array) -> tuple[Array, Array, Array]:
    """Of the products of augmented maps with themselves: products, sums, number of pixels."""
    return sums[:-_MORE, :-_MORE], sums[-_MORE, :-_MORE], sums[-_MORE, -_MORE]


def _rounded(matrix: Array, dtype: jnp.dtype) -> Array:
    """A matrix for augmented maps; the last row, for the ones, is the sum of two rounded ones."""
    rounded = matrix.astype(dtype)
    rest = (matrix[-1] - rounded[-1].astype(matrix.dtype)).astype(dtype)
    return jnp.pad(jnp.vstack([rounded, rest]), ((0, _MORE - 2), (0, 0)))


def _over_pixels(left: Array, right: Array) -> Float[Array, "left right"]:
    """The sums over all pixels of the products of the channels of maps, in float32."""
    pixels = ((0, 1, 2), (0, 1, 2)), ((), ())
    # Products of bfloat16 are exact; those of float32 would be rounded.
    return lax.dot_general(left, right, pixels, "highest", jnp.float32)


def _product(
    x: Maps, matrix: Float[Array, "channels out"]
) -> Float[Array, "batch height width out"]:
    """Maps times a matrix, in float32. XLA chooses the layouts of maps that are not flattened."""
    return lax.dot_general(x, matrix, (((3,), (0,)), ((), ())), None, jnp.float32)
