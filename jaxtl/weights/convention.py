"""The convention of weights: which framework trained them, `keras` or `torch`.

It decides how a network normalises images and pads feature maps, since the two differ there. The
suffix of a file tells the framework whose names and shapes its arrays have, which is mostly the
convention too. But a VGG can be written in the layout of the other framework, and its images must
still be normalised as it was trained: such a file states its convention.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jaxtl.errors import UserError
from jaxtl.weights.hdf5 import opened

Framework = Literal["keras", "torch"]
_FRAMEWORKS: tuple[Framework, ...] = ("keras", "torch")

CONVENTION_KEY = "jaxtl_convention"
"""An attribute of an HDF5 file, and a key of the metadata of safetensors."""


def recorded_convention(data: bytes, file: Path) -> Framework | None:
    """The convention that a file states for its weights.

    Returns:
        None where it states none, as in a damaged file: its reader tells what is wrong.

    Raises:
        UserError: it states one that does not exist.
    """
    recorded = None
    try:
        if file.suffix == ".h5":
            with opened(data) as (hdf5, _):
                recorded = hdf5.attrs.get(CONVENTION_KEY)
        elif file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="numpy") as tensors:
                recorded = (tensors.metadata() or {}).get(CONVENTION_KEY)
    except Exception:  # h5py and safetensors raise almost anything on damaged bytes
        return None
    if recorded is None:
        return None
    for convention in _FRAMEWORKS:
        if isinstance(recorded, str) and recorded == convention:
            return convention
    raise UserError(f"{file} is marked with the convention {recorded!r}, which is unknown here")
