"""A comparison as a table on a terminal: as many whole columns as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from jaxtl.comparison.results import (
    WITHIN,
    Row,
    Sample,
    Tuned,
    Unmeasured,
    by_tuning,
    largest_text,
    measured,
    number,
    pareto_front,
    plus_minus,
)


class _Column(NamedTuple):
    heading: str
    cell: Callable[[Row], str]
    name: str = ""  # in a list of the columns that there is no room for
    kind: str = ""  # `sizes` or `tuned`: shown where these differ or were asked for


_PROBE = _Column("probe\n%", lambda row: "no weights" if not row.probe else plus_minus(row.probe))

# From the left to the right; without room for all, those without a name stay.
_COLUMNS = (
    _Column("\npx", lambda row: str(row.image_size), "px", "sizes"),
    _PROBE,
    _Column("tuned\n%", lambda row: _tuned(row)[0], "", "tuned"),
    _Column("tuned\nright", lambda row: _tuned(row)[1], "images right", "tuned"),
    _Column("best\nepoch", lambda row: _tuned(row)[2], "best epoch", "tuned"),
    _Column("% per\nM", lambda row: "" if row.density is None else number(row.density), "% per M"),
    _Column("params\nM", lambda row: number(row.cost.parameters / 1e6), "parameters"),
    _Column("MACs\nM", lambda row: number(row.cost.macs / 1e6), "MACs"),
    _Column("size\nMB", lambda row: number(row.megabytes), "size"),
    _Column("time\nms", lambda row: number(row.milliseconds)),
    _Column("images\n/s", lambda row: number(row.inference_rate), "images /s"),
    _Column("tuning\n/s", lambda row: number(row.finetuning_rate), "tuning /s"),
    _Column("memory\nMB", lambda row: number(row.cost.inference.memory / 1e6), "memory"),
    _Column("tuning\nMB", lambda row: number(row.cost.finetuning.memory / 1e6), "tuning memory"),
)

# What goes first where there is no room.
_DISPENSABLE = (
    *("MACs", "memory", "tuning memory", "best epoch", "px", "images right", "% per M"),
    *("tuning /s", "images /s", "parameters", "size"),
)


def comparison_table(
    rows: Sequence[Row | Unmeasured], sample: Sample, device: str, *, width: int, rest: Path
) -> Table:
    """All networks as a table of whole columns: as many as a terminal has room for.

    Args:
        rows: at least one.
        sample: the images.
        device: what the networks ran on, in words.
        width: of the terminal.
        rest: the file that holds what there is no room for.
    """
    several = len({row.image_size for row in rows}) > 1
    shown = {"": True, "sizes": several, "tuned": by_tuning(measured(rows))}
    columns = [column for column in _COLUMNS if shown[column.kind]]
    left_out: list[str] = []
    dispensable = [name for name in _DISPENSABLE if name in {column.name for column in columns}]
    while dispensable and _width(_table(rows, columns)) > width:
        left_out.append(dispensable.pop(0))
        columns = [column for column in columns if column.name != left_out[-1]]
    table = _table(rows, columns)
    table.caption = "\n".join(
        [*_caption(rows, sample, device), *([f"{', '.join(left_out)}: {rest}"] if left_out else [])]
    )
    return table


def _table(rows: Sequence[Row | Unmeasured], columns: Sequence[_Column]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, caption_justify="left"
    )
    table.add_column()
    table.add_column("\nnetwork", overflow="fold")
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    front = pareto_front(measured(rows))
    for row in rows:
        if isinstance(row, Unmeasured):
            cells = [row.failure.what if column is _PROBE else "" for column in columns]
            table.add_row("", row.model, *cells, style="dim")
        else:
            cells = [column.cell(row) for column in columns]
            style = "dim" if row.accuracy is None else ""
            table.add_row("●" if row in front else "", row.model, *cells, style=style)
    return table


def _width(table: Table) -> int:
    wide = Console(width=10_000)
    return Measurement.get(wide, wide.options, table).maximum


def _caption(rows: Sequence[Row | Unmeasured], sample: Sample, device: str) -> list[str]:
    known = measured(rows)
    sizes = {row.image_size for row in rows}
    at = f" at {sizes.pop()} px" if len(sizes) == 1 else ""
    lines = [f"{sample}, {largest_text(known, sample)}; on {device}{at}."]
    if not known:
        return lines
    calls = min(part.calls for row in known for part in row.cost.programs)
    ranks = "tuned (± is its standard error)" if by_tuning(known) else "probe"
    return [
        *lines,
        f"Probe: mean ± standard deviation of {sample.folds} folds. Ranked by: {ranks}, which % "
        "per M divides by million parameters.",
        "Time: of the inference of one image, the best of three measurements; images /s: "
        f"of inference with {known[0].cost.batch_size} images a batch; tuning /s: "
        f"the same while every parameter trains. Lower quartiles of {calls} calls or more.",
        f"● on the Pareto front of that accuracy and time, where times {WITHIN} count as equal.",
    ]


def _tuned(row: Row) -> tuple[str, str, str]:
    """Accuracy, images and best epoch, as the table has them."""
    if isinstance(row.tuned, Tuned):
        right = f"{row.tuned.right:,}/{row.tuned.images:,}"
        accuracy = f"{row.tuned.accuracy:.1f} ± {row.tuned.spread:.1f}"
        return accuracy, right, str(row.tuned.best_epoch)
    return (row.lack if row.probe else ""), "", ""
