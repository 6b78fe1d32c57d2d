"""Networks side by side: what was measured of each, and the file that keeps it."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtl.comparison.costs import Cost
from jaxtl.comparison.linear_probe import Probe
from jaxtl.files import write_whole
from jaxtl.metrics import proportion

MARGIN = 0.1
"""Times of two networks that differ by a smaller fraction count as equal: noise of a machine."""

WITHIN = f"within {100 * MARGIN:.0f} %"
"""The margin in words."""


class Failure(Exception):
    """What went wrong with a network.

    Args:
        what: one or two words: `diverged`.
        details: the words that follow: `with 32 images a batch`.
    """

    def __init__(self, what: str, details: str):
        super().__init__(f"{what} {details}")
        self.what = what


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The result of fine-tuning every parameter.

    Attributes:
        correct: the number of validation images that were classified correctly.
        images: the number of all validation images.
        best_epoch: the epoch, counted from 1, whose parameters were measured.
    """

    correct: int
    images: int
    best_epoch: int

    def __str__(self) -> str:
        return f"{self.correct:,}/{self.images:,} = {self.accuracy:.1f} % fine-tuned"

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * self.correct / self.images

    @property
    def spread(self) -> float:
        """The standard error of the accuracy, in percentage points.

        It follows Agresti and Coull for one standard deviation (The American Statistician 52, 1998,
        p. 119-126), who add half a correct and half an incorrect image: with all images correct it
        is not 0.
        """
        fraction = (self.correct + 0.5) / (self.images + 1)
        return 100 * math.sqrt(fraction * (1 - fraction) / (self.images + 1))


@dataclasses.dataclass(frozen=True)
class Row:
    """A network that was measured.

    Attributes:
        model: the name of the network, with its width if that is not 1: `mobilenet_v2@0.35`.
        image_size: the side of an image, in pixels.
        cost: the measured cost.
        probe: the result of the linear probe; None without weights.
        weights: the source of the weights and their sha256; "" without weights.
        tried: the sources that had no weights, each with the reason.
        ranked_by: the accuracy that networks are ranked by, the same in all rows.
        tuned: the result of fine-tuning; None before it, or without it.
    """

    model: str
    image_size: int
    cost: Cost
    probe: Probe | None
    weights: str
    tried: str = ""
    ranked_by: Literal["linear probe", "fine-tuning"] = "linear probe"
    tuned: Tuned | Failure | None = None

    @property
    def score(self) -> Probe | Tuned | None:
        """The accuracy to rank by, with its spread; None if it is not known."""
        if self.ranked_by == "linear probe":
            return self.probe
        return self.tuned if isinstance(self.tuned, Tuned) else None

    @property
    def accuracy(self) -> float | None:
        """The accuracy to rank by, in percent."""
        return self.score.accuracy if self.score else None

    @property
    def density(self) -> float | None:
        """The accuracy to rank by, for each million parameters."""
        return 1e6 * self.score.accuracy / self.cost.parameters if self.score else None

    @property
    def accuracy_text(self) -> str:
        """The accuracy to rank by as people read it, or why it is not known."""
        return str(self.score) if self.score else self.missing

    @property
    def missing(self) -> str:
        """Why it has no accuracy to rank by, in a few words."""
        if self.probe is None:
            return "no weights"
        return self.tuned.what if isinstance(self.tuned, Failure) else "not fine-tuned"

    @property
    def summary(self) -> str:
        """Its accuracy and speed."""
        return f"{self.accuracy_text}, {number(self.cost.latency_ms)} ms an image"

    @property
    def problem(self) -> str:
        """What went wrong, or why there are no weights; "" for nothing."""
        if isinstance(self.tuned, Failure):
            return str(self.tuned)
        return "" if self.probe else f"no weights: {self.tried or 'none were asked for'}"


class Unmeasured(NamedTuple):
    """A network that could not be measured, and why."""

    model: str
    image_size: int
    failure: Failure

    @property
    def problem(self) -> str:
        """What went wrong."""
        return str(self.failure)


