"""Images of a run: its curves and its confusions."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TRAIN, _VAL, _GRID = "#8a94a6", "#1f6feb", "#e6e8ec"


def curves(measurements: Sequence[dict[str, Any]]) -> str:
    """Loss and accuracy by epoch, as SVG; a line marks where a phase begins.

    Args:
        measurements: from `report.log.read_metrics`.
    """
    figure = _figure(9, 3.4)
    phases = list(dict.fromkeys(line["phase"] for line in measurements))
    validated = [line for line in measurements if line["split"] == "val"]
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, colour in (("train", _TRAIN), ("val", _VAL)):
            values = [line[metric] for line in measurements if line["split"] == split]
            epochs = np.arange(1, len(values) + 1)
            axes.plot(epochs, values, color=colour, label=split, linewidth=1.6, marker=".")
        begun = 0
        for phase in phases:
            axes.axvline(begun + 0.5, color=_GRID, linewidth=1, zorder=0)
            axes.annotate(
                phase,
                (begun + 0.6, 1.01),
                xycoords=("data", "axes fraction"),
                fontsize=8,
                color=_TRAIN,
            )
            begun += sum(line["phase"] == phase for line in validated)
        axes.set_xlabel("epoch")
        axes.set_ylabel(metric)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return _svg(figure)


def confusion_matrix(counts: Int[np.ndarray, "classes classes"], classes: Sequence[str]) -> str:
    """The share of each class (row) that was taken for each class (column), as SVG.

    Args:
        counts: from `metrics.confusion`.
        classes: their names.
    """
    side = min(3 + 0.35 * len(classes), 14)
    figure = _figure(side + 1, side)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = np.arange(len(classes))
    axes.set_xticks(ticks, classes, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(ticks, classes, fontsize=8, parse_math=False)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    if len(classes) <= 20:
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            number = str(counts[row, column])
            axes.text(column, row, number, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.7)
    return _svg(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # takes a while, and training need not wait for it

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):  # text as text: a browser has fonts for all scripts
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
