"""ReLU with a gradient from its result."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxtl.ops.windows import Maps


@jax.custom_vjp
def relu(x: Maps) -> Maps:
    """The maximum of the maps and zero; maps before it need not be kept for its gradient."""
    return jnp.maximum(x, 0)


def _forward(x: Maps) -> tuple[Maps, Maps]:
    y = relu(x)
    return y, y


def _backward(y: Maps, gradient: Maps) -> tuple[Maps]:
    # For `y > 0` XLA compares what the maximum was taken of, and keeps that.
    return (jnp.where(y == 0, 0, gradient),)


relu.defvjp(_forward, _backward)
