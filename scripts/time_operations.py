"""Times the operations that are written differently from what the libraries offer.

    python scripts/time_operations.py

For each the fastest of seven calls, in milliseconds, batch 32, on a CPU: the gradients of the
depthwise convolution (docs/decisions/0003), of the 1x1 convolution and of BatchNorm
(docs/decisions/0009), of 3x3 convolutions on small and on large maps (docs/decisions/0016 and
0017), and the resampling of 224 px images with a matrix each (docs/decisions/0007).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxtl.data.augmentation import warp
from jaxtl.models.layers import Conv
from jaxtl.ops import convolution, depthwise
from jaxtl.ops.batch_norm import batch_norm

_BATCH = 32
_PADS = ((1, 1), (1, 1))


def main() -> None:
    """Prints a line a comparison."""
    for side, channels in ((56, 144), (28, 192), (14, 576)):
        x, kernel = jnp.ones((_BATCH, side, side, channels)), jnp.ones((3, 3, 1, channels))
        autodiff = _fastest(_depthwise_by_autodiff, x, kernel, x)
        ours = _fastest(
            lambda *of: depthwise._shifted_pull_back(*of, stride=1, pads=_PADS), x, kernel, x
        )
        print(f"depthwise gradients {side}x{side}x{channels}: {ours:.0f}, autodiff {autodiff:.0f}")

    for side, channels, out in ((112, 16, 96), (56, 24, 144), (14, 96, 576)):
        x, gradient = (jnp.ones((_BATCH, side, side, size)) for size in (channels, out))
        ours = _fastest(_conv_pull_back(channels, out), x, gradient)
        straight = _fastest(_product_pull_back, x, jnp.ones((channels, out)), gradient)
        print(
            f"1x1 gradients {side}x{side}x{channels} to {out}: {ours:.0f}, "
            f"of a product in four dimensions {straight:.0f}"
        )

    for side, channels, stride in (
        *((1, 512, 1), (2, 512, 1), (3, 256, 1), (4, 256, 1), (4, 256, 2)),
        *((14, 256, 1), (14, 512, 1), (28, 128, 1), (28, 512, 1)),
        *((56, 64, 1), (56, 256, 1), (56, 128, 2), (112, 64, 1)),
    ):
        x, kernel = (jnp.ones((_BATCH, side, side, channels)), jnp.ones((3, 3, channels, channels)))
        way = convolution._gathered if side < 5 else convolution._on_large_maps
        ours, native = (
            _fastest(_with_gradients(way, stride), x, kernel) for way in (way, convolution._native)
        )
        print(
            f"3x3 convolution and gradients {side}x{side}x{channels}, stride {stride}: "
            f"{ours:.1f}, XLA's {native:.1f}"
        )

    for side, channels in ((112, 96), (14, 384)):
        x, one = jnp.ones((_BATCH, side, side, channels)), jnp.ones(channels)
        ours, plain = (_fastest(_there_and_back(norm), x, one) for norm in (_norm, _plain_norm))
        print(f"BatchNorm and gradients {side}x{side}x{channels}: {ours:.0f}, autodiff {plain:.0f}")

    images = jnp.ones((_BATCH, 224, 224, 3))
    matrices = jnp.eye(3) + 0.01 * jax.random.normal(jax.random.key(0), (_BATCH, 3, 3))
    ours = _fastest(jax.vmap(warp), images, matrices)
    theirs = _fastest(jax.vmap(_dm_pix), images, matrices)
    print(f"resampling 224 px: {ours:.0f}, dm_pix.affine_transform {theirs:.0f}")


def _depthwise_by_autodiff(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, ...]:
    return jax.vjp(lambda x, kernel: depthwise._shifted(x, kernel, 1, _PADS), x, kernel)[1](
        gradient
    )


def _with_gradients(way: Callable[..., jax.Array], stride: int) -> Callable[..., jax.Array]:
    return jax.value_and_grad(lambda x, k: way(x, k, stride, _PADS).sum(), argnums=(0, 1))


def _conv_pull_back(channels: int, out: int) -> Callable[..., tuple[jax.Array, ...]]:
    graph, state = nnx.split(Conv(channels, out, rng=np.random.default_rng(0)))

    def pull_back(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
        return jax.vjp(lambda state, x: nnx.merge(graph, state)(x), state, x)[1](gradient)

    return pull_back


def _product_pull_back(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, ...]:
    return jax.vjp(jnp.matmul, x, kernel)[1](gradient)


def _there_and_back(norm: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    def both(x: jax.Array, one: jax.Array) -> tuple[jax.Array, ...]:
        y, pull_back = jax.vjp(norm, x, one, one)
        return y, *pull_back(x)

    return both


def _norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return batch_norm(x, scale, bias, bias, jnp.ones(len(x)), 1e-3, None)[0]


def _plain_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
    return (x - mean) * (scale * lax.rsqrt(var + 1e-3)) + bias


def _dm_pix(image: jax.Array, matrix: jax.Array) -> jax.Array:
    matrix = jnp.eye(3).at[:2, :2].set(matrix[:2, :2])
    return dm_pix.affine_transform(image, matrix, mode="nearest")


def _fastest(function: Callable, *arguments: jax.Array) -> float:
    compiled, seconds = jax.jit(function), []
    for _ in range(8):  # the first one compiles
        begun = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:]) * 1e3


if __name__ == "__main__":
    main()
