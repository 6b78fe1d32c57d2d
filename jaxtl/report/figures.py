"""Pictures of a run as SVG: its curves and its confusions.

Drawn by hand: a plotting library takes a third of a second for each page, and a sweep has many.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

_TRAIN, _VAL, _GRID, _INK, _BLUE = "#8a94a6", "#1f6feb", "#e6e8ec", "#57606a", (8, 48, 107)
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 440, 260, 46, 24, 40  # of one of two plots, in pixels
_NUMBERS = 20  # classes up to which cells hold their counts
_NAMES = 60  # and up to which rows and columns are named


def curves(measurements: Sequence[dict[str, Any]]) -> str:
    """Loss and accuracy by epoch; a line marks where a phase begins.

    Args:
        measurements: from `report.log.read_metrics`.
    """
    plots = [
        f'<g transform="translate({number * _WIDTH} 0)">{_plot(measurements, metric)}</g>'
        for number, metric in enumerate(("loss", "accuracy"))
    ]
    return _svg(2 * _WIDTH, _HEIGHT, "".join(plots))


def confusion_matrix(counts: Int[np.ndarray, "classes classes"], classes: Sequence[str]) -> str:
    """The share of each class (row) that was taken for each class (column).

    Args:
        counts: from `metrics.confusion`.
        classes: their names.
    """
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in classes]
    many = len(names) > _NAMES
    cell = max(24 if len(names) <= _NUMBERS else 13, 240 // max(len(names), 1)) if not many else 3
    room = 20 if many else 24 + 7 * max(map(len, names), default=0)
    side, shares = cell * len(names), counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    parts = [f'<rect x="{room}" y="0" width="{side}" height="{side}" fill="#f7f8fa"/>']
    for row, column in np.argwhere(counts).tolist():
        share, x, y = float(shares[row, column]), room + column * cell, row * cell
        rgb = ",".join(f"{255 - share * (255 - full):.0f}" for full in _BLUE)
        parts.append(f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="rgb({rgb})"/>')
        if len(names) <= _NUMBERS:
            count, ink = str(counts[row, column]), "white" if share > 0.5 else "black"
            parts.append(_text(x + cell / 2, y + cell / 2 + 4, count, ink, anchor="middle"))
    if not many:
        for number, name in enumerate(names):
            middle = (number + 0.5) * cell
            parts.append(_text(room - 4, middle + 4, name, anchor="end"))
            parts.append(_text(room + middle + 4, side + 4, name, anchor="end", turned=True))
    parts.append(_text(10, side / 2, "is", anchor="middle", turned=True))
    parts.append(_text(room + side / 2, side + room - 4, "taken for", anchor="middle"))
    return _svg(room + side + 4, side + room, "".join(parts))


def _plot(measurements: Sequence[dict[str, Any]], metric: str) -> str:
    """One metric by epoch, for both splits."""
    lines = {
        split: [line[metric] for line in measurements if line["split"] == split]
        for split in ("train", "val")
    }
    values = list(itertools.chain.from_iterable(lines.values())) or [0.0]
    last = max(map(len, lines.values()), default=1)
    ticks, epochs = _ticks(min(values), max(values)), _ticks(1, max(last, 2), whole=True)
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - 12
    low, high = min(ticks[0], *values), max(ticks[-1], *values)

    def x(epoch: float) -> float:
        return _LEFT + (epoch - 0.5) / max(last, 1) * (right - _LEFT)

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - _TOP)

    parts = [_line(_LEFT, y(tick), right, y(tick)) for tick in ticks]
    parts += [_text(_LEFT - 5, y(tick) + 4, f"{tick:g}", anchor="end") for tick in ticks]
    for epoch in (tick for tick in epochs if tick <= last):
        parts.append(_text(x(epoch), bottom + 15, f"{epoch:g}", anchor="middle"))
    phases = [line["phase"] for line in measurements if line["split"] == "val"]
    for phase in dict.fromkeys(phases):
        begun = x(phases.index(phase) + 0.5)
        parts.append(_line(begun, _TOP, begun, bottom))
        parts.append(_text(begun + 3, _TOP - 5, phase, _TRAIN))
    for number, (split, colour) in enumerate((("train", _TRAIN), ("val", _VAL))):
        points = [f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(lines[split], start=1)]
        parts.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" '
            'stroke-width="1.8" stroke-linejoin="round"/>'
        )
        dots = (point.split(",") for point in points) if last <= 50 else ()
        parts += [f'<circle cx="{cx}" cy="{cy}" r="2.2" fill="{colour}"/>' for cx, cy in dots]
        parts.append(_text(right - 90 + 50 * number, _HEIGHT - 6, split, colour))
    parts.append(_text(_LEFT + (right - _LEFT) / 2, _HEIGHT - 6, "epoch", anchor="middle"))
    parts.append(_text(12, (bottom + _TOP) / 2, metric, anchor="middle", turned=True))
    return "".join(parts)


def _ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Some six round numbers from at most `low` to about `high`."""
    rough = max((high - low) / 5, 1e-3 * max(abs(high), 1e-3))
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    if whole:
        step = max(round(step), 1)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(n * step, 10) for n in range(first, last + 1)]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{_GRID}" stroke-width="1"/>'
    )


def _text(
    x: float, y: float, text: str, ink: str = _INK, *, anchor: str = "start", turned: bool = False
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{ink}" text-anchor="{anchor}"{turn}>'
        f"{html.escape(text)}</text>"
    )


def _svg(width: float, height: float, content: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-size="11" '
        f'font-family="system-ui, sans-serif">{content}</svg>'
    )
