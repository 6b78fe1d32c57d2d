"""Images that are the same, or look the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt64

NEAR = 5
"""Perceptual hashes that differ in at most so many of their 64 bits belong to images that look the
same: at 5 a few things may differ, from 10 on images are different, says Neal Krawetz, `Looks Like
It` (hackerfactor.com, 2011), whose hash `imagehash.phash` computes."""

_FAR = 65
_AT_ONCE = 2**18  # pairs, of 9 bytes each, which fit into the cache of a processor


def nearest(
    hashes: UInt64[np.ndarray, " images"], others: UInt64[np.ndarray, " others"] | None = None
) -> tuple[Int64[np.ndarray, " images"], Int64[np.ndarray, " images"]]:
    """Finds the most similar other image for each image.

    All pairs are compared, block by block in NumPy: for 100,000 images 5e9 pairs, about 5 seconds
    of a core; for a million about 7 minutes.

    Args:
        hashes: the perceptual hashes of the images.
        others: those of the images to find; None for the images before each in `hashes`.

    Returns:
        The index of the first of the nearest, -1 where none is, and the bits that differ, 65 there.
    """
    index, distance = np.full(len(hashes), -1), np.full(len(hashes), _FAR)
    pool = hashes if others is None else others
    rows = max(_AT_ONCE // max(len(pool), 1), 1)
    for start in range(0, len(hashes) if len(pool) else 0, rows):
        block = slice(start, start + rows)
        known = pool[: start + rows] if others is None else pool
        bits = np.bitwise_count(hashes[block, None] ^ known[None])
        if others is None:
            bits[:, start:][~np.tri(len(bits), k=-1, dtype=bool)] = _FAR
        index[block] = bits.argmin(axis=1)
        distance[block] = bits.min(axis=1)
    index[distance == _FAR] = -1
    return index, distance


def groups(values: Sequence[str]) -> list[list[int]]:
    """The indices of equal values, where there are at least two; empty ones are left out."""
    found: dict[str, list[int]] = {}
    for index, value in enumerate(values):
        if value:
            found.setdefault(value, []).append(index)
    return [members for members in found.values() if len(members) > 1]
