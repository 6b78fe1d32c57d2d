"""The networks, by name.

To add a network, write its file and add that to `_FILES` (docs/adding-a-network.md).
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
from jaxtl.models.mobilenet import InvertedResidual

__all__ = [
    "REGISTRY",
    "BatchNorm",
    "Context",
    "Definition",
    "ExternalNames",
    "InvertedResidual",
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
        UserError: no network has that name; the message has a similar one, or all.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(REGISTRY))}"
        raise UserError(f"no network is called {name!r}; {hint}")
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
        num_classes: the number of logits; None for pooled features.
        width: the multiplier of the channel counts; one of those with published weights.
        dropout: the fraction of the features that training drops before the last dense layer.
        top: whether to build the whole published classifier of a VGG, which has three dense layers.
        convention: `keras` or `torch`: how images are normalised and feature maps are padded.
        dtype: the type of the feature maps, `float32` or `bfloat16`.

    Raises:
        UserError: an argument has a value other than these; the message says which are possible.
    """
    found = definition(name)
    if num_classes is not None and (isinstance(num_classes, bool) or num_classes < 1):
        raise UserError(f"num_classes is {num_classes}: give at least 1, or None for no head")
    if width not in found.widths:
        raise UserError(f"{name} does not come in width {width}; take one of {found.widths}")
    if convention not in found.conventions:
        known = " or ".join(found.conventions)
        raise UserError(f"{name} has no convention {convention!r}; take {known}")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"feature maps cannot have the type {dtype!r}; take float32 or bfloat16")
    spec = Spec(name, num_classes, width, dropout, top, found.conventions[convention], dtype)
    return found.build(spec)


def build(name: str, *, seed: int = 0, **options: Any) -> Network:
    """A network of the registry with random parameters, drawn from `seed`.

    Args and errors are those of `structure`.
    """
    network = structure(name, **options)
    return merge(split(network)[0], initial_variables(network, seed))
