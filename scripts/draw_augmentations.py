"""Draws docs/images/augmentation.jpg: what each key of `augment` makes of two photographs.

The photographs are china.jpg and flower.jpg of scikit-learn. Run it after changing augmentation.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from jaxtl.config import Augment
from jaxtl.data.augmentation import augment
from jaxtl.data.mixing import mix

_SIDE, _EACH, _MARGIN = 96, 6, 150
_CHANGES: dict[str, Augment] = {
    "crop_scale=(0.3, 1)": Augment(crop_scale=(0.3, 1.0), horizontal_flip=True),
    "rotation=30": Augment(rotation=30.0),
    "translation=0.2": Augment(translation=0.2),
    "shear=20, zoom=0.2": Augment(shear=20.0, zoom=0.2),
    "brightness, contrast=0.4": Augment(brightness=0.4, contrast=0.4),
    "saturation=0.5, hue=0.1": Augment(saturation=0.5, hue=0.1),
    "blur=(0.1, 2)": Augment(blur=(0.1, 2.0)),
    "erasing=1": Augment(erasing=1.0),
    "policy='trivial'": Augment(policy="trivial"),
    "policy='rand'": Augment(policy="rand"),
}
Row = UInt8[np.ndarray, "images side side 3"]


def photographs() -> Row:
    """Both, alternating, cut to squares."""
    squares = []
    for photograph in load_sample_images().images:
        height, width, _ = photograph.shape
        left = (width - height) // 2
        square = Image.fromarray(photograph[:, left : left + height])
        squares.append(np.asarray(square.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)))
    return np.stack(squares * (_EACH // 2))


def rows() -> Iterator[tuple[str, Row]]:
    """Yields each row of the figure with its title."""
    images, keys = photographs(), jax.random.split(jax.random.key(5), _EACH)
    for title, config in _CHANGES.items():
        yield title, pixels(augment(images, keys, config))
    plain, valid = jnp.asarray(images, jnp.float32), jnp.ones(_EACH, bool)
    for title, mixup, cutmix in (("mixup=1", 1.0, 0.0), ("cutmix=1", 0.0, 1.0)):
        yield title, pixels(mix(plain, keys, valid, mixup=mixup, cutmix=cutmix)[0])


def pixels(images: jax.Array) -> Row:
    """What can be shown of images."""
    return np.asarray(jnp.clip(jnp.round(images), 0, 255), np.uint8)


def main() -> None:
    """Draws the figure."""
    drawn = list(rows())
    figure = Image.new("RGB", (_MARGIN + _EACH * (_SIDE + 4), len(drawn) * (_SIDE + 4)), "white")
    draw, font = ImageDraw.Draw(figure), ImageFont.load_default(size=12)
    for number, (title, images) in enumerate(drawn):
        top = number * (_SIDE + 4)
        draw.text(
            (4, top + _SIDE // 2), re.sub(r", (?=[a-z])", ",\n", title), "black", font, anchor="lm"
        )
        for column, image in enumerate(images):
            figure.paste(Image.fromarray(image), (_MARGIN + column * (_SIDE + 4), top))
    path = Path(__file__).parents[1] / "docs" / "images" / "augmentation.jpg"
    figure.save(path, quality=75, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
