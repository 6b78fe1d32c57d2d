"""Times the operations that are written differently from what the libraries offer.

    python scripts/time_operations.py

For each the fastest of seven calls, in milliseconds, batch 32, on a CPU: the gradients of the
depthwise convolution (docs/decisions/0003), of the 1x1 convolution and of BatchNorm
(docs/decisions/0009), of 3x3 convolutions on small and on large maps (docs/decisions/0016 and
0017), and the resampling of 224 px images with a matrix each (docs/decisions/0007).
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from functools import partial

import dm_pix
import jax
import jax.numpy as jnp
from jax import lax

from jaxtl.data.augmentation import warp
from jaxtl.ops import convolution, depthwise
from jaxtl.ops.batch_norm import batch_norm

_BATCH = 32
_PADS = ((1, 1), (1, 1))


def main() -> None:
    """Prints a line for each comparison."""
    for side, channels in ((56, 144), (28, 192), (14, 576)):
        x, kernel = _ones(side, channels), jnp.ones((3, 3, 1, channels))
        name = f"depthwise gradients {side}x{side}x{channels}"
        ours = partial(depthwise._shifted_vjp, stride=1, pads=_PADS)
        autodiff = _pull_back(lambda x, kernel: depthwise._shifted(x, kernel, 1, _PADS))
        _compare(name, ours, "autodiff", autodiff, x, kernel, x)

    for side, channels, out in ((112, 16, 96), (56, 24, 144), (14, 96, 576)):
        x, gradient = _ones(side, channels), _ones(side, out)
        ours = _pull_back(lambda x, kernel: convolution.conv(x, kernel[None, None], 1, "SAME"))
        product, kernel = _pull_back(jnp.matmul), jnp.ones((channels, out))
        name = f"1x1 gradients {side}x{side}x{channels} to {out}"
        _compare(name, ours, "of a product in four dimensions", product, x, kernel, gradient)

    for side, channels, stride in (
        *((1, 512, 1), (2, 512, 1), (3, 256, 1), (4, 256, 1), (4, 256, 2)),
        *((14, 256, 1), (14, 512, 1), (28, 128, 1), (28, 512, 1)),
        *((56, 64, 1), (56, 256, 1), (56, 128, 2), (112, 64, 1)),
    ):
        way = convolution._gathered if side < 5 else convolution._on_large_maps
        ours, native = (_with_gradients(of, stride) for of in (way, convolution._native))
        name = f"3x3 convolution and gradients {side}x{side}x{channels}, stride {stride}"
        x, kernel = _ones(side, channels), jnp.ones((3, 3, channels, channels))
        _compare(name, ours, "XLA's", native, x, kernel)

    for side, channels in ((112, 96), (14, 384)):
        ours, plain = (_there_and_back(norm) for norm in (_norm, _plain_norm))
        name = f"BatchNorm and gradients {side}x{side}x{channels}"
        _compare(name, ours, "autodiff", plain, _ones(side, channels), jnp.ones(channels))

    matrices = jnp.eye(3) + 0.01 * jax.random.normal(jax.random.key(0), (_BATCH, 3, 3))
    ours, theirs = jax.vmap(warp), jax.vmap(_dm_pix)
    images = _ones(224, 3)
    _compare("resampling 224 px", ours, "dm_pix.affine_transform", theirs, images, matrices)


def _ones(side: int, channels: int) -> jax.Array:
    return jnp.ones((_BATCH, side, side, channels))


def _compare(
    name: str, ours: Callable, other: str, theirs: Callable, *arguments: jax.Array
) -> None:
    """Prints the fastest of seven calls of either function, compiled, in milliseconds."""
    fastest = []
    for function in (ours, theirs):
        call = partial(jax.jit(function), *arguments)
        jax.block_until_ready(call())  # compiles
        seconds = timeit.repeat(lambda c=call: jax.block_until_ready(c()), number=1, repeat=7)
        fastest.append(f"{min(seconds) * 1e3:.1f}")
    print(f"{name}: {fastest[0]}, {other} {fastest[1]}", flush=True)


def _pull_back(function: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    return lambda x, kernel, gradient: jax.vjp(function, x, kernel)[1](gradient)


def _with_gradients(way: Callable[..., jax.Array], stride: int) -> Callable[..., jax.Array]:
    return jax.value_and_grad(lambda x, k: way(x, k, stride, _PADS).sum(), argnums=(0, 1))


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


if __name__ == "__main__":
    main()
