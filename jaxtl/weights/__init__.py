"""Pretrained weights: where they come from, strict loading, and writing them for others."""

from jaxtl.weights.loading import (
    WeightsRecord,
    create,
    create_model,
    load_weights,
    plan_network,
    with_convention,
)

__all__ = [
    "WeightsRecord",
    "create",
    "create_model",
    "load_weights",
    "plan_network",
    "with_convention",
]
