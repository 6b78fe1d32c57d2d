"""The images that everything is measured on, and the weights, as files in one folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import platformdirs
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from benchmark.protocol import WEIGHTS, Sizes
from jaxtl.models import merge, split
from jaxtl.weights import create_model, with_convention
from jaxtl.weights.write import write_weights

PHOTOGRAPHS = platformdirs.user_cache_path("jaxtl") / "elpv"
_JPEG_SIZE = (500, 375)


class Inputs:
    """Writes the files; in a process of its own, since the one that measures has to stay small.

    Args:
        sizes: the sizes of the inputs.
        folder: the folder to write to.
    """

    def __init__(self, sizes: Sizes, folder: Path):
        self._sizes, self._folder = sizes, folder

    def write(self) -> None:
        """Writes everything that does not grow; photographs and weights are fetched once.

        `keras.weights.h5` and `timm.safetensors`: MobileNetV2 without a head, for either peer.
        `seed/`: the class folders of the seed job; `seed.npz`: the same, decoded; `jpegs/`.
        """
        network = create_model("mobilenet_v2", weights=WEIGHTS)
        write_weights(network, self._folder / "keras.weights.h5")
        as_torch = merge(split(with_convention(network, "torch"))[0], split(network)[1])
        write_weights(as_torch, self._folder / "timm.safetensors")
        if not PHOTOGRAPHS.exists():
            fetch = Path(__file__).parents[1] / "fetch_elpv.py"
            subprocess.run([sys.executable, fetch, PHOTOGRAPHS], check=True)
        decoded, size = {}, self._sizes.image_size
        for part, count in (("train", self._sizes.train), ("val", self._sizes.val)):
            images, labels = [], []
            for label, kind in enumerate(("defective", "functional")):
                folder = self._folder / "seed" / part / kind
                folder.mkdir(parents=True)
                for path in _spread(sorted((PHOTOGRAPHS / part / kind).iterdir()), count // 2):
                    shutil.copy(path, folder)
                    images.append(np.asarray(_square(path, size)))
                    labels.append(label)
            decoded[f"{part}_images"] = np.stack(images)
            decoded[f"{part}_labels"] = np.array(labels, np.int32)
        np.savez(self._folder / "seed.npz", **decoded)
        self._write_jpegs()

    def _write_jpegs(self) -> None:
        """Crops of scikit-learn's two photographs, every second one mirrored."""
        photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
        random = np.random.default_rng(0)
        for number in range(self._sizes.jpegs):
            photograph = photographs[number % len(photographs)]
            free = np.subtract(photograph.size, _JPEG_SIZE)
            left, top = (int(random.integers(0, most + 1)) for most in free)
            crop = photograph.crop((left, top, left + _JPEG_SIZE[0], top + _JPEG_SIZE[1]))
            mirrored = number // len(photographs) % 2
            _save(ImageOps.mirror(crop) if mirrored else crop, self._folder / "jpegs", number)

    def grow(self, folder: Path, count: int) -> None:
        """Writes so many training images, no two alike, and 52 for validation.

        Args:
            folder: a new one.
            count: at most eight times the photographs: each is turned and mirrored.
        """
        size, sources = self._sizes.run_size, _by_name(PHOTOGRAPHS / "train")
        for number in range(count):
            path = sources[number % len(sources)]
            turns, mirrored = divmod(number // len(sources), 2)
            turned = _square(path, size).rotate(90 * turns)
            image = ImageOps.mirror(turned) if mirrored else turned
            _save(image, folder / "train" / path.parent.name, number)
        for number, path in enumerate(_spread(_by_name(PHOTOGRAPHS / "val"), 52)):
            _save(_square(path, size), folder / "val" / path.parent.name, number)


def _by_name(folder: Path) -> list[Path]:
    """The photographs of both classes, mixed."""
    return sorted(folder.rglob("*.png"), key=lambda path: path.name)


def _spread(paths: list[Path], count: int) -> list[Path]:
    return [paths[index * len(paths) // count] for index in range(count)]


def _square(path: Path, size: int) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)


def _save(image: Image.Image, folder: Path, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f"{number:05d}.jpg", quality=90)
