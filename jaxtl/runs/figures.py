"""Draws the figures of a run: curves and confusions."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NAMES, _LONGEST_NAME = 60, 24  # on each axis of the confusion matrix
_TRAIN, _VAL, _GRID = "#8a94a6", "#1f6feb", "#e6e8ec"


def curves(measurements: Sequence[dict[str, Any]]) -> str:
    """Loss and accuracy by epoch, as SVG; a line marks where a phase begins.

    Args:
        measurements: the lines from `metrics_log.read_metrics`.
    """
    from matplotlib.ticker import MaxNLocator

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
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(metric)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return _svg(figure)


def confusion_matrix(counts: Int[np.ndarray, "classes classes"], classes: Sequence[str]) -> str:
    """The fraction of each class (row) that was classified as each class (column), as SVG.

    Args:
        counts: the counts from `metrics.confusion`.
        classes: the names of the classes. Long names are shortened; with more than 60 classes some
            names are left out.
    """
    side = min(3 + 0.35 * len(classes), 14)
    figure = _figure(side + 1, side)
    axes = figure.subplots()
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    ticks = range(0, len(classes), -(-len(classes) // _MOST_NAMES))
    names = [_shortened(classes[tick]) for tick in ticks]
    axes.set_xticks(ticks, names, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=8, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if len(classes) <= 20:
        for row, column in np.argwhere(counts):
            colour = "white" if fractions[row, column] > 0.5 else "black"
            number = str(counts[row, column])
            axes.text(column, row, number, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.7, label="fraction of the true class")
    return _svg(figure)


def _shortened(name: str) -> str:
    """A long name without its middle, since the ends tell names apart."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # slow to import; training does not need it

    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Text stays text: a browser has fonts for all scripts. Matplotlib's own font has not, hence
    # its warning.
    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
