"""Batch normalisation by the batch's own statistics, with its gradient in closed form.

Differentiating the plain formula reads and writes whole feature maps several times more often than
needed (docs/decisions/0009-speed-of-a-training-step-on-a-cpu.md).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxtl.ops.images import each_image

Maps = Float[Array, "batch height width channels"]
Pixels = Float[Array, "*any channels"]
PerChannel = Float[Array, "channels"]
Normalised = tuple[Maps, PerChannel, PerChannel]
Limits = tuple[float, float]
Summed = TypeVar("Summed")

SUMS = "sums"
"""The name by which `jax.checkpoint` can keep what BatchNorms sum up over images and devices."""

UNLIMITED = (-math.inf, math.inf)
"""The limits of maps that are not clipped."""


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def batch_norm(
    x: Maps,
    scale: PerChannel,
    bias: PerChannel,
    center: PerChannel,
    weights: Float[Array, "batch"],
    epsilon: float,
    axis_name: str | None,
    limits: Limits = UNLIMITED,
) -> Normalised:
    """Normalises feature maps by their own statistics (Ioffe and Szegedy 2015, arXiv:1502.03167).

    All sums are float32. No gradient flows through the mean and variance that it returns, nor to
    `center` and `weights`.

    Args:
        x: feature maps (B, H, W, C).
        scale: gamma in the paper.
        bias: beta in the paper.
        center: an estimate of the mean, such as the running mean. Squares are summed around it in
            the same pass as the mean; the better it is, the smaller the rounding errors.
        weights: 1 for valid images, 0 for padding, which is normalised as well.
        epsilon: a constant that is added to the variance.
        axis_name: the mapped axis over which statistics are shared, if any.
        limits: the normalised maps are clipped to them; those of ReLU6 are 0 and 6. Where they
            are, no gradient flows.

    Returns:
        The normalised maps in the type of `x`, and the mean and the (biased) variance.
    """
    return _forward(x, scale, bias, center, weights, epsilon, axis_name, limits)[0]


def normalise(x: Pixels, mean: PerChannel, factor: PerChannel, bias: PerChannel) -> Pixels:
    """(x - mean) * factor + bias, computed in float32, in the type of `x`."""
    return ((x - mean) * factor + bias).astype(x.dtype)


def _forward(
    x: Maps,
    scale: PerChannel,
    bias: PerChannel,
    center: PerChannel,
    weights: Array,
    epsilon: float,
    axis_name: str | None,
    limits: Limits,
) -> tuple[Normalised, tuple[Array, ...]]:
    def sums(image: Array) -> tuple[Array, Array]:
        from_center = image - center
        return jnp.sum(from_center, (0, 1)), jnp.sum(jnp.square(from_center), (0, 1))

    first, second = (jnp.tensordot(weights, of, 1) for of in each_image(sums, x))
    count = jnp.sum(weights) * (x.shape[1] * x.shape[2])
    first, second, count = kept_sums(over_devices((first, second, count), axis_name))
    offset = first / count
    mean, var = center + offset, jnp.maximum(second / count - jnp.square(offset), 0)
    inverse = lax.rsqrt(var + epsilon)
    y = clip(normalise(x, mean, scale * inverse, bias), limits)
    return (y, mean, var), (x, scale, bias, weights, mean, inverse, count)


def _backward(
    epsilon: float,
    axis_name: str | None,
    limits: Limits,
    residuals: tuple[Array, ...],
    cotangents: Normalised,
) -> tuple[Array | None, ...]:
    """With xhat = (x - mean) * inverse: scale * inverse * (dy - mean(dy) - xhat * mean(dy * xhat)).

    The means are over the valid images on all devices. Padding does not change the
    statistics, so its own gradient is that of a constant mean and variance.
    """
    x, scale, bias, weights, mean, inverse, count = residuals

    def sums(image: Array, dy: Array) -> tuple[Array, Array]:
        dy = inside(normalise(image, mean, scale * inverse, bias), limits, dy).astype(jnp.float32)
        return jnp.sum(dy, (0, 1)), jnp.sum(dy * (image - mean), (0, 1))

    of_bias, of_scale = (jnp.sum(of, 0) for of in each_image(sums, x, cotangents[0]))
    of_scale = of_scale * inverse
    # Each device keeps its part of the gradients of the parameters, as for every other layer.
    mean_dy, mean_product = (of / count for of in over_devices((of_bias, of_scale), axis_name))
    dy = inside(normalise(x, mean, scale * inverse, bias), limits, cotangents[0])
    through_statistics = mean_dy + (x - mean) * (inverse * mean_product)
    dx = (scale * inverse) * (dy - weights[:, None, None, None] * through_statistics)
    return dx.astype(x.dtype), of_scale, of_bias, None, None


batch_norm.defvjp(_forward, _backward)


def clip(y: Maps, limits: Limits) -> Maps:
    """The maps within limits."""
    return y if limits == UNLIMITED else jnp.clip(y, *limits)


def inside(y: Pixels, limits: Limits, gradient: Pixels) -> Pixels:
    """A gradient where maps, before or after they were clipped, are within the limits."""
    if limits == UNLIMITED:
        return gradient
    return jnp.where((limits[0] < y) & (y < limits[1]), gradient, 0)


def over_devices(values: tuple[Array, ...], axis_name: str | None) -> tuple[Array, ...]:
    """Adds up values over a mapped axis, if there is one."""
    return lax.psum(values, axis_name) if axis_name else values


def kept_sums(values: Summed) -> Summed:
    """The values, named `SUMS`."""
    return jax.tree.map(lambda value: checkpoint_name(value, SUMS), values)
