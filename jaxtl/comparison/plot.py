"""The image of a comparison: accuracy against speed, with the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxtl.comparison.results import (
    WITHIN,
    Row,
    Sample,
    Unmeasured,
    by_tuning,
    largest_text,
    measured,
    number,
    pareto_front,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FRONT, _OTHER, _GRID, _TEXT = "#1f6feb", "#8a94a6", "#e6e8ec", "#1c2128"
_LARGEST = 1500.0  # the area of the largest circle, in square points
_SMALLEST = 20.0


def write_plot(path: Path, of: Sequence[Row | Unmeasured], *, sample: Sample, device: str) -> None:
    """Draws the networks with an accuracy as circles, and below them those without as dots.

    Args:
        path: of a PNG file; one that is there is replaced.
        of: the networks; at least one was measured.
        sample: the images.
        device: what the networks ran on, in words.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # takes a while, and nothing else needs it

    rows = measured(of)
    known = [row for row in rows if row.accuracy is not None]
    unknown = sorted(
        (row for row in rows if row.accuracy is None), key=lambda row: -row.milliseconds
    )
    heights = [5.6] * bool(known) + [0.26 * len(unknown) + 0.3] * bool(unknown)
    figure = Figure(figsize=(9.6, sum(heights) + 1.7), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    if known:
        _accuracies(panels[0], known)
    if unknown:
        _costs_alone(panels[-1], unknown)
    _time_axis(panels[-1], rows)
    _titles(panels[0], of, sample, device)
    figure.draw_without_rendering()  # now it is known where everything lies
    if known:
        _name_circles(panels[0], known)
    figure.savefig(path)


def _accuracies(axes: Axes, rows: Sequence[Row]) -> None:
    front, corners = pareto_front(rows), _corners(rows)
    axes.plot(
        [latency for latency, _ in corners],
        [accuracy for _, accuracy in corners],
        color=_FRONT,
        linewidth=1.4,
        alpha=0.6,
        zorder=1,
    )
    for row, area in zip(rows, _areas(rows), strict=True):
        colour = _FRONT if row in front else _OTHER
        x, y = row.milliseconds, row.accuracy or 0.0
        axes.errorbar(x, y, yerr=row.spread, color=colour, linewidth=1.2, zorder=2)
        axes.scatter(x, y, s=area, color=colour, alpha=0.3, linewidths=0, zorder=3)
        axes.scatter(x, y, s=_SMALLEST, color=colour, linewidths=0, zorder=4)
    of = "validation accuracy after fine-tuning" if by_tuning(rows) else "accuracy of linear probe"
    axes.set_ylabel(f"{of}, %")
    lowest, highest = axes.get_ylim()
    room = max(0.05 * (highest - lowest), 0.5)
    axes.set_ylim(lowest - room, highest + room)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _areas(rows: Sequence[Row]) -> list[float]:
    """In proportion to the size of the weights."""
    largest = max(row.megabytes for row in rows)
    return [_LARGEST * row.megabytes / largest for row in rows]


def _costs_alone(axes: Axes, rows: Sequence[Row]) -> None:
    places = np.arange(len(rows))
    axes.scatter([row.milliseconds for row in rows], places, s=_SMALLEST, color=_OTHER, zorder=2)
    axes.set_yticks(places, [f"{row.model} ({row.lack})" for row in rows], fontsize=8, color=_OTHER)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_ylabel("no accuracy", color=_OTHER)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _time_axis(axes: Axes, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    times = [row.milliseconds for row in rows]
    middle = (min(times) * max(times)) ** 0.5
    reach = max(1.35 * max(times) / middle, 2.5)
    axes.set_xlim(middle / reach, middle * reach)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("inference of one image, ms")


def _titles(axes: Axes, of: Sequence[Row | Unmeasured], sample: Sample, device: str) -> None:
    rows = measured(of)
    known = [row for row in rows if row.accuracy is not None]
    sizes = sorted({row.image_size for row in rows})
    at = f"{sizes[0]} px" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} px"
    axes.set_title(
        f"{sample} at {at}, on {device}",
        loc="left",
        pad=34,
        fontsize=12,
        fontweight="bold",
        color=_TEXT,
    )
    tuned = "fine-tuned, ± standard error"
    probed = f"linear probe, mean ± standard deviation of {sample.folds} folds"
    below = [tuned if by_tuning(rows) else probed, largest_text(rows, sample)]
    below += [f"{row.model}: {row.failure.what}" for row in of if isinstance(row, Unmeasured)]
    marks = "no accuracy is known: cost alone"
    if known:
        largest = max(row.megabytes for row in known)
        marks = (
            f"blue: Pareto front, where times {WITHIN} count as equal; "
            f"area of a circle: size of the weights, the largest {number(largest)} MB"
        )
    axes.annotate(
        f"{'; '.join(below)}\n{marks}",
        (0, 1),
        (0, 7),
        "axes fraction",
        "offset points",
        fontsize=8.5,
        color=_OTHER,
    )


class _Mark(NamedTuple):
    """A circle and its spread, in pixels."""

    x: float
    y: float
    radius: float
    spread: float


def _name_circles(axes: Axes, rows: Sequence[Row]) -> None:
    """Writes each name beside its circle, where it hides least of all else."""
    front, marks = pareto_front(rows), _marks(axes, rows)
    taken = _drawn(axes, rows, marks)
    inside = axes.get_window_extent()
    for row, mark in zip(rows, marks, strict=True):
        label = axes.annotate(
            row.model,
            (row.milliseconds, row.accuracy or 0.0),
            xytext=(0, 0),
            textcoords="offset pixels",
            fontsize=8.5,
            color=_TEXT if row in front else _OTHER,
            parse_math=False,
            zorder=5,
        )

        def hidden(side: tuple[int, int], label: Any = label, mark: _Mark = mark) -> float:
            _move(label, side, mark)
            box = label.get_window_extent()
            outside = box.width * box.height - _shared(box, inside)
            return sum(_shared(box, other) for other in taken) + 9 * outside

        _move(label, min(_SIDES, key=hidden), mark)
        taken.append(label.get_window_extent())


# Right, above, below, left, and the corners between.
_SIDES = ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))


