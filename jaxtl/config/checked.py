"""The base of everything that a config holds, and the numbers in it."""

from __future__ import annotations

from typing import Annotated

import pydantic
from pydantic import Field

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class Checked(pydantic.BaseModel):
    """A part of a config that refuses unknown keys, other types and impossible values."""

    model_config = pydantic.ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False
    )
