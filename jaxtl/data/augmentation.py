"""Random changes to training images, on the device.

Each image has a key of its own, so the result does not depend on how a batch is spread over
devices. `draw_geometry` turns a key into numbers, `inverse_affine` the numbers into one matrix, and
`warp` applies it.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from jaxtl.config import Augment
from jaxtl.data.policies import POLICIES, change_values, draw_operations, movement

# One key for each thing that is drawn, so that switching one on does not change the others. A new
# entry goes last: a key depends on its place here, and augmented views must stay as they are.
_DRAWS = (
    "horizontal_flip",
    "vertical_flip",
    "shear",
    "zoom",
    "area",
    "ratio",
    "corner",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "rotation",
    "translation",
    "erasing",
    "policy",
    "blur",
)
# Szegedy et al. 2015, arXiv:1409.4842, section 6: the aspect ratio lies in [3/4, 4/3].
_LARGEST_RATIO = 4 / 3
# Zhong et al. 2017, arXiv:1708.04896, section 4.2: the area, and the bounds of the aspect ratio.
_ERASED_AREA, _ERASED_RATIO = (0.02, 0.33), 1 / 0.3


class Geometry(NamedTuple):
    """Where the pixels of one changed image come from.

    Attributes:
        corner: the top and left edge of the box that is kept, as fractions of height and width.
        box: the height and width of that box, as fractions of height and width.
        shear: the angle, in degrees.
        zoom: the scale of columns and that of rows (Keras' zx and zy); above 1 things get smaller.
        rotation: the angle, in degrees.
        translation: the shift along rows and columns, as fractions of height and width.
        flip: whether rows and whether columns are mirrored.
    """

    corner: Float[Array, "2"]
    box: Float[Array, "2"]
    shear: Float[Array, ""]
    zoom: Float[Array, "2"]
    rotation: Float[Array, ""]
    translation: Float[Array, "2"]
    flip: Bool[Array, "2"]


def augment(
    images: Num[Array, "batch height width 3"], keys: Key[Array, " batch"], config: Augment
) -> Float[Array, "batch height width 3"]:
    """Changes each image at random, as its key says; to be called inside `jit`.

    The order is: random resized crop, rotation, translation, shear and zoom, flips and what moves
    pixels in a policy, all in one interpolation; then what changes values in a policy; then
    brightness, contrast, saturation and hue, each clipped to the range of pixels; then blur and
    erasing. Without any of these this is only a cast, and with flips alone no pixel is
    interpolated.

    Args:
        images: RGB, 0..255.
        keys: one random key an image.
        config: what to change, and how strongly.

    Returns:
        RGB, 0..255, float32.
    """

    def one(image: Num[Array, "height width 3"], key: Key[Array, ""]) -> Array:
        return _augment_one(image, key, config)

    if not (config.policy or config.blur or config.erasing):
        return jax.vmap(one)(images, keys)
    # One image after the other, a CPU computes no operations but those that are drawn
    # (docs/decisions/0062-policies-on-the-device.md).
    return jax.lax.platform_dependent(
        images,
        keys,
        cpu=lambda images, keys: jax.lax.map(lambda each: one(*each), (images, keys)),
        default=jax.vmap(one),
    )


def _keys(key: Key[Array, ""]) -> dict[str, Key[Array, ""]]:
    return dict(zip(_DRAWS, jax.random.split(key, len(_DRAWS)), strict=True))


def _augment_one(
    image: Num[Array, "height width 3"], key: Key[Array, ""], config: Augment
) -> Float[Array, "height width 3"]:
    pixels = image.astype(jnp.float32)
    height, width, _ = pixels.shape
    if config.policy:
        policy = POLICIES[config.policy]
        operations = draw_operations(_keys(key)["policy"], policy)
        matrix = inverse_affine(draw_geometry(key, config), height, width)
        for operation in operations:
            moved = movement(operation, policy, height, width)
            matrix = jnp.sum(matrix[:, :, None] * moved, axis=1)  # not rounded, as a product may be
        pixels = warp(pixels, matrix)
        for operation in operations:
            pixels = change_values(pixels, operation, policy)
    elif any((config.crop_scale, config.shear, config.zoom, config.rotation, config.translation)):
        pixels = warp(pixels, inverse_affine(draw_geometry(key, config), height, width))
    elif config.horizontal_flip or config.vertical_flip:
        rows, columns = draw_geometry(key, config).flip
        pixels = jnp.where(rows, pixels[::-1], pixels)
        pixels = jnp.where(columns, pixels[:, ::-1], pixels)
    if config.brightness or config.contrast or config.saturation or config.hue:
        pixels = _jitter_colours(pixels / 255, key, config) * 255
    if config.blur:
        sigma = jax.random.uniform(_keys(key)["blur"], minval=config.blur[0], maxval=config.blur[1])
        pixels = blur(pixels, sigma, config.blur[1])
    if config.erasing:
        pixels = _erase(pixels, _keys(key)["erasing"], config.erasing)
    return pixels


def draw_geometry(key: Key[Array, ""], config: Augment) -> Geometry:
    """Draws the geometry of one image; without a range in `config` a change is left out.

    Args:
        key: the image's key.
        config: the ranges. The area of the box is uniform in `crop_scale`; its aspect ratio is
            log-uniform over the part of [3/4, 4/3] with which a box of this area fits into the
            image (images are square here, so it is a ratio of fractions); its place is uniform.
    """
    keys = _keys(key)
    corner, box = jnp.zeros(2), jnp.ones(2)
    if config.crop_scale:
        least, largest = config.crop_scale
        area = jax.random.uniform(keys["area"], minval=least, maxval=largest)
        # sqrt(area * ratio) and sqrt(area / ratio) are at most 1 for ratios in [area, 1 / area].
        bound = jnp.minimum(-jnp.log(area), jnp.log(_LARGEST_RATIO))
        ratio = jnp.exp(jax.random.uniform(keys["ratio"], minval=-bound, maxval=bound))
        box = jnp.minimum(jnp.sqrt(jnp.stack([area / ratio, area * ratio])), 1.0)
        corner = jax.random.uniform(keys["corner"], (2,)) * (1 - box)
    shear, zoom = jnp.zeros(()), jnp.ones(2)
    if config.shear:
        shear = jax.random.uniform(keys["shear"], minval=-config.shear, maxval=config.shear)
    if config.zoom:
        low, high = 1 - config.zoom, 1 + config.zoom
        zoom = jax.random.uniform(keys["zoom"], (2,), minval=low, maxval=high)
    rotation, translation = jnp.zeros(()), jnp.zeros(2)
    if most := config.rotation:
        rotation = jax.random.uniform(keys["rotation"], minval=-most, maxval=most)
    if most := config.translation:
        translation = jax.random.uniform(keys["translation"], (2,), minval=-most, maxval=most)
    rows = jax.random.bernoulli(keys["vertical_flip"]) & config.vertical_flip
    columns = jax.random.bernoulli(keys["horizontal_flip"]) & config.horizontal_flip
    flip = jnp.stack([rows, columns])
    return Geometry(corner, box, shear, zoom, rotation, translation, flip)


def inverse_affine(geometry: Geometry, height: int, width: int) -> Float[Array, "3 3"]:
    """The matrix from (row, column, 1) of a pixel in the result to its place in the image.

    Coordinates are those of pixel centres: 0 is the centre of the first pixel. Rotation, shift,
    shear and zoom are those of Keras' `ImageDataGenerator`, about the centre. A place in the result
    is mirrored, then zoomed, sheared, shifted and rotated, and put into the box that was cropped.
    """
    centre = jnp.asarray([(height - 1) / 2, (width - 1) / 2])
    angle = jnp.deg2rad(geometry.shear)
    zoom_columns, zoom_rows = geometry.zoom
    shear_and_zoom = jnp.asarray(
        [
            [jnp.cos(angle) * zoom_rows, 0.0],
            [-jnp.sin(angle) * zoom_rows, zoom_columns],
        ]
    )
    turn = jnp.deg2rad(geometry.rotation)
    rotation = jnp.asarray([[jnp.cos(turn), jnp.sin(turn)], [-jnp.sin(turn), jnp.cos(turn)]])
    mirror = jnp.where(geometry.flip, -1.0, 1.0)
    # Sums of products, since some devices round matrix products.
    turned = jnp.sum(rotation[:, :, None] * shear_and_zoom, axis=1)
    linear = geometry.box[:, None] * turned * mirror
    size = jnp.asarray([height, width])
    shift = geometry.box * jnp.sum(rotation * (geometry.translation * size), axis=1)
    box_centre = (geometry.corner + geometry.box / 2) * size - 0.5
    offset = box_centre + shift - jnp.sum(linear * centre, axis=1)
    return jnp.concatenate(
        [jnp.concatenate([linear, offset[:, None]], axis=1), jnp.asarray([[0.0, 0.0, 1.0]])]
    )


def warp(
    pixels: Float[Array, "height width 3"], matrix: Float[Array, "3 3"]
) -> Float[Array, "height width 3"]:
    """Resamples an image bilinearly; outside of it the nearest edge is repeated.

    Args:
        pixels: an image, of any range of values.
        matrix: maps a place in the result to one in the image, see `inverse_affine`.
    """
    # Not `dm_pix.affine_transform`: it interpolates over the channels too, which makes it fifty
    # times slower on a CPU, and it finds the places by a matrix product, which GPUs and TPUs round
    # by up to a pixel at their default precision (TF32, bfloat16).
    height, width, _ = pixels.shape
    row, column = jnp.mgrid[:height, :width]
    places = [line[0] * row + line[1] * column + line[2] for line in matrix[:2]]

    def resample(channel: Float[Array, "height width"]) -> Float[Array, "height width"]:
        return jax.scipy.ndimage.map_coordinates(channel, places, order=1, mode="nearest")

    return jax.vmap(resample, in_axes=2, out_axes=2)(pixels)


def blur(
    pixels: Float[Array, "height width 3"], sigma: Float[Array, ""], most: float
) -> Float[Array, "height width 3"]:
    """Blurs an image by a Gaussian; outside of it the nearest edge is repeated.

    Args:
        pixels: an image, of any range of values.
        sigma: the standard deviation, in pixels, above 0.
        most: an upper bound of `sigma`; the Gaussian ends at three times that.
    """
    # Not `dm_pix.gaussian_blur`: on a CPU it takes five times as long, and it darkens the edges.
    height, width, channels = pixels.shape
    reach = math.ceil(3 * most)
    weights = jnp.exp(-jnp.square(jnp.arange(-reach, reach + 1) / sigma) / 2)
    weights /= jnp.sum(weights)
    around = ((reach, reach), (reach, reach), (0, 0))
    padded = jnp.pad(pixels, around, mode="edge").reshape(height + 2 * reach, -1)
    rows = [weight * padded[first : first + height] for first, weight in enumerate(weights)]
    # Without the barrier XLA would compute each row once more for each of its columns.
    blurred = jax.lax.optimization_barrier(functools.reduce(jnp.add, rows))
    columns = [
        weight * blurred[:, channels * first : channels * (first + width)]
        for first, weight in enumerate(weights)
    ]
    return functools.reduce(jnp.add, columns).reshape(pixels.shape)


def _erase(
    pixels: Float[Array, "height width 3"], key: Key[Array, ""], probability: float
) -> Float[Array, "height width 3"]:
    """Puts noise into a rectangle that lies within the image, with a probability."""
    happens, drawn = jax.random.split(key)
    chosen = jax.random.bernoulli(happens, probability)
    return jax.lax.cond(chosen, _with_noise, lambda pixels, _: pixels, pixels, drawn)


def _with_noise(
    pixels: Float[Array, "height width 3"], key: Key[Array, ""]
) -> Float[Array, "height width 3"]:
    area, ratio, corner, noise = jax.random.split(key, 4)
    least, most = _ERASED_AREA
    area = jax.random.uniform(area, minval=least, maxval=most)
    # With a larger ratio the rectangle would be longer than the image.
    bound = jnp.minimum(jnp.log(_ERASED_RATIO), -jnp.log(area))
    ratio = jnp.exp(jax.random.uniform(ratio, minval=-bound, maxval=bound))
    box = jnp.stack([jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)])
    first = jax.random.uniform(corner, (2,)) * (1 - box)
    rows, columns = (
        (places >= start) & (places < start + side)
        for places, start, side in zip(map(_centres, pixels.shape[:2]), first, box, strict=True)
    )
    # Three values from the bits of one number, since to draw them takes most of the time.
    bits = jax.random.bits(noise, (*pixels.shape[:2], 1), jnp.uint32)
    values = (bits >> jnp.asarray([0, 8, 16], jnp.uint32)) & 255
    inside = (rows[:, None] & columns)[..., None]
    return jnp.where(inside, values.astype(pixels.dtype), pixels)


def _centres(count: int) -> Float[Array, "count"]:
    """Those of pixels, as fractions of a side."""
    return (jnp.arange(count) + 0.5) / count


def _jitter_colours(
    pixels: Float[Array, "height width 3"], key: Key[Array, ""], config: Augment
) -> Float[Array, "height width 3"]:
    """Brightness, contrast, saturation, hue, in this order, on pixels in 0..1."""
    import dm_pix  # takes a while, and most runs leave colours alone

    keys = _keys(key)

    def factor(name: str, spread: float) -> Float[Array, ""]:
        return jax.random.uniform(keys[name], minval=max(0.0, 1 - spread), maxval=1 + spread)

    if config.brightness:
        pixels = jnp.clip(pixels * factor("brightness", config.brightness), 0, 1)
    if config.contrast:
        pixels = dm_pix.adjust_contrast(pixels, factor("contrast", config.contrast))
        pixels = jnp.clip(pixels, 0, 1)
    if config.saturation:
        pixels = dm_pix.adjust_saturation(pixels, factor("saturation", config.saturation))
    if config.hue:
        turn = jax.random.uniform(keys["hue"], minval=-config.hue, maxval=config.hue)
        pixels = dm_pix.adjust_hue(pixels, turn)
    return jnp.clip(pixels, 0, 1)
