"""What is common to the kinds of files that a run is exported as."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jaxtl.models import Network
from jaxtl.tasks import Activation

Classify = Callable[[UInt8[np.ndarray, "batch size size 3"]], Float[np.ndarray, "batch classes"]]
"""From images, RGB, 0..255, to probabilities."""


class Format(NamedTuple):
    """A kind of file: how it is written, and how its own runtime runs it.

    Attributes:
        runtime: the module that runs it.
        needs: the modules that writing and running it take.
        install: what installs them.
        write: writes a network, given the file, the pixels a side of the images and what makes
            probabilities of its logits.
        load: reads the file again.
        usage: Python that gives the probabilities of `images` by the file.
        dtype: the type of the feature maps in the file; None for that of the run.
        apart: how far a probability may be from that of the run.
    """

    runtime: str
    needs: tuple[str, ...]
    install: str
    write: Callable[[Network, Path, int, Activation], None]
    load: Callable[[Path], Classify]
    usage: str
    dtype: str | None = "float32"
    apart: float = 1e-3


def with_version(module: str) -> str:
    """The distribution that has a module, with its version: `onnxruntime-gpu 1.20.0`."""
    name = module
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # it is called otherwise than its module
        name = importlib.metadata.packages_distributions()[module][0]
        version = importlib.metadata.version(name)
    return f"{name} {version}"
