"""The images of docs/benchmarks.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmark.goals import Goal

_REACHED, _MISSED, _GOAL = "#2a7f62", "#c0504d", "#222222"
_LINES = ("#2a7f62", "#3b6ea5", "#c77d28")
_PIXELS = 150  # an inch


def ratios(rows: Sequence[tuple[Goal, str, Sequence[float]]], path: Path) -> None:
    """A line for each row and peer: the median ratio, its range, and the goal.

    Args:
        rows: the goal, the peer and the ratios.
        path: of the PNG.
    """
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(rows) + 1.1), layout="constrained")
    margin = axes.get_yaxis_transform()
    for place, (goal, _, values) in enumerate(rows):
        middle = statistics.median(values)
        colour = _REACHED if middle <= goal.at_most else _MISSED
        axes.hlines(place, min(values), max(values), color=colour, linewidth=3, alpha=0.35)
        axes.plot(middle, place, "o", color=colour, markersize=7)
        axes.plot(goal.at_most, place, "|", color=_GOAL, markersize=13, markeredgewidth=2)
        axes.text(
            1.02, place, f"{middle:.2g}", transform=margin, va="center", color=colour, fontsize=9
        )
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    labels = [f"{goal.title}  /  {peer}" for goal, peer, _ in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", alpha=0.2)
    axes.invert_yaxis()
    axes.set_xscale("log")
    most = max(max(values) for _, _, values in rows)
    least = min(min(*values, goal.at_most) for goal, _, values in rows)
    axes.set_xlim(least / 1.3, max(most, 1) * 1.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(
        "jaxtl / peer, less is better   ( ● median   ▬ range   | goal )", fontsize=10, loc="left"
    )
    _bare(axes)
    figure.savefig(path, dpi=_PIXELS)
    plt.close(figure)


def scaling(growth: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """A panel for each thing that grows.

    Args:
        growth: seconds by name of the thing, line and number.
        path: of the PNG.
    """
    figure, panels = plt.subplots(2, 2, figsize=(8.5, 6), layout="constrained")
    for axes, (name, series) in zip(panels.flat, growth.items(), strict=True):
        for colour, (line, points) in zip(_LINES, series.items(), strict=False):
            x = [int(number) for number in points]
            axes.plot(x, list(points.values()), "o-", color=colour, label=line, markersize=4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        numbers = [int(number) for number in next(iter(series.values()))]
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.set_title(name, fontsize=10)
        axes.set_ylabel("seconds", fontsize=9)
        axes.grid(axis="y", alpha=0.3)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8)
        _bare(axes)
    figure.savefig(path, dpi=_PIXELS)
    plt.close(figure)


def _bare(axes: plt.Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
