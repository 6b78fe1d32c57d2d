"""A comparison as a table on a terminal: as many whole columns as there is space for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from jaxtl.comparison.linear_probe import Probe
from jaxtl.comparison.results import (
    WITHIN,
    Conditions,
    Row,
    Tuned,
    Unmeasured,
    interval,
    measured,
    number,
    pareto_front,
)


class _Column(NamedTuple):
    heading: str
    cell: Callable[[Row], str]
    name: str = ""  # in the list of columns that are left out
    leaves: int = 0  # columns are left out in this order where there is no space; 0: never


def _percent(score: Probe | Tuned) -> str:
    return f"{score.accuracy:.1f} ± {score.spread:.1f}"


def _tuned(row: Row) -> str:
    if isinstance(row.tuned, Tuned):
        return _percent(row.tuned)
    return row.missing if row.probe else ""


def _of_tuned(text: Callable[[Tuned], str]) -> Callable[[Row], str]:
    return lambda row: text(row.tuned) if isinstance(row.tuned, Tuned) else ""


def _interval(conditions: Conditions) -> _Column:
    def cell(row: Row) -> str:
        found = interval(row, conditions.images)
        return "" if found is None else f"{found[0]:.1f}-{found[1]:.1f}"

    return _Column("95 %\ninterval", cell, "95 % interval", 12)


_PIXELS = _Column("\npx", lambda row: str(row.image_size), "px", 5)
_PROBE = _Column("probe\n%", lambda row: _percent(row.probe) if row.probe else "no weights")
_TUNED = (
    _Column("tuned\n%", _tuned),
    _Column("\ncorrect", _of_tuned(lambda t: f"{t.correct:,}/{t.images:,}"), "correct images", 6),
    _Column("best\nepoch", _of_tuned(lambda t: str(t.best_epoch)), "best epoch", 4),
)
_COSTS = (
    _Column("% per\nM", lambda r: "" if r.density is None else number(r.density), "% per M", 7),
    _Column("params\nM", lambda r: number(r.cost.parameters / 1e6), "parameters", 10),
    _Column("MACs\nM", lambda r: number(r.cost.macs / 1e6), "MACs", 1),
    _Column("size\nMB", lambda r: number(r.cost.weights_mb), "size", 11),
    _Column("time\nms", lambda r: number(r.cost.latency_ms)),
    _Column("images\n/s", lambda r: number(r.cost.inference_images_per_second), "images /s", 9),
    _Column("tuning\n/s", lambda r: number(r.cost.finetuning_images_per_second), "tuning /s", 8),
    _Column("memory\nMB", lambda r: number(r.cost.inference_memory_mb), "memory", 2),
    _Column("tuning\nMB", lambda r: number(r.cost.finetuning_memory_mb), "tuning memory", 3),
)


def comparison_table(
    rows: Sequence[Row | Unmeasured], conditions: Conditions, *, width: int, rest: Path
) -> Table:
    """One or more networks as a table of whole columns: as many as fit into `width` characters.

    The caption names `rest`, the file that holds the other columns.
    """
    several = len({row.image_size for row in rows}) > 1
    tuned = _TUNED if conditions.tuned else ()
    columns = [*[_PIXELS] * several, _PROBE, *tuned, _interval(conditions), *_COSTS]
    leaving = sorted((column for column in columns if column.leaves), key=lambda c: c.leaves)
    left_out: list[str] = []
    while leaving and _width(_table(rows, columns)) > width:
        left_out.append(leaving[0].name)
        columns.remove(leaving.pop(0))
    table = _table(rows, columns)
    more = [f"{', '.join(left_out)}: {rest}"] if left_out else []
    table.caption = "\n".join([*_caption(rows, conditions), *more])
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
        else:
            cells = [column.cell(row) for column in columns]
        known = isinstance(row, Row) and row.score
        table.add_row("●" if row in front else "", row.model, *cells, style="" if known else "dim")
    return table


def _width(table: Table) -> int:
    wide = Console(width=10_000)
    return Measurement.get(wide, wide.options, table).maximum


def _caption(rows: Sequence[Row | Unmeasured], conditions: Conditions) -> list[str]:
    known, sizes = measured(rows), {row.image_size for row in rows}
    at = f" at {sizes.pop()} px" if len(sizes) == 1 else ""
    lines = [f"{conditions}, {conditions.largest_text}; on {conditions.device}{at}."]
    if not known:
        return lines
    calls = min(n for row in known for key, n in row.cost._asdict().items() if "calls" in key)
    ranks = "tuned (± is its standard error)" if conditions.tuned else "probe"
    return [
        *lines,
        f"Probe: mean ± standard deviation of {conditions.folds} folds. Ranked by: {ranks}, which "
        "% per M divides by million parameters; its interval is Wilson's.",
        "Time: of the inference of one image, the best of three measurements; images /s: "
        f"of inference with {known[0].cost.batch_size} images a batch; tuning /s: "
        f"the same while every parameter trains. Lower quartiles of {calls} calls or more.",
        f"● on the Pareto front of that accuracy and time, where times {WITHIN} count as equal.",
    ]
