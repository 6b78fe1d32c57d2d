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

from jaxtl.ops.batch_norm import Limits, inside, kept_sums, over_devices
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

    With z = x W, where x has the mean m and the second moments P, z has the mean m W, and the
    squares of z have the diagonal of W' P W as their mean. Maps that only pad a batch must have
    gradients of zero, as they do where a loss leaves them out. No gradient flows through the mean
    and variance that it returns, nor to `weights`.

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
    w, (products, sums) = kernel[0, 0], kept_sums(_moments(x, weights))  # of this device
    squares = jnp.sum(w * _matmul(products, w), 0)
    count = jnp.sum(weights) * (x.shape[1] * x.shape[2])
    all_sums, squares, count = kept_sums(over_devices((sums, squares, count), axis_name))
    mean_x = all_sums / count
    mean = _matmul(mean_x, w)
    var = jnp.maximum(squares / count - jnp.square(mean), 0)
    inverse = lax.rsqrt(var + epsilon)
    factor = (w * (scale * inverse)).astype(x.dtype)
    # A barrier, since XLA adds what is still to be computed to a product in a pass of its own.
    shift = lax.optimization_barrier(bias - _matmul(mean_x, factor.astype(jnp.float32)))
    y = jnp.clip(_product(x, factor) + shift, *limits).astype(x.dtype)
    return (y, mean, var), (x, w, scale, weights, y, mean, inverse, count, products, sums)


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
    x, w, scale, weights, y, mean, inverse, count, products, sums = residuals
    dy = inside(y, limits, cotangents[0])
    with_x, of_bias = _with_gradient(x, weights, dy)
    of_scale = inverse * (jnp.sum(w * with_x, 0) - mean * of_bias)
    mean_dy, mean_product = (of / count for of in over_devices((of_bias, of_scale), axis_name))
    slope = inverse * mean_product
    constant = mean_dy - mean * slope
    of_kernel = with_x - jnp.outer(sums, constant) - slope * _matmul(products, w)
    factor = (w * (scale * inverse)).astype(y.dtype)
    subtracted = _matmul(jnp.vstack([w * slope, constant]), factor.astype(jnp.float32).T)
    of_x = _product(dy, factor.T) - _affine(x, weights, subtracted)
    of_kernel = (scale * inverse * of_kernel)[None, None]
    return of_x.astype(x.dtype), of_kernel, of_scale, of_bias, None


product_norm.defvjp(_forward, _backward)


def _moments(x: Maps, weights: Array) -> tuple[Array, Array]:
    """Sums over the valid pixels: of products of channels with each other, and of channels."""

    def apart(x: Array, weights: Array) -> tuple[Array, Array]:
        valid = x * weights.astype(x.dtype)[:, None, None, None]
        return _over_pixels(valid, x), jnp.sum(valid, (0, 1, 2), dtype=jnp.float32)

    def at_once(x: Array, weights: Array) -> tuple[Array, Array]:
        valid = _augmented(x, weights)
        sums = _over_pixels(valid, valid)
        return sums[:-_MORE, :-_MORE], sums[-_MORE, :-_MORE]

    return lax.platform_dependent(x, weights, tpu=apart, default=at_once)


def _with_gradient(x: Maps, weights: Array, dy: Array) -> tuple[Array, Array]:
    """Sums over the valid pixels: of products of channels with those of a gradient, and of it."""

    def apart(x: Array, weights: Array, dy: Array) -> tuple[Array, Array]:
        return _over_pixels(x, dy), jnp.sum(dy, (0, 1, 2), dtype=jnp.float32)

    def at_once(x: Array, weights: Array, dy: Array) -> tuple[Array, Array]:
        sums = _over_pixels(_augmented(x, weights), dy)
        return sums[:-_MORE], sums[-_MORE]

    return lax.platform_dependent(x, weights, dy, tpu=apart, default=at_once)


def _affine(x: Maps, weights: Array, matrix: Array) -> Array:
    """The valid maps times a matrix, but for its last row, which is added to each pixel."""

    def apart(x: Array, weights: Array, matrix: Array) -> Array:
        product = _product(x, matrix[:-1].astype(x.dtype)).astype(x.dtype)
        return weights[:, None, None, None] * (product + matrix[-1])

    def at_once(x: Array, weights: Array, matrix: Array) -> Array:
        # The last row is the sum of two rounded ones.
        rounded = matrix.astype(x.dtype)
        rest = (matrix[-1] - rounded[-1].astype(matrix.dtype)).astype(x.dtype)
        padded = jnp.pad(jnp.vstack([rounded, rest]), ((0, _MORE - 2), (0, 0)))
        return _product(_augmented(x, weights), padded)

    return lax.platform_dependent(x, weights, matrix, tpu=apart, default=at_once)


def _augmented(x: Maps, weights: Array) -> Float[Array, "batch height width more"]:
    """Zero for padding; else the maps and channels of ones, with which sums are products.

    On GPUs a product is one pass, and what is added to it another one.
    """
    valid = weights.astype(x.dtype)[:, None, None, None]
    ones = jnp.asarray([1, 1] + [0] * (_MORE - 2), x.dtype)
    more = jnp.broadcast_to(valid * ones, (*x.shape[:-1], _MORE))
    return jnp.concatenate([x * valid, more], -1)


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
