"""The images of docs/benchmarks.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from benchmark.rows import Row

_REACHED, _MISSED, _GOAL = "#2a7f62", "#c0504d", "#222222"
_STYLE = {
    "axes.prop_cycle": plt.cycler(color=("#2a7f62", "#3b6ea5", "#c77d28")),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "savefig.dpi": 150,
}


@plt.rc_context(_STYLE)
def ratios(rows: Sequence[tuple[Row, str, Sequence[float]]], path: Path) -> None:
    """A line for each row and peer: the median ratio, its range, and the goal.

    Args:
        rows: the row, the peer and the ratios.
        path: of the PNG.
    """
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(rows) + 1.1))
    margin = axes.get_yaxis_transform()
    for place, (row, _, values) in enumerate(rows):
        middle = statistics.median(values)
        color = _REACHED if middle <= row.at_most else _MISSED
        axes.hlines(place, min(values), max(values), color=color, linewidth=3, alpha=0.35)
        axes.plot(middle, place, "o", color=color, markersize=7)
        axes.plot(row.at_most, place, "|", color=_GOAL, markersize=13, markeredgewidth=2)
        axes.text(1.02, place, f"{middle:.2g}", transform=margin, va="center", color=color)
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [f"{row.title}  /  {peer}" for row, peer, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", alpha=0.2)
    axes.invert_yaxis()
    most = max(max(values) for _, _, values in rows)
    least = min(min(*values, row.at_most) for row, _, values in rows)
    axes.set_xscale("log")
    axes.set_xlim(least / 1.3, max(most, 1) * 1.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    title = "jaxtl / peer, less is better   ( ● median   ▬ range   | goal )"
    axes.set_title(title, loc="left")
    figure.savefig(path)
    plt.close(figure)


@plt.rc_context(_STYLE)
def scaling(growth: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """A panel for each axis, with a line for each thing that grows along it.

    Args:
        growth: seconds by axis, line and number.
        path: of the PNG.
    """
    figure, panels = plt.subplots(2, 2, figsize=(8.5, 6))
    for axes, (name, lines) in zip(panels.flat, growth.items(), strict=True):
        for line, points in lines.items():
            numbers = list(map(int, points))
            axes.plot(numbers, list(points.values()), "o-", label=line, markersize=4)
        axes.set(title=name, ylabel="seconds", xscale="log", yscale="log")
        numbers = list(map(int, next(iter(lines.values()))))
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(axis="y", alpha=0.3)
        if len(lines) > 1:
            axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)
