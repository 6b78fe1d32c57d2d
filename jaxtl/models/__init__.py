"""The networks, by name: a new one is a file of its own and a line here."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxtl.errors import UserError
from jaxtl.models import mobilenet
from jaxtl.models.chain import Network, Variables, merge, split, statistics
from jaxtl.models.layers import BatchNorm, Context

__all__ = [
    "REGISTRY",
    "BatchNorm",
    "Context",
    "Definition",
    "Network",
    "Variables",
    "build",
    "merge",
    "split",
    "statistics",
]


@dataclass(frozen=True)
class Definition:
    """What a network file provides.

    Attributes:
        build: makes the network with random parameters.
        widths: the widths that have published weights.
        keras_layers: class, Keras name and path of each layer with weights, in Keras' order.
        keras_file: the published Keras file for a width, a picture size, and with or without top.
    """

    build: Callable[..., Network]
    widths: tuple[float, ...]
    keras_layers: Callable[[Network], list[tuple[str, str, str]]]
    keras_file: Callable[..., str]


REGISTRY = {
    "mobilenet_v2": Definition(
        mobilenet.mobilenet_v2, mobilenet.WIDTHS, mobilenet.keras_layers, mobilenet.keras_file
    ),
}


def build(
    name: str,
    *,
    num_classes: int | None,
    width: float = 1.0,
    dropout: float = 0.0,
    dtype: str = "float32",
    seed: int = 0,
) -> Network:
    """Builds a network of the registry with random parameters.

    Args:
        name: a key of `REGISTRY`.
        num_classes: how many logits it returns; None for pooled features.
        width: the multiplier of the channel counts; one that weights are published for.
        dropout: the share of pooled features that training drops before the head.
        dtype: `float32` or `bfloat16`: of its feature maps; parameters, statistics, pooled features
            and logits are float32.
        seed: of the random parameters.

    Raises:
        UserError: no network has that name, or it does not come in that width.
    """
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1) or sorted(REGISTRY)
        raise UserError(f"no network is called {name!r}; did you mean {near[0]!r}?")
    if num_classes is not None and (isinstance(num_classes, bool) or num_classes < 1):
        raise UserError(f"num_classes is at least 1, or None for no head; not {num_classes}")
    definition = REGISTRY[name]
    if width not in definition.widths:
        raise UserError(f"{name} does not come in width {width}; take one of {definition.widths}")

    network = definition.build(
        num_classes=num_classes, width=width, dropout=dropout, rng=np.random.default_rng(seed)
    )
    network.compute_in(dtype)
    return network
