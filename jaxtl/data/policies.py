"""TrivialAugment and RandAugment: operations drawn from a published list, on the device.

An operation either moves pixels, which is a matrix for `augmentation.warp`, or changes their
values. Those of values are Pillow's, on pixels rounded to 0..255, as in the published code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Image = Float[Array, "height width 3"]

_GEOMETRY = ("shear_rows", "shear_columns", "translate_rows", "translate_columns", "rotate")
_LEVELS = 31  # 0 to 30, in both papers
# SMOOTH of Pillow, the degenerate image of its sharpness.
_SMOOTH = ((1, 1, 1), (1, 5, 1), (1, 1, 1))
# ITU-R 601-2 luma, as Pillow rounds it.
_LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)


class Policy(NamedTuple):
    """How many operations an image gets, and how strong they are.

    Attributes:
        operations: the number of operations, one after the other.
        level: the strength of all of them, 0..30; None draws each.
        shear: the largest shear, as pixels a pixel.
        pixels: the largest shift, in pixels; 0 where it is a fraction.
        fraction: the largest shift, as a fraction of height or width.
        degrees: the largest angle.
        enhancement: how far the factor of brightness, colour, contrast and sharpness is from 1.
        bits: the most bits that posterizing takes away.
    """

    operations: int
    level: int | None
    shear: float
    pixels: float
    fraction: float
    degrees: float
    enhancement: float
    bits: int


POLICIES = {
    # The wide space of Müller and Hutter 2021, arXiv:2103.10158, table 1.
    "trivial": Policy(1, None, 0.99, 32.0, 0.0, 135.0, 0.99, 6),
    # Cubuk et al. 2020, arXiv:1909.13719: N = 2 and M = 9, with the ranges of AutoAugment (Cubuk et
    # al. 2019, arXiv:1805.09501, table 6).
    "rand": Policy(2, 9, 0.3, 0.0, 150 / 331, 30.0, 0.9, 4),
}


class Operation(NamedTuple):
    """An operation that was drawn for an image.

    Attributes:
        kind: its place in `OPERATIONS`.
        strength: 0..1.
        sign: -1 or 1, the direction where there are two.
    """

    kind: Int[Array, ""]
    strength: Float[Array, ""]
    sign: Float[Array, ""]


def draw_operations(key: Key[Array, ""], policy: Policy) -> list[Operation]:
    """Draws the operations of one image, each of `OPERATIONS` as likely as the others."""
    drawn = []
    for own in jax.random.split(key, policy.operations):
        kind, level, sign = jax.random.split(own, 3)
        drawn.append(
            Operation(
                jax.random.randint(kind, (), 0, len(OPERATIONS)),
                jax.random.randint(level, (), 0, _LEVELS) / (_LEVELS - 1)
                if policy.level is None
                else jnp.asarray(policy.level / (_LEVELS - 1)),
                jnp.where(jax.random.bernoulli(sign), 1.0, -1.0),
            )
        )
    return drawn


def movement(operation: Operation, policy: Policy, height: int, width: int) -> Float[Array, "3 3"]:
    """The matrix from a place in the result to one in the image, as of `inverse_affine`.

    Shears and rotations are about the centre. It is that of no change for operations on values.
    """
    signed = operation.strength * operation.sign

    def amount(name: str, most: float) -> Float[Array, ""]:
        return jnp.where(operation.kind == OPERATIONS.index(name), signed * most, 0.0)

    turn = jnp.deg2rad(amount("rotate", policy.degrees))
    linear = jnp.asarray(
        [
            [jnp.cos(turn), jnp.sin(turn) + amount("shear_rows", policy.shear)],
            [-jnp.sin(turn) + amount("shear_columns", policy.shear), jnp.cos(turn)],
        ]
    )
    shift = jnp.stack(
        [
            amount("translate_rows", policy.pixels + policy.fraction * height),
            amount("translate_columns", policy.pixels + policy.fraction * width),
        ]
    )
    centre = jnp.asarray([(height - 1) / 2, (width - 1) / 2])
    offset = centre + shift - jnp.sum(linear * centre, axis=1)
    return jnp.concatenate(
        [jnp.concatenate([linear, offset[:, None]], axis=1), jnp.asarray([[0.0, 0.0, 1.0]])]
    )


def change_values(pixels: Image, operation: Operation, policy: Policy) -> Image:
    """Applies an operation on values, 0..255; one that moves pixels changes nothing here."""
    whole = jnp.round(jnp.clip(pixels, 0, 255))
    still = [lambda whole, *_: whole] * (len(_GEOMETRY) + 1)
    arguments = whole, operation.strength, operation.sign
    places = [lambda *given, of=of: of(*given, policy) for of in _VALUES.values()]
    changed = jax.lax.switch(operation.kind, [*still, *places], *arguments)
    return jnp.where(operation.kind < len(still), pixels, changed)


def _blended(base: Callable[[Image], Image]) -> Callable[..., Image]:
    """An enhancement of Pillow: a mixture of the image and of what it has least of it."""

    def enhance(pixels: Image, strength: Array, sign: Array, policy: Policy) -> Image:
        factor = 1 + strength * sign * policy.enhancement
        least = base(pixels)
        return jnp.clip(least + (pixels - least) * factor, 0, 255)

    return enhance


def _grey(pixels: Image) -> Image:
    luma = sum(weight * pixels[..., i] for i, weight in enumerate(_LUMA))
    return jnp.broadcast_to(jnp.round(luma)[..., None], pixels.shape)


def _mean_grey(pixels: Image) -> Image:
    return jnp.broadcast_to(jnp.floor(jnp.mean(_grey(pixels)) + 0.5), pixels.shape)


def _smooth(pixels: Image) -> Image:
    """The mean of each pixel and its neighbours; the pixels of the rim stay."""
    height, width, _ = pixels.shape
    around = [
        weight * pixels[row : height - 2 + row, column : width - 2 + column]
        for row, weights in enumerate(_SMOOTH)
        for column, weight in enumerate(weights)
    ]
    return pixels.at[1:-1, 1:-1].set(jnp.round(sum(around) / 13))


def _solarize(pixels: Image, strength: Array, sign: Array, policy: Policy) -> Image:
    """Inverts what is not below a threshold, which falls from 255 to 0."""
    return jnp.where(pixels < 255 * (1 - strength), pixels, 255 - pixels)


def _posterize(pixels: Image, strength: Array, sign: Array, policy: Policy) -> Image:
    """Clears the low bits of each value."""
    bits = jnp.round(policy.bits * strength).astype(jnp.int32)
    return (pixels.astype(jnp.int32) >> bits << bits).astype(pixels.dtype)


def _stretch(pixels: Image, strength: Array, sign: Array, policy: Policy) -> Image:
    """Spreads each channel over 0..255."""
    low, high = jnp.min(pixels, (0, 1)), jnp.max(pixels, (0, 1))
    flat = high <= low
    scale = 255 / jnp.where(flat, 1, high - low)
    return jnp.where(flat, pixels, jnp.floor((pixels - low) * scale + 1e-3))


def _equalize(pixels: Image, strength: Array, sign: Array, policy: Policy) -> Image:
    """Makes each channel's values about as frequent as each other, as Pillow does."""

    def one(channel: Float[Array, "height width"]) -> Float[Array, "height width"]:
        values = channel.astype(jnp.int32)
        counts = jnp.bincount(values.ravel(), length=256)
        step = (values.size - counts[jnp.max(values)]) // 255
        below = jnp.cumsum(counts) - counts
        table = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
        return jnp.where(step > 0, table[values].astype(channel.dtype), channel)

    return jax.vmap(one, in_axes=2, out_axes=2)(pixels)


_VALUES: dict[str, Callable[..., Image]] = {
    "brightness": _blended(jnp.zeros_like),
    "colour": _blended(_grey),
    "contrast": _blended(_mean_grey),
    "sharpness": _blended(_smooth),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _stretch,
    "equalize": _equalize,
}
OPERATIONS = (*_GEOMETRY, "identity", *_VALUES)
"""The operations of both policies: all 14 of the papers."""