class Conditions(NamedTuple):
    """What networks are measured on.

    Attributes:
        images: the number of images.
        classes: the number of classes.
        largest: the accuracy of always guessing the largest class, in percent, on the images whose
            accuracy ranks the networks.
        folds: the number of folds of the linear probe.
        device: the device in words.
        tuned: whether fine-tuning ranks the networks, on the validation images.
    """

    images: int
    classes: int
    largest: float
    folds: int
    device: str
    tuned: bool = False

    @property
    def largest_text(self) -> str:
        """The accuracy of a guess: `the largest class has 10.2 % of them`."""
        images = "of the validation images" if self.tuned else "of them"
        return f"the largest class has {self.largest:.1f} % {images}"

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.classes} classes"


def interval(row: Row, images: int) -> tuple[float, float] | None:
    """The Wilson interval of 95 % of the accuracy to rank by, in percent; None without accuracy.

    Args:
        row: a network.
        images: the images of its linear probe, which classifies each once.
    """
    if row.score is None:
        return None
    of = row.score.images if isinstance(row.score, Tuned) else images
    found = proportion(round(row.score.accuracy * of / 100), of)
    return 100 * found.low, 100 * found.high


def measured(rows: Sequence[Row | Unmeasured]) -> list[Row]:
    """The networks that could be measured."""
    return [row for row in rows if isinstance(row, Row)]


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The networks that no other one beats in accuracy and speed, the fastest first.

    A network of the front beats every network outside it that has an accuracy.
    """
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (-(row.accuracy or 0.0), row.cost.latency_ms)):
        if row.score and not any(beats(other, row) for other in front):
            front.append(row)
    return sorted(front, key=lambda row: row.cost.latency_ms)


def beats(one: Row, other: Row) -> bool:
    """Whether one network is at least as fast and as accurate as another, and better in one.

    Speed is that of the inference of one image, and times within `MARGIN` count as equal.
    """
    if one.accuracy is None or other.accuracy is None:
        return False
    slower = other.cost.latency_ms < (1 - MARGIN) * one.cost.latency_ms
    faster = one.cost.latency_ms < (1 - MARGIN) * other.cost.latency_ms
    if one.accuracy == other.accuracy:
        return faster
    return one.accuracy > other.accuracy and not slower


def write_comparison(path: Path, rows: Sequence[Row | Unmeasured], conditions: Conditions) -> None:
    """Writes all results as CSV, in full precision; a file that is there is replaced."""
    front = pareto_front(measured(rows))
    lines = [_fields(row, front, conditions) for row in rows]
    text = io.StringIO(newline="")
    # A network that could not be measured has only some of the columns.
    writer = csv.DictWriter(text, max(lines, key=len))
    writer.writeheader()
    writer.writerows(lines)
    write_whole(path, text.getvalue().encode(errors="surrogateescape"))


def _fields(row: Row | Unmeasured, front: Sequence[Row], conditions: Conditions) -> dict[str, Any]:
    """One line of the CSV; unknown values stay empty."""
    if isinstance(row, Unmeasured):
        return {"model": row.model, "image_size": row.image_size, "failure": str(row.failure)}
    probe = row.probe
    low, high = interval(row, conditions.images) or (None, None)
    tuned = row.tuned if isinstance(row.tuned, Tuned) else None
    return {
        "model": row.model,
        "image_size": row.image_size,
        "ranked_by": row.ranked_by,
        "accuracy": row.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_per_million_parameters": row.density,
        "pareto_front": row in front,
        "probe_accuracy": probe and probe.accuracy,
        "probe_std": probe and probe.spread,
        "folds": probe and conditions.folds,
        "finetuned_accuracy": tuned and tuned.accuracy,
        "finetuned_correct": tuned and tuned.correct,
        "validation_images": tuned and tuned.images,
        "best_epoch": tuned and tuned.best_epoch,
        "failure": row.tuned if isinstance(row.tuned, Failure) else "",
        "images": conditions.images,
        "classes": conditions.classes,
        "largest_class_percent": conditions.largest,
        **row.cost._asdict(),
        "device": conditions.device,
        "weights": row.weights or "none",
        "weights_tried": row.tried,
    }


def number(value: float) -> str:
    """Three significant digits, or all before the point: `0.47`, `3.50`, `25.6`, `1,280`."""
    rounded = float(f"{value:.3g}")
    digits = 2 - math.floor(math.log10(abs(rounded))) if rounded else 0
    text = f"{value:,.{max(digits, 0)}f}"
    return text.rstrip("0") if 0 < abs(rounded) < 1 else text
