"""StableHLO, for any process that has JAX."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from jaxtl.exporting.classifier import Classify
from jaxtl.models import Network
from jaxtl.tasks import Activation

_PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    network: Network, path: Path, image_size: int, activation: Activation = "softmax"
) -> None:
    """Writes a network as `jax.export` serializes it, for CPUs, NVIDIA GPUs and TPUs."""
    batch = jax.export.symbolic_shape("N")[0]
    images = jax.ShapeDtypeStruct((batch, image_size, image_size, 3), np.uint8)
    probabilities = jax.jit(lambda images: getattr(jax.nn, activation)(network(images)))
    exported = jax.export.export(probabilities, platforms=_PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def load(path: Path) -> Classify:
    """What a process without jaxtl does to run the file."""
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    return lambda images: np.asarray(exported.call(images))
