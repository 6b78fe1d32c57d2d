"""Mixes pairs of training images, on the device."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Shaped

Image = Float[Array, "height width 3"]


def mix(
    images: Float[Array, "batch height width 3"],
    keys: Key[Array, "batch"],
    valid: Bool[Array, "batch"],
    *,
    mixup: float,
    cutmix: float,
) -> tuple[Float[Array, "batch height width 3"], Float[Array, "batch"]]:
    """Mixes each image with its partner: places 0 and 1 of a batch are a pair, 2 and 3, and so on.

    Of each image at least half of the mixture is its own; in CutMix up to whole pixels. Where both
    ways are switched on, each image draws one of them. An image whose partner only pads the batch
    stays as it is.

    Args:
        images: an even number of images, of any range of values.
        keys: one random key an image.
        valid: False for images that only pad the batch.
        mixup: the weight of an image is drawn from Beta(mixup, mixup), above 0; 0 switches it off
            (Zhang et al. 2018, arXiv:1710.09412).
        cutmix: the same for the area around a rectangle that comes from the partner (Yun et al.
            2019, arXiv:1905.04899).

    Returns:
        The mixtures, and the weight of each image in its own, up to 1.
    """
    ways = (_blend, mixup), (_paste, cutmix)
    chosen = [partial(way, alpha=alpha) for way, alpha in ways if alpha]

    def mix_one(image: Image, other: Image, key: Array, whole: Array) -> tuple[Image, Array]:
        which, draw = jax.random.split(key)
        mixed, weight = jax.lax.switch(
            jax.random.randint(which, (), 0, len(chosen)), chosen, image, other, draw
        )
        return jnp.where(whole, image, mixed), jnp.where(whole, 1.0, weight)

    return jax.vmap(mix_one)(images, partners(images), keys, ~partners(valid))


def partners(array: Shaped[Array, "batch ..."]) -> Shaped[Array, "batch ..."]:
    """The entries of a batch in the places of their partners."""
    return array.reshape(-1, 2, *array.shape[1:])[:, ::-1].reshape(array.shape)


def _weight(key: Array, alpha: float) -> Array:
    """That of an image, of which its partner has the rest; the larger one, since both get one."""
    drawn = jax.random.beta(key, alpha, alpha)
    return jnp.maximum(drawn, 1 - drawn)


def _blend(image: Image, other: Image, key: Array, alpha: float) -> tuple[Image, Array]:
    weight = _weight(key, alpha)
    return weight * image + (1 - weight) * other, weight


def _paste(image: Image, other: Image, key: Array, alpha: float) -> tuple[Image, Array]:
    """Pastes a rectangle with the image's proportions, cut off where it leaves the image."""
    of_weight, of_centre = jax.random.split(key)
    side = jnp.sqrt(1 - _weight(of_weight, alpha))
    inside = jnp.asarray(True)
    for axis, centre in enumerate(jax.random.uniform(of_centre, (2,))):
        places = (jnp.arange(image.shape[axis]) + 0.5) / image.shape[axis]
        along = jnp.abs(places - centre) < side / 2
        inside = inside & (along[:, None] if axis == 0 else along)
    return jnp.where(inside[..., None], other, image), 1 - jnp.mean(inside)