def _marks(axes: Axes, rows: Sequence[Row]) -> list[_Mark]:
    pixels = axes.figure.dpi / 72
    marks = []
    for row, area in zip(rows, _areas(rows), strict=True):
        accuracy, spread = row.accuracy or 0.0, row.spread
        points = [(row.milliseconds, accuracy), (row.milliseconds, accuracy + spread)]
        (x, y), (_, top) = axes.transData.transform(points).tolist()
        radius = max(area, _SMALLEST) ** 0.5 / np.pi**0.5
        marks.append(_Mark(x, y, radius * pixels, top - y))
    return marks


def _drawn(axes: Axes, rows: Sequence[Row], marks: Sequence[_Mark]) -> list[Any]:
    """Boxes around all circles and spreads, and around points along the front."""
    from matplotlib.transforms import Bbox

    def around(x: float, y: float, across: float, up: float) -> Bbox:
        return Bbox([[x - across, y - up], [x + across, y + up]])

    circles = [around(mark.x, mark.y, mark.radius, mark.radius) for mark in marks]
    spreads = [around(mark.x, mark.y, 2, mark.spread) for mark in marks]
    lines = itertools.pairwise(axes.transData.transform(_corners(rows)).tolist())
    points = itertools.chain.from_iterable(np.linspace(*ends, 60) for ends in lines)
    return [*circles, *spreads, *(around(x, y, 2, 2) for x, y in points)]


def _move(label: Any, side: tuple[int, int], mark: _Mark) -> None:
    """Puts a label on some side of its mark."""
    across, up = side
    gap = 6
    if across and up:
        away = mark.radius * 0.7 + gap
        offset = across * away, up * away
    else:
        offset = across * (mark.radius + gap), up * (max(mark.radius, mark.spread) + gap)
    label.set_position(offset)
    label.set_horizontalalignment({1: "left", 0: "center", -1: "right"}[across])
    label.set_verticalalignment({1: "bottom", 0: "center", -1: "top"}[up])


def _shared(one: Any, other: Any) -> float:
    """The area that two boxes share."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)


def _corners(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """The latency and the accuracy of each network of the Pareto front."""
    front = [(row.milliseconds, row.accuracy) for row in pareto_front(rows)]
    return [(latency, accuracy) for latency, accuracy in front if accuracy is not None]
