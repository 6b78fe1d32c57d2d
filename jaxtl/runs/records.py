"""JSON files of a run, each of a known schema, and why one of them is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypeVar

import pydantic

from jaxtl.errors import UserError, printable
from jaxtl.files import read_json, unsealed

Model = TypeVar("Model", bound=pydantic.BaseModel)

_LONGEST_REASON = 150  # characters


def read_record(path: Path, model: type[Model]) -> Model:
    """Reads a JSON file, sealed or not.

    Raises:
        ValueError, UserError: the file is damaged, or of another schema; see `reason`.
        OSError: it cannot be read.
    """
    # Not `model_validate_json`: it refuses the escapes of file names that are not UTF-8.
    return model.model_validate(unsealed(read_json(path)))


def reason(error: Exception) -> str:
    """Why something failed, in one line without names of classes."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    if isinstance(error, AttributeError):  # of a library that does not find what it needs
        text = "a part is missing"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        text = f"no JSON: {error}"
    if isinstance(error, pydantic.ValidationError):
        first = error.errors()[0]
        text = re.sub(r" or (an )?instance of \w+", "", first["msg"])
        if first["loc"]:
            text = f"{'.'.join(map(str, first['loc']))}: {text}"
    return printable(" ".join(text.split()))[:_LONGEST_REASON] or type(error).__name__
