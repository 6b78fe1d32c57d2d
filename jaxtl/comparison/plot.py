"""The plot of a comparison: accuracy against speed, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtl.comparison.results import (
    WITHIN,
    Conditions,
    Row,
    Unmeasured,
    measured,
    number,
    pareto_front,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FRONT, _OTHER, _GRID = "#1f6feb", "#8a94a6", "#e6e8ec"
_LARGEST = 1500.0  # the area of the largest circle, in square points


def write_plot(path: Path, rows: Sequence[Row | Unmeasured], conditions: Conditions) -> None:
    """Draws the networks with an accuracy as numbered circles, and below them those without.

    At least one network was measured. A PNG file that is there is replaced.
    """
    from matplotlib.figure import Figure  # takes a while, and nothing else needs it

    by_time = sorted(measured(rows), key=lambda row: row.cost.latency_ms)
    known = [row for row in by_time if row.score]
    unknown = [row for row in by_time if not row.score]
    heights = [5.6] * bool(known) + [0.26 * len(unknown) + 0.3] * bool(unknown)
    figure = Figure(figsize=(9.6, sum(heights) + 1.7), dpi=160, layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    if known:
        _draw_accuracies(panels[0], known, conditions)
    if unknown:
        _draw_costs(panels[-1], unknown)
    for axes in panels:
        axes.grid(color=_GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    _draw_times(panels[-1], by_time)
    _draw_titles(panels[0], rows, conditions)
    figure.savefig(path)


def _draw_accuracies(axes: Axes, rows: Sequence[Row], conditions: Conditions) -> None:
    """Names would hide each other where networks lie close: the legend has them, by number."""
    front = pareto_front(rows)
    corners = zip(*((row.cost.latency_ms, row.accuracy) for row in front), strict=True)
    axes.plot(*corners, color=_FRONT, linewidth=1.4, alpha=0.6, zorder=1)
    largest = max(row.cost.weights_mb for row in rows)
    for place, row in enumerate(rows, 1):
        assert row.score
        at, spread = (row.cost.latency_ms, row.score.accuracy), row.score.spread
        colour, area = _FRONT if row in front else _OTHER, row.cost.weights_mb / largest
        label = f"{place}  {row.model}"
        axes.errorbar(*at, spread, fmt="o", markersize=4.5, color=colour, label=label)
        axes.scatter(*at, _LARGEST * area, color=colour, alpha=0.3, linewidths=0, zorder=1)
        # Neighbours in time have their numbers on different sides.
        side, align = (5, "left") if place % 2 else (-5, "right")
        axes.annotate(str(place), at, (side, 4), "data", "offset points", ha=align, weight="bold")
    tuned, probed = "validation accuracy after fine-tuning, %", "accuracy of linear probe, %"
    axes.set_ylabel(tuned if conditions.tuned else probed)
    axes.margins(y=0.1)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8.5)


def _draw_costs(axes: Axes, rows: Sequence[Row]) -> None:
    places = range(len(rows), 0, -1)
    axes.scatter([row.cost.latency_ms for row in rows], places, s=20, color=_OTHER, zorder=2)
    names = [f"{row.model} ({row.missing})" for row in rows]
    axes.set_yticks(places, names, fontsize=8, color=_OTHER)
    axes.set_ylim(0.3, len(rows) + 0.7)
    axes.set_ylabel("no accuracy", color=_OTHER)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _draw_times(axes: Axes, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    fastest, slowest = rows[0].cost.latency_ms, rows[-1].cost.latency_ms
    middle = (fastest * slowest) ** 0.5
    reach = max(1.35 * slowest / middle, 2.5)  # so far that some ticks are in sight
    axes.set_xlim(middle / reach, middle * reach)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("inference of one image, ms")


def _draw_titles(axes: Axes, rows: Sequence[Row | Unmeasured], conditions: Conditions) -> None:
    known = measured(rows)
    sizes = sorted({row.image_size for row in known})
    at = f"{sizes[0]} px" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} px"
    title = f"{conditions} at {at}, on {conditions.device}"
    axes.set_title(title, loc="left", pad=34, fontsize=12, fontweight="bold")
    probed = f"linear probe, mean ± standard deviation of {conditions.folds} folds"
    ranked = "fine-tuned, ± standard error" if conditions.tuned else probed
    failed = [f"{row.model}: {row.failure.what}" for row in rows if isinstance(row, Unmeasured)]
    marks = "no accuracy is known: cost alone"
    if sized := [row.cost.weights_mb for row in known if row.score]:
        marks = (
            f"blue: Pareto front, where times {WITHIN} count as equal; "
            f"area of a circle: size of the weights, the largest {number(max(sized))} MB"
        )
    below = f"{'; '.join([ranked, conditions.largest_text, *failed])}\n{marks}"
    offset = ("axes fraction", "offset points")
    axes.annotate(below, (0, 1), (0, 7), *offset, fontsize=8.5, color=_OTHER)
