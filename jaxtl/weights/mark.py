"""The mark in a file of weights that says in which convention they were trained.

The suffix of a file tells its layout, and by rights the convention too. A VGG can be written in the
layout of the other framework, though, and read from there it must see the images that it was
trained on.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Literal

import h5py
from safetensors import SafetensorError, safe_open

from jaxtl.errors import UserError

MARK = "jaxtl_convention"
"""An attribute of an HDF5 file, and a key of the metadata of safetensors."""

DAMAGED = (
    OSError,
    AttributeError,
    KeyError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What h5py, zipfile and json raise on bytes that are not what they should be."""

_CONVENTIONS: tuple[Literal["keras", "torch"], ...] = ("keras", "torch")


def marked(path: Path) -> Literal["keras", "torch"] | None:
    """The convention that a file is marked with.

    Args:
        path: of the file.

    Returns:
        None where there is no mark, as in a damaged file: to say so is left to its reader.

    Raises:
        UserError: the mark is of no known convention.
    """
    mark = None
    try:
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                mark = file.attrs.get(MARK)
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                mark = (file.metadata() or {}).get(MARK)
    except (*DAMAGED, SafetensorError):
        return None
    if mark is None:
        return None
    for convention in _CONVENTIONS:
        if isinstance(mark, str) and mark == convention:
            return convention
    raise UserError(f"{path} is marked with the convention {mark!r}, which is unknown here")
