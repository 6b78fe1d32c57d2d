"""Writes images of two digits and a CSV file of their labels: multi-label data without a download.

Two of scikit-learn's digits side by side or, with --overlay, one over the other, the brighter pixel
of each. The digits of the validation and of the test are in no training image.

    python scripts/write_digit_pairs.py --to pairs --images 600
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from jaxtl.data.sources import open_all

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}


def write_pairs(folder: Path, images: int, *, side: int = 96, overlay: bool = False) -> Path:
    """Writes a PNG a pair, and `pairs.csv` with the columns image, labels and split.

    Args:
        folder: a new folder.
        images: how many in all.
        side: of an image, in pixels.
        overlay: one digit over the other in place of side by side.

    Returns:
        The CSV file.
    """
    digits, rng = open_all("digits"), np.random.default_rng(0)
    order = np.split(rng.permutation(len(digits)), np.cumsum([1200, 300]))
    folder.mkdir(parents=True)
    table = folder / "pairs.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "labels", "split"])
        for (split, fraction), own in zip(FRACTIONS.items(), order, strict=True):
            for number in range(round(fraction * images)):
                pair = rng.choice(own, 2, replace=False).tolist()
                first, second = (np.asarray(digits[index]) for index in pair)
                pixels = np.maximum(first, second) if overlay else np.hstack([first, second])
                name = f"{split}-{number}.png"
                size = (side, side) if overlay else (side, side // 2)
                Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / name)
                labels = sorted({digits.classes[digits.labels[index]] for index in pair})
                rows.writerow([name, ";".join(labels), split])
    return table


def main() -> None:
    """Reads the flags and writes."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder")
    flags.add_argument("--images", type=int, default=600, metavar="N")
    flags.add_argument("--side", type=int, default=96, metavar="PIXELS")
    flags.add_argument("--overlay", action="store_true", help="one over the other")
    given = flags.parse_args()
    print(write_pairs(given.to, given.images, side=given.side, overlay=given.overlay))


if __name__ == "__main__":
    main()
