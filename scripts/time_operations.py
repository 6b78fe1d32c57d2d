"""Times the two operations that are written differently from what the libraries offer.

    python scripts/time_operations.py

For each the fastest of seven calls, in milliseconds, batch 32: the gradients of the depthwise
convolution on a CPU (docs/decisions/0003), and the resampling of 224 px pictures with a matrix each
(docs/decisions/0007).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import dm_pix
import jax
import jax.numpy as jnp

from jaxtl.data.augment import warp
from jaxtl.ops import depthwise

_BATCH = 32


def main() -> None:
    """Prints a line a comparison."""
    for side, channels in ((28, 192), (14, 576)):
        x, kernel = jnp.ones((_BATCH, side, side, channels)), jnp.ones((3, 3, 1, channels))
        autodiff = _fastest(_autodiff, x, kernel, x)
        ours = _fastest(lambda *of: depthwise._shifted_pull_back(*of, stride=1), x, kernel, x)
        print(f"depthwise gradients {side}x{side}x{channels}: {ours:.0f}, autodiff {autodiff:.0f}")

    pictures = jnp.ones((_BATCH, 224, 224, 3))
    matrices = jnp.eye(3) + 0.01 * jax.random.normal(jax.random.key(0), (_BATCH, 3, 3))
    ours = _fastest(jax.vmap(warp), pictures, matrices)
    theirs = _fastest(jax.vmap(_dm_pix), pictures, matrices)
    print(f"resampling 224 px: {ours:.0f}, dm_pix.affine_transform {theirs:.0f}")


def _autodiff(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
    return jax.vjp(lambda x, kernel: depthwise._shifted(x, kernel, 1), x, kernel)[1](gradient)


def _dm_pix(picture: jax.Array, matrix: jax.Array) -> jax.Array:
    matrix = jnp.eye(3).at[:2, :2].set(matrix[:2, :2])
    return dm_pix.affine_transform(picture, matrix, mode="nearest")


def _fastest(function: Callable, *arguments: jax.Array) -> float:
    compiled, seconds = jax.jit(function), []
    for _ in range(8):  # the first one compiles
        begun = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:]) * 1e3


if __name__ == "__main__":
    main()
