"""Lines and axes as numbers: what a template draws as SVG."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 400, 230
COLOURS = range(1, 9)
"""The style sheet's colours of lines, by number."""
DASHES = ("solid", "dashed", "dotted")
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 8, 20, 34
_MOST_DOTS = 60  # of a line whose points are marked


@dataclass(frozen=True)
class Line:
    """A named line.

    Attributes:
        name: what the legend calls it.
        colour: one of `COLOURS`.
        points: (x, y), ascending in x; values that are not finite are left out.
        dash: one of `DASHES`.
    """

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    dash: str = DASHES[0]


@dataclass(frozen=True)
class Drawn:
    """A line in the coordinates of its chart.

    Attributes:
        path: the points, as in `points` of a `polyline`.
        dots: x, y and the text of each point that is marked.
    """

    name: str
    colour: int
    dash: str
    path: str
    dots: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """A chart in its own coordinates.

    Attributes:
        title: what is drawn, with its unit.
        summary: the chart in words.
        x_ticks, y_ticks: positions and labels.
        marks: positions and names of what begins there.
    """

    title: str
    summary: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[tuple[float, str]]
    lines: list[Drawn]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def chart(title: str, lines: Sequence[Line], marks: Sequence[tuple[float, str]] = ()) -> Chart:
    """Lays out lines over epochs.

    Args:
        title: what is drawn, with its unit.
        lines: at least one point in all.
        marks: where on the x axis something begins, and its name.
    """
    from matplotlib.ticker import MaxNLocator

    finite = [
        dataclasses.replace(line, points=[p for p in line.points if math.isfinite(p[1])])
        for line in lines
    ]
    xs = [x for line in finite for x, _ in line.points] or [0.0]
    ys = [y for line in finite for _, y in line.points] or [0.0]
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    margin = 0.0 if min(ys) < max(ys) else 0.05 * abs(ys[0]) or 1.0
    ticks = MaxNLocator(4).tick_values(min(ys) - margin, max(ys) + margin)
    values = [float(y) for y in ticks if y >= 0 or min(ys) < 0]
    if max(ys) <= 1 < values[-1]:  # nothing is above a fraction of 1
        values = [*(value for value in values if value < 1), 1.0]
    y_low, y_high = values[0], values[-1]
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT

    def across(x: float) -> float:
        return round(_LEFT + (x - x_low) / (x_high - x_low) * (right - _LEFT), 1)

    def up(y: float) -> float:
        return round(bottom - (y - y_low) / (y_high - y_low) * (bottom - _TOP), 1)

    epochs = [float(x) for x in MaxNLocator(6, integer=True).tick_values(x_low, x_high)]
    drawn = [
        Drawn(
            line.name,
            line.colour,
            line.dash,
            " ".join(f"{across(x)},{up(y)}" for x, y in line.points),
            [(across(x), up(y), f"{line.name}, epoch {x:g}: {y:.4g}") for x, y in line.points]
            if len(line.points) <= _MOST_DOTS
            else [],
        )
        for line in finite
    ]
    return Chart(
        title,
        _summary(title, finite),
        [(across(x), f"{x:g}") for x in epochs if x_low <= x <= x_high],
        [(up(y), f"{y:,.4g}") for y in values],
        [(across(max(x, x_low)), name) for x, name in marks if x <= x_high],
        drawn,
    )


def _summary(title: str, lines: Sequence[Line]) -> str:
    said = [
        f"{line.name} from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}"
        for line in lines
        if line.points
    ]
    return f"{title}: {', '.join(said)}"
