"""The runs of a sweep, best first: a table for the terminal and a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxtl.config.config_file import leaves
from jaxtl.metrics import quality
from jaxtl.sweeps.variations import Variation

_SHOWN = 20  # rows on the terminal
_FORMATS = {"val_accuracy": ".4f", "val_loss": ".4f", "steps": ","}

Result = Mapping[str, float] | None
"""What `run.json` says of a complete run; None for a run that diverged."""


def ranked(results: Mapping[str, Result]) -> dict[str, Result]:
    """Sorts runs by validation accuracy, then loss, then as they were; the best is first."""

    def key(name: str) -> tuple[float, float]:
        result = results[name]
        return quality(result["accuracy"], result["loss"]) if result else (-math.inf, -math.inf)

    return {name: results[name] for name in sorted(results, key=key, reverse=True)}


def ranking_rows(
    results: Mapping[str, Result], variations: Sequence[Variation]
) -> list[dict[str, Any]]:
    """A row for each result: the run's name, the keys that vary, validation metrics and steps.

    A run that diverged has the metrics `nan` and no steps.
    """
    keys = dict.fromkeys(key for variation in variations for key in variation.values)
    values = {run.name: leaves(run.config) | run.values for run in variations}
    known = frozenset().union(*(result for result in results.values() if result))
    metrics = [name for name in ("accuracy", "loss", "top5") if name in known]
    return [
        {
            "run": name,
            **{key: values[name].get(key, "") for key in keys},
            **{f"val_{metric}": (result or {}).get(metric, math.nan) for metric in metrics},
            "steps": int(result["step"]) if result else "",
        }
        for name, result in results.items()
    ]


def ranking_table(rows: Sequence[Mapping[str, Any]], path: Path) -> Table:
    """The first rows from `ranking_rows` as a table, which names the file that holds them all."""
    more = len(rows) - _SHOWN
    table = Table(caption=f"and {more:,} more in {path}" if more > 0 else None)
    columns = [*(column for column in rows[0] if column not in ("run", "val_top5")), "run"]
    for column in columns:
        table.add_column(column, justify="right" if column in _FORMATS else "left")
    for row in rows[:_SHOWN]:
        diverged = {"val_accuracy": "diverged", "val_loss": ""} if row["steps"] == "" else {}
        table.add_row(*(_text(column, {**row, **diverged}[column]) for column in columns))
    return table


def _text(column: str, value: Any) -> str:
    if isinstance(value, int | float):
        return format(value, _FORMATS.get(column, "g" if isinstance(value, float) else ""))
    return str(value)


def write_ranking(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows from `ranking_rows` as CSV; a file that is there is replaced."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
