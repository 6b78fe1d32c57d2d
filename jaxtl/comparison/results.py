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

MARGIN = 0.1
"""Times of two networks that differ by less than this share count as equal: noise of a machine."""

WITHIN = f"within {100 * MARGIN:.0f} %"
"""That, in words."""

RankedBy = Literal["linear probe", "fine-tuning"]


class Failure(NamedTuple):
    """What went wrong with a network.

    Attributes:
        what: in a word or two: `diverged`.
        details: what follows it: `with 32 images a batch`.
    """

    what: str
    details: str

    def __str__(self) -> str:
        return f"{self.what} {self.details}"


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What fine-tuning every parameter came to.

    Attributes:
        right: validation images that were classified rightly.
        images: all validation images.
        best_epoch: the epoch, counted from 1, whose parameters these are.
    """

    right: int
    images: int
    best_epoch: int

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * self.right / self.images

    @property
    def spread(self) -> float:
        """The standard error of a share of so many images, in percentage points.

        It is that of Agresti and Coull for one standard deviation (The American Statistician 52,
        1998, p. 119-126), which half an image right and half an image wrong are added for: with
        all images right it is not 0.
        """
        share = (self.right + 0.5) / (self.images + 1)
        return 100 * math.sqrt(share * (1 - share) / (self.images + 1))


@dataclasses.dataclass(frozen=True)
class Row:
    """A network that was measured.

    Attributes:
        model: its name, with its width where that is not 1: `mobilenet_v2@0.35`.
        image_size: pixels a side.
        cost: what it costs.
        probe: how accurate a linear probe of it is; None where its weights could not be had.
        weights: where they are from and their sha256; "" where there are none.
        tried: the sources that had none, each with the reason.
        ranked_by: whose accuracy networks are ranked by, the same in all rows.
        tuned: what fine-tuning came to; None where there was none, or not yet.
    """

    model: str
    image_size: int
    cost: Cost
    probe: Probe | None
    weights: str
    tried: str = ""
    ranked_by: RankedBy = "linear probe"
    tuned: Tuned | Failure | None = None

    @property
    def accuracy(self) -> float | None:
        """What networks are ranked by, in percent."""
        if self.ranked_by == "fine-tuning":
            return self.tuned.accuracy if isinstance(self.tuned, Tuned) else None
        return None if self.probe is None else self.probe.mean

    @property
    def spread(self) -> float:
        """What stands after ± of this accuracy, in percentage points; 0 where there is none."""
        if self.ranked_by == "fine-tuning":
            return self.tuned.spread if isinstance(self.tuned, Tuned) else 0.0
        return 0.0 if self.probe is None else self.probe.spread

    @property
    def lack(self) -> str:
        """Why it has no accuracy to rank by, in a few words; "" where it has one."""
        if self.accuracy is not None:
            return ""
        if self.probe is None:
            return "no weights"
        return self.tuned.what if isinstance(self.tuned, Failure) else "not fine-tuned"

    @property
    def milliseconds(self) -> float:
        """Of the inference of one image."""
        return 1e3 * self.cost.single.seconds

    @property
    def megabytes(self) -> float:
        """Of the weights, in 1e6 bytes."""
        return self.cost.weight_bytes / 1e6

    @property
    def inference_rate(self) -> float:
        """Images a second in batches."""
        return self.cost.batch_size / self.cost.inference.seconds

    @property
    def finetuning_rate(self) -> float:
        """Images a second while every parameter trains."""
        return self.cost.batch_size / self.cost.finetuning.seconds

    @property
    def density(self) -> float | None:
        """The accuracy that ranks, in percent, for each million parameters."""
        return None if self.accuracy is None else 1e6 * self.accuracy / self.cost.parameters


@dataclasses.dataclass(frozen=True)
class Unmeasured:
    """A network that could not be measured.

    Attributes:
        model, image_size: as of a `Row`.
        failure: why.
    """

    model: str
    image_size: int
    failure: Failure


@dataclasses.dataclass(frozen=True)
class Sample:
    """The images that accuracy is measured on.

    Attributes:
        images: all of them.
        classes: how many classes they have.
        largest: the share of the largest class among those that rank, in percent: what a guess
            that is always the same is right in.
        folds: of the linear probe.
    """

    images: int
    classes: int
    largest: float
    folds: int

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.classes} classes"


def measured(rows: Sequence[Row | Unmeasured]) -> list[Row]:
    """Those that could be measured."""
    return [row for row in rows if isinstance(row, Row)]


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """The networks that none of them beats in accuracy and speed, the fastest first.

    Every network that is left out is beaten by one of these. Those without an accuracy are left
    out as well.
    """
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (-(row.accuracy or 0.0), row.milliseconds)):
        if row.accuracy is not None and not any(beats(other, row) for other in front):
            front.append(row)
    return sorted(front, key=lambda row: row.milliseconds)


def beats(one: Row, other: Row) -> bool:
    """Whether it is at least as fast and as accurate, and better in one of the two.

    Speed is that of the inference of one image, and times within `MARGIN` count as equal.
    """
    if one.accuracy is None or other.accuracy is None:
        return False
    slower = other.milliseconds < (1 - MARGIN) * one.milliseconds
    faster = one.milliseconds < (1 - MARGIN) * other.milliseconds
    if one.accuracy == other.accuracy:
        return faster
    return one.accuracy > other.accuracy and not slower


def accuracy_text(row: Row) -> str:
    """What a network is ranked by, as people read it: `93.1 ± 0.8 %`, `352/357 = 98.6 %`."""
    if row.ranked_by == "fine-tuning" and isinstance(row.tuned, Tuned):
        of = f"{row.tuned.right:,}/{row.tuned.images:,}"
        return f"{of} = {row.tuned.accuracy:.1f} % fine-tuned"
    if row.accuracy is None or row.probe is None:
        return row.lack
    return f"{plus_minus(row.probe)} %"


def largest_text(rows: Sequence[Row], sample: Sample) -> str:
    """What a guess would be right in: `the largest class has 10.2 % of them`."""
    of = "of the validation images" if by_tuning(rows) else "of them"
    return f"the largest class has {sample.largest:.1f} % {of}"


def by_tuning(rows: Sequence[Row]) -> bool:
    """Whether fine-tuned networks are compared."""
    return any(row.ranked_by == "fine-tuning" for row in rows)


def plus_minus(probe: Probe) -> str:
    """The mean and the standard deviation: `93.1 ± 0.8`."""
    return f"{probe.mean:.1f} ± {probe.spread:.1f}"


def write_comparison(
    path: Path, rows: Sequence[Row | Unmeasured], sample: Sample, device: str
) -> None:
    """Writes all that was measured as CSV, in full precision.

    Args:
        path: of the file; one that is there is replaced.
        rows: at least one.
        sample: the images.
        device: what they ran on, in words.
    """
    front = pareto_front(measured(rows))
    lines = [_fields(row, front, sample, device) for row in rows]
    text = io.StringIO(newline="")
    # What could not be measured has some of the columns only.
    writer = csv.DictWriter(text, max(lines, key=len))
    writer.writeheader()
    writer.writerows(lines)
    write_whole(path, text.getvalue().encode())


def _fields(
    row: Row | Unmeasured, front: Sequence[Row], sample: Sample, device: str
) -> dict[str, Any]:
    """One line of the CSV; what is not known stays empty."""
    if isinstance(row, Unmeasured):
        return {"model": row.model, "image_size": row.image_size, "failure": str(row.failure)}
    cost, probe = row.cost, row.probe
    tuned = row.tuned if isinstance(row.tuned, Tuned) else None
    return {
        "model": row.model,
        "image_size": row.image_size,
        "ranked_by": row.ranked_by,
        "accuracy": row.accuracy,
        "accuracy_per_million_parameters": row.density,
        "pareto_front": row in front,
        "probe_accuracy": probe.mean if probe else None,
        "probe_std": probe.spread if probe else None,
        "folds": probe.folds if probe else None,
        "finetuned_accuracy": tuned.accuracy if tuned else None,
        "finetuned_right": tuned.right if tuned else None,
        "validation_images": tuned.images if tuned else None,
        "best_epoch": tuned.best_epoch if tuned else None,
        "failure": str(row.tuned) if isinstance(row.tuned, Failure) else "",
        "images": sample.images,
        "classes": sample.classes,
        "largest_class_percent": sample.largest,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "weights_mb": row.megabytes,
        "latency_ms": row.milliseconds,
        "latency_calls": cost.single.calls,
        "batch_size": cost.batch_size,
        "inference_images_per_second": row.inference_rate,
        "inference_calls": cost.inference.calls,
        "finetuning_images_per_second": row.finetuning_rate,
        "finetuning_calls": cost.finetuning.calls,
        "inference_memory_mb": cost.inference.memory / 1e6,
        "finetuning_memory_mb": cost.finetuning.memory / 1e6,
        "device": device,
        "weights": row.weights or "none",
        "weights_tried": row.tried,
    }


def number(value: float) -> str:
    """Three significant digits, or all before the point: `0.47`, `3.50`, `25.6`, `1,280`."""
    rounded = float(f"{value:.3g}")
    digits = 2 - math.floor(math.log10(abs(rounded))) if rounded else 0
    text = f"{value:,.{max(digits, 0)}f}"
    return text.rstrip("0") if 0 < abs(rounded) < 1 else text
