"""Pretrained weights: where they come from, strict loading, and writing them for others."""

from jaxtl.weights.loading import (
    WeightsRecord,
    create,
    create_model,
    load_weights,
    plan_network,
    with_convention,
)
from jaxtl.weights.origin import Origin

__all__ = [
    "Origin",
    "WeightsRecord",
    "create",
    "create_model",
    "load_weights",
    "plan_network",
    "with_convention",
]
