"""The networks, by name.

A new network is a file of its own and its name in `_FILES` (docs/adding-a-network.md).
"""

from __future__ import annotations

import difflib
from typing import Any

from jaxtl.errors import UserError
from jaxtl.models import inception, mobilenet, mobilenet_v1, resnet, vgg
from jaxtl.models.chain import (
    Definition,
    ExternalNames,
    KerasFile,
    LayerNames,
    Network,
    Spec,
    Variables,
    batch_statistics,
    initial_variables,
    layer_of,
    merge,
    output_spec,
    split,
    stage_of,
)
from jaxtl.models.layers import BatchNorm, Context

__all__ = [
    "REGISTRY",
    "BatchNorm",
    "Context",
    "Definition",
    "ExternalNames",
    "KerasFile",
    "LayerNames",
    "Network",
    "Spec",
    "Variables",
    "batch_statistics",
    "build",
    "definition",
    "initial_variables",
    "layer_of",
    "merge",
    "output_spec",
    "split",
    "stage_of",
    "structure",
]

_FILES = (inception, mobilenet, mobilenet_v1, resnet, vgg)

REGISTRY: dict[str, Definition] = {
    name: file.DEFINITION for file in _FILES for name in file.DEFINITION.names
}


def definition(name: str) -> Definition:
    """Looks a network up in the registry.

    Raises:
        UserError: no network has that name; the message names the nearest.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1) or sorted(REGISTRY)
        raise UserError(f"no network is called {name!r}; did you mean {near[0]!r}?")
    return REGISTRY[name]


def structure(
    name: str,
    *,
    num_classes: int | None,
    width: float = 1.0,
    dropout: float = 0.0,
    top: bool = False,
    convention: str = "keras",
    dtype: str = "float32",
) -> Network:
    """A network of the registry whose parameters have shapes and no numbers.

    Args:
        name: a key of `REGISTRY`.
        num_classes: number of logits; None for pooled features.
        width: multiplier of the channel counts; one of those with published weights.
        dropout: fraction of the features that training drops before the last dense layer.
        top: build the whole published classifier where that is more than one dense layer (VGG).
        convention: `keras` or `torch`: how images are normalised and feature maps are padded.
        dtype: `float32` or `bfloat16`: type of the feature maps.

    Raises:
        UserError: no network has that name, it does not come in that width, or `num_classes` is
            below 1.
    """
    found = definition(name)
    if num_classes is not None and (isinstance(num_classes, bool) or num_classes < 1):
        raise UserError(f"num_classes is {num_classes}: give at least 1, or None for no head")
    if width not in found.widths:
        raise UserError(f"{name} does not come in width {width}; take one of {found.widths}")
    convention_of_weights = found.conventions[convention]
    return found.build(Spec(name, num_classes, width, dropout, top, convention_of_weights, dtype))


def build(name: str, *, seed: int = 0, **options: Any) -> Network:
    """A network of the registry with random parameters, drawn from `seed`.

    Args and errors are those of `structure`.
    """
    network = structure(name, **options)
    return merge(split(network)[0], initial_variables(network, seed))
