"""Writes docs/config.md, every key of a config, from the classes: run it after changing one."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtl.config import Config

_TITLE = """# Every key of a config

Written by `python scripts/write_config_page.py`. Keys are also flags: `--cfg.data.batch_size=64`.
"""
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_TYPES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_PLACES = {"Config": "", "Phase": "phases.NAME.", "Stages": "phases.NAME.train."}


def page() -> str:
    """The text of docs/config.md."""
    parts = [schema := Config.model_json_schema(), *schema["$defs"].values()]
    return "\n".join([_TITLE, *(line for part in parts for line in (*_table(part), ""))])


def _table(part: dict[str, Any]) -> Iterator[str]:
    text, _, attributes = part["description"].partition("\nAttributes:\n")
    about = text.partition("\n\n")[0].split()
    entries = re.split(r"\n(?=\S)", textwrap.dedent(attributes).strip())
    pairs = [" ".join(entry.split()).split(": ", 1) for entry in entries]
    meaning = {name: text for names, text in pairs for name in names.split(", ")}
    prefix = _PLACES.get(part["title"], f"{part['title'].lower()}.")
    yield f"## {part['title']}\n\n{' '.join(about)}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for name, field in part["properties"].items():
        if "$ref" not in field:  # which has a table of its own
            default = f"`{field['default']!r}`" if "default" in field else "required"
            yield f"| `{prefix}{name}` | {_kind(field)} | {default} | {meaning[name]} |"


def _kind(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if several := field.get("anyOf") or field.get("oneOf"):
        return ", or ".join(map(_kind, several))
    if values := field.get("enum", [field["const"]] if "const" in field else []):
        return " or ".join(f"`{value!r}`" for value in values)
    if "prefixItems" in field:
        return f"tuple ({'; '.join(map(_kind, field['prefixItems']))})"
    if "items" in field:
        return f"tuple of {_kind(field['items'])}"
    if "additionalProperties" in field:
        return f"dict of texts to {_kind(field['additionalProperties'])}"
    bounds = [f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field]
    return " ".join([_TYPES[field["type"]], ", ".join(bounds)]).strip()


if __name__ == "__main__":
    (Path(__file__).parents[1] / "docs" / "config.md").write_text(page())
