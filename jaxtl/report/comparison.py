"""Networks side by side: what was measured of each, as a table, a CSV file and a picture."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from jaxtl.costs import Cost
from jaxtl.probe import Probe


@dataclasses.dataclass(frozen=True)
class Row:
    """A network that was measured.

    Attributes:
        model: its name, with its width where that is not 1: `mobilenet_v2@0.35`.
        image_size: pixels a side.
        cost: what it costs.
        probe: how accurate a linear probe of it is; None where its weights could not be had.
        weights: where they are from and their sha256; why there are none, where there are none.
        finetuned: validation accuracy after fine-tuning, in percent: None where that was not asked
            for or there are no weights, `nan` where it diverged.
    """

    model: str
    image_size: int
    cost: Cost
    probe: Probe | None
    weights: str
    finetuned: float | None = None

    @property
    def accuracy(self) -> float | None:
        """What networks are ranked by, in percent: after fine-tuning, or else of the probe."""
        if self.finetuned is not None:
            return None if math.isnan(self.finetuned) else self.finetuned
        return None if self.probe is None else self.probe.mean

    @property
    def milliseconds(self) -> float:
        """Of the inference of one picture."""
        return 1e3 * self.cost.single.seconds

    @property
    def megabytes(self) -> float:
        """Of the weights, in 1e6 bytes."""
        return self.cost.weight_bytes / 1e6

    @property
    def inference_rate(self) -> float:
        """Pictures a second in batches."""
        return self.cost.batch_size / self.cost.inference.seconds

    @property
    def finetuning_rate(self) -> float:
        """Pictures a second while every parameter trains."""
        return self.cost.batch_size / self.cost.finetuning.seconds

    @property
    def density(self) -> float | None:
        """Accuracy in percent for each million parameters."""
        return None if self.accuracy is None else 1e6 * self.accuracy / self.cost.parameters


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The networks that no other beats in both accuracy and speed, the fastest first.

    Speed is that of the inference of one picture. Networks without an accuracy are left out.
    """
    known = [row for row in rows if row.accuracy is not None]
    return sorted(
        (row for row in known if not any(beats(other, row) for other in known)),
        key=lambda row: row.milliseconds,
    )


def beats(one: Row, other: Row) -> bool:
    """Whether it is at least as fast and as accurate, and better in one of the two."""
    if one.accuracy is None or other.accuracy is None:
        return False
    no_worse = one.accuracy >= other.accuracy and one.milliseconds <= other.milliseconds
    better = one.accuracy > other.accuracy or one.milliseconds < other.milliseconds
    return no_worse and better


def accuracy_text(row: Row) -> str:
    """What a network is ranked by, as people read it: `93.1 ± 0.8 %`."""
    if row.finetuned is not None and row.accuracy is not None:
        return f"{row.accuracy:.1f} % fine-tuned"
    if row.accuracy is None or row.probe is None:
        return "no accuracy"
    return f"{row.probe.mean:.1f} ± {row.probe.spread:.1f} %"


class _Column(NamedTuple):
    heading: str
    cell: Callable[[Row], str]
    kind: str = ""  # `sizes`, `tuned` or `wide`: shown where these differ, were asked for, or fit


_COLUMNS = (
    _Column("\npx", lambda row: str(row.image_size), "sizes"),
    _Column("accuracy\n%", lambda row: _plus_minus(row.probe)),
    _Column("tuned\n%", lambda row: _one_digit(row.finetuned), "tuned"),
    _Column("% per\nM", lambda row: "" if row.density is None else number(row.density)),
    _Column("params\nM", lambda row: number(row.cost.parameters / 1e6)),
    _Column("MACs\nM", lambda row: number(row.cost.macs / 1e6), "wide"),
    _Column("size\nMB", lambda row: number(row.megabytes)),
    _Column("time\nms", lambda row: number(row.milliseconds)),
    _Column("images\n/s", lambda row: number(row.inference_rate)),
    _Column("tuning\n/s", lambda row: number(row.finetuning_rate)),
    _Column("memory\nMB", lambda row: number(row.cost.inference.memory / 1e6), "wide"),
    _Column("tuning\nMB", lambda row: number(row.cost.finetuning.memory / 1e6), "wide"),
)
_WIDE = 100  # columns of a terminal that has room for all of it


def comparison_table(rows: Sequence[Row], device: str, *, width: int, rest: Path) -> Table:
    """All networks as a table.

    Args:
        rows: at least one.
        device: what they ran on, in words.
        width: of the terminal.
        rest: the file that holds what there is no room for.
    """
    tuned = any(row.finetuned is not None for row in rows)
    sizes = {row.image_size for row in rows}
    shown = {"": True, "sizes": len(sizes) > 1, "tuned": tuned, "wide": width >= _WIDE}
    columns = [column for column in _COLUMNS if shown[column.kind]]
    calls = [measured.calls for row in rows for measured in row.cost.programs]
    at = "" if shown["sizes"] else f" at {rows[0].image_size} px"
    lines = [
        f"On {device}{at}. Time: of the inference of one picture; images /s: of inference with "
        f"{rows[0].cost.batch_size} pictures a batch; tuning: the same while every parameter "
        f"trains. Medians of {min(calls)} calls or more.",
        "● on the Pareto front of accuracy and time. % per M: accuracy for each million "
        "parameters.",
        *([] if shown["wide"] else [f"MACs and memory: {rest}"]),
    ]
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption="\n".join(lines),
        caption_justify="left",
    )
    table.add_column()
    table.add_column("\nnetwork", overflow="fold")
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    front = pareto_front(rows)
    for row in rows:
        cells = ["●" if row in front else "", row.model, *(column.cell(row) for column in columns)]
        table.add_row(*cells, style="dim" if row.accuracy is None else "")
    return table


def _plus_minus(probe: Probe | None) -> str:
    return "no weights" if probe is None else f"{probe.mean:.1f} ± {probe.spread:.1f}"


def _one_digit(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def write_comparison(path: Path, rows: Sequence[Row], device: str) -> None:
    """Writes all that was measured as CSV, in full precision.

    Args:
        path: of the file; one that is there is replaced.
        rows: at least one.
        device: what they ran on, in words.
    """
    front = pareto_front(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _fields(rows[0], front, device))
        writer.writeheader()
        writer.writerows(_fields(row, front, device) for row in rows)


def _fields(row: Row, front: Sequence[Row], device: str) -> dict[str, Any]:
    """One line of the CSV; what is not known stays empty."""
    cost, probe = row.cost, row.probe
    return {
        "model": row.model,
        "image_size": row.image_size,
        "accuracy": probe.mean if probe else None,
        "accuracy_std": probe.spread if probe else None,
        "folds": probe.folds if probe else None,
        "finetuned_accuracy": row.finetuned,
        "accuracy_per_million_parameters": row.density,
        "pareto_front": row in front,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "weights_mb": row.megabytes,
        "latency_ms": row.milliseconds,
        "latency_calls": cost.single.calls,
        "batch_size": cost.batch_size,
        "inference_images_per_second": row.inference_rate,
        "inference_calls": cost.inference.calls,
        "finetuning_images_per_second": row.finetuning_rate,
        "finetuning_calls": cost.finetuning.calls,
        "inference_memory_mb": cost.inference.memory / 1e6,
        "finetuning_memory_mb": cost.finetuning.memory / 1e6,
        "device": device,
        "weights": row.weights if probe else "none",
        "no_weights_because": "" if probe else row.weights,
    }


def number(value: float) -> str:
    """Three significant digits, or all before the point: `0.47`, `3.5`, `25.6`, `1,280`."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"
