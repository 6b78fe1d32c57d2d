"""Networks with weights: where these come from, what is checked, and what was done is recorded."""

from jaxtl.weights.create import WeightsRecord, create, create_model
from jaxtl.weights.keras import read_keras
from jaxtl.weights.sources import Unavailable
from jaxtl.weights.strict import Loaded, Stored, load_into

__all__ = [
    "Loaded",
    "Stored",
    "Unavailable",
    "WeightsRecord",
    "create",
    "create_model",
    "load_into",
    "read_keras",
]
