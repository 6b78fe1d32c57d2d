"""Reads untrusted HDF5 files safely: no external links, no oversized data, no deep nesting.

The format lets a dataset lie in any other file, be any number of bytes that nobody wrote, or be
compressed a thousandfold; Keras does none of that
(docs/decisions/0021-a-weights-file-is-a-stranger.md).
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import h5py

_DEEPEST = 32  # levels of groups; a model in a model takes two, and the parsers are quadratic

# Texts of any length lie in heaps, each as long as its header says, and a list of texts may name
# one of them many times ("Global Heap" of the file format specification).
_HEAP = re.compile(rb"GCOL\x01\x00\x00\x00(.{8})", re.DOTALL)
_TEXT_BYTES = 64 << 20  # that a list of texts may take, or _RATIO times the file
_RATIO = 4

Read = Callable[["h5py.Dataset"], np.ndarray]
"""Reads a dataset; together they have no more bytes than their file, or it raises ValueError."""


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[tuple[h5py.File, Read]]:
    """Opens a file, and gives what reads its datasets.

    Args:
        data: the file's bytes.

    Raises:
        ValueError: it is no such file or refers to another one.
        Exception: h5py's own, of many kinds, where the file is damaged.
    """
    import h5py

    left = len(data)

    def read(dataset: h5py.Dataset) -> np.ndarray:
        nonlocal left
        left -= math.prod(dataset.shape) * dataset.dtype.itemsize
        if left < 0:
            raise ValueError(f"{dataset.name} and what was read before declare more than it holds")
        if dataset.dtype.hasobject:
            raise ValueError(f"{dataset.name} does not hold numbers")
        return dataset[()]

    heaps = (int.from_bytes(heap[1], "little") for heap in _HEAP.finditer(data))
    longest = min(max(heaps, default=0), len(data))

    def wrong_text(name: str, item: h5py.Group | h5py.Dataset) -> str | None:
        for attribute in map(item.attrs.get_id, item.attrs):
            bytes_of_text = math.prod(attribute.shape or ()) * longest
            if attribute.dtype.hasobject and bytes_of_text > max(_TEXT_BYTES, _RATIO * len(data)):
                return f"{name} lists texts that are too long"
        return None

    with h5py.File(io.BytesIO(data)) as file:
        wrong = (
            file.visititems_links(_wrong_link)
            or file.visititems(lambda *item: _wrong_item(*item) or wrong_text(*item))
            or wrong_text("/", file)
        )
        if wrong:
            raise ValueError(wrong)
        yield file, read


def _wrong_link(name: str, link: object) -> str | None:
    import h5py

    if name.count("/") > _DEEPEST:
        return f"{name[:30]}... is nested too deeply"
    inside = isinstance(link, h5py.HardLink)
    return None if inside else f"{name} is a link that may lead out of the file"


def _wrong_item(name: str, item: h5py.Group | h5py.Dataset) -> str | None:
    import h5py

    if isinstance(item, h5py.Dataset):
        if item.external or item.is_virtual:
            return f"{name} lies in another file"
        if item.id.get_create_plist().get_nfilters():
            return f"{name} is compressed; h5repack -f NONE writes it as Keras does"
    return None
