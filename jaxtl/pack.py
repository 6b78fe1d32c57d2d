"""Packs images into a few large files: `python -m jaxtl.pack SOURCE OUT`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.errors import UserError

_HELP = """Packs images into a few large files, which are read faster than many small ones.

OUT becomes a data set of TensorFlow Datasets (array_record): --cfg.data.source=tfds:OUT trains on
it. A command that was stopped is continued by the same command."""


def main(arguments: Sequence[str]) -> int:
    """Reads the flags, packs and says how to use it; returns the exit code."""
    flags = cli.parser("jaxtl.pack", _HELP)
    flags.add_argument("source", metavar="SOURCE", help="a folder, csv:FILE, tfds:NAME or digits")
    flags.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    flags.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="scale images down to a shorter side of N pixels, as JPEG [their bytes as they are]",
    )
    flags.add_argument("--quality", type=int, metavar="Q", help="of these JPEGs, 1 to 100 [90]")
    given = flags.parse_args(arguments)
    if given.size is not None and given.size < 1:
        raise UserError(f"--size is at least 1, not {given.size}")
    if given.quality is not None and given.size is None:
        raise UserError("--quality is that of scaled images: give --size too")
    quality = 90 if given.quality is None else given.quality
    if not 1 <= quality <= 100:
        raise UserError(f"--quality is 1 to 100, not {quality}")

    from jaxtl.config import Data
    from jaxtl.data.packing import pack

    packed = pack(
        given.source, given.out, side=given.size, quality=quality, retry=Data().retry_seconds
    )
    counts = ", ".join(f"{count:,} in {split}" for split, count in packed.images.items())
    print(f"{counts}; {packed.num_bytes / 1e6:,.0f} MB; --cfg.data.source=tfds:{given.out}")
    return 0


if __name__ == "__main__":
    cli.run(main)
