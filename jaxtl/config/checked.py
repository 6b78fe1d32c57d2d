"""The base of everything that a config holds, and the numbers in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import Field

from jaxtl.errors import UserError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class ConfigError(UserError):
    """One key of a config is wrong: takes the key, and the reason or "" for a key not set."""

    def __str__(self) -> str:
        key, reason = self.args
        return f"config key {key!r}{reason or f' is not set; add --cfg.{key}=...'}"


class Checked(pydantic.BaseModel):
    """A part of a config, which refuses unknown keys, wrong types and impossible values.

    It raises a `ConfigError` where pydantic would raise an error of many lines, except from JSON.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False
    )
    # The prefix of dotted keys in error messages; `{name}` stands for the name of a phase.
    place: ClassVar[str] = "{part}"

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, values: Any, validate: Any, info: Any) -> Any:
        try:
            return validate(values)
        except (ConfigError, pydantic.ValidationError) as error:
            if info.mode == "json":
                raise
            if isinstance(error, ConfigError):  # from a part of this part
                key, reason = error.args
            else:
                key, reason = _first_mistake(error, cls.model_fields)
            name = values.get("name", "?") if isinstance(values, dict) else "?"
            place = cls.place.format(part=cls.__name__.lower(), name=name)
            raise ConfigError(".".join(filter(None, (place, key))), reason) from error


def _first_mistake(error: pydantic.ValidationError, known: Iterable[str]) -> tuple[str, str]:
    """The key to fix first, and what is wrong with it."""
    # A key that is misspelt is why another one is missing.
    first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    key, value = _key(first["loc"]), first["input"]
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return key, f" is not known; {hint}"
    if first["type"] == "missing":
        short = isinstance(value, tuple)  # of a pair, not a key
        return key, f": {value!r} has a value too few" if short else " is missing"
    if first["type"] == "value_error":  # of a validator of ours
        return key, f": {first['ctx']['error']}"
    if value is None:
        return key, ""
    # A value that may be of several types has a message for each.
    reasons = dict.fromkeys(one["msg"] for one in error.errors() if _key(one["loc"]) == key)
    text = ", or ".join(reasons).replace(", or Input should be", ", or")
    return key, f": {text}, not {value!r}"


def _key(location: tuple[int | str, ...]) -> str:
    """The key in pydantic's location of an error: a field, or a pattern in `train`.

    After the field stands which of its types the value was taken for, then the place inside it.
    """
    return ".".join(map(str, location[:3:2] if "patterns" in location[1:2] else location[:1]))
