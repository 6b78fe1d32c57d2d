"""Networks with weights: where these come from, what is checked, and what was done is recorded."""

from jaxtl.weights.create import WeightsRecord, create, create_model

__all__ = ["WeightsRecord", "create", "create_model"]
