"""The networks, by name.

A new one is a file of its own and its name here (docs/adding-a-network.md).
"""

from __future__ import annotations

import difflib

import numpy as np

from jaxtl.errors import UserError
from jaxtl.models import inception, mobilenet, mobilenet_v1, resnet, vgg
from jaxtl.models.chain import (
    Definition,
    KerasFile,
    Layer,
    Names,
    Network,
    Spec,
    Variables,
    merge,
    split,
    statistics,
)
from jaxtl.models.layers import BatchNorm, Context

__all__ = [
    "REGISTRY",
    "BatchNorm",
    "Context",
    "Definition",
    "KerasFile",
    "Layer",
    "Names",
    "Network",
    "Spec",
    "Variables",
    "build",
    "definition",
    "merge",
    "split",
    "statistics",
]

_FILES = (inception, mobilenet, mobilenet_v1, resnet, vgg)

REGISTRY: dict[str, Definition] = {
    name: file.DEFINITION for file in _FILES for name in file.DEFINITION.names
}


def definition(name: str) -> Definition:
    """What the file of a network provides.

    Raises:
        UserError: no network has that name; the nearest is named.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1) or sorted(REGISTRY)
        raise UserError(f"no network is called {name!r}; did you mean {near[0]!r}?")
    return REGISTRY[name]


def build(
    name: str,
    *,
    num_classes: int | None,
    width: float = 1.0,
    dropout: float = 0.0,
    top: bool = False,
    convention: str = "keras",
    dtype: str = "float32",
    seed: int = 0,
) -> Network:
    """Builds a network of the registry with random parameters.

    Args:
        name: a key of `REGISTRY`.
        num_classes: how many logits it returns; None for pooled features.
        width: the multiplier of the channel counts; one that weights are published for.
        dropout: the share of its features that training drops before the last dense layer.
        top: with all of the classifier that it was published with, where that is more than one
            dense layer (VGG).
        convention: `keras` or `torch`: how images are normalised and maps are padded.
        dtype: `float32` or `bfloat16`: of its feature maps; parameters, statistics, pooled features
            and logits are float32.
        seed: of the random parameters.

    Raises:
        UserError: no network has that name, or it does not come in that width.
    """
    of_name = definition(name)
    if num_classes is not None and (isinstance(num_classes, bool) or num_classes < 1):
        raise UserError(f"num_classes is at least 1, or None for no head; not {num_classes}")
    if width not in of_name.widths:
        raise UserError(f"{name} does not come in width {width}; take one of {of_name.widths}")
    spec = Spec(name, num_classes, width, dropout, top, of_name.conventions[convention])
    network = of_name.build(spec, np.random.default_rng(seed))
    network.compute_in(dtype)
    return network
