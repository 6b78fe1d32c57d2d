"""Where a run stands."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import pydantic

from jaxtl.config import Phase
from jaxtl.console import metrics_text
from jaxtl.metrics import CLASS_METRICS, NONE, Sums, quality

Count = Annotated[int, pydantic.Field(ge=0, lt=2**31)]
EpochResult = tuple[Count, float, float]
"""The step at the end of an epoch, and its validation result: what is monitored, and the loss."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands: everything but the arrays that its next step depends on.

    Attributes:
        phase: the index of the phase.
        epoch: the number of complete epochs of this phase.
        batch: the number of batches of the next epoch that are done.
        step: the number of training steps since the run began.
        sums: the training metrics of these batches.
        stale: the number of epochs since the phase's best validation result, or since it began.
        best_step, best_epoch: when the phase had its best validation result; None before the first.
        best_accuracy, best_loss: the best validation result of the phase.
        best_score: what it was chosen by (`metrics.monitored`); None before the first result, and
            in older versions, which chose by the accuracy.
        to_average: the best epochs of a phase that will average them, the best one first.
        lr_factor: the factor on the learning rate of the phase, 1 unless it diverged.
        halvings: how often a learning rate was halved since the run began.
    """

    phase: Count = 0
    epoch: Count = 0
    batch: Count = 0
    step: Count = 0
    sums: Sums = NONE
    stale: Count = 0
    best_step: Count | None = None
    best_epoch: Count | None = None
    best_accuracy: float = -1.0
    best_loss: float = float("inf")
    best_score: float | None = None
    to_average: tuple[EpochResult, ...] = ()
    lr_factor: float = 1.0
    halvings: Count = 0

    @property
    def number(self) -> int:
        """Names the checkpoint that has this progress; of two, the later one has the higher number.

        There can be two at one step: before an epoch is validated (2 step), and after (2 step + 1).
        """
        return 2 * self.step + (self.batch == 0)

    @property
    def begun(self) -> bool:
        """Whether the phase has begun: before, the run is as the last phase left it."""
        return self.epoch > 0 or self.batch > 0

    @property
    def best_number(self) -> int | None:
        """The number of the checkpoint with the phase's best result; None before the first."""
        return None if self.best_step is None else 2 * self.best_step + 1

    @property
    def kept(self) -> frozenset[int]:
        """The numbers of the checkpoints whose variables the phase may end with."""
        steps = {step for step, *_ in self.to_average} | {self.best_step}
        return frozenset(2 * step + 1 for step in steps if step is not None)

    def next_phase(self) -> Progress:
        """The progress at the start of the next phase."""
        return Progress(phase=self.phase + 1, step=self.step, halvings=self.halvings)

    @property
    def best_quality(self) -> tuple[float, float]:
        """How good the best validation result of the phase is; below any other before the first."""
        if self.best_step is None:
            return -math.inf, -math.inf
        score = self.best_accuracy if self.best_score is None else self.best_score
        return quality(score, self.best_loss)

    def best_text(self, phase: Phase) -> str:
        """The best validation result of the phase, with what it monitors."""
        result = {"loss": self.best_loss, "accuracy": self.best_accuracy}
        if self.best_score is not None and phase.monitor in CLASS_METRICS:
            result[phase.monitor] = self.best_score
        return metrics_text(result, "val_")

    def epochs_of(self, used: Sequence[int], steps_per_epoch: int) -> list[int]:
        """The numbers, from 1, of some of the epochs in `to_average`, named by their places."""
        ends = sorted(self.to_average[place][0] for place in used)
        return [self.epoch - (self.step - end) // steps_per_epoch for end in ends]

    def after_epoch(
        self, accuracy: float, loss: float, score: float, average: int | None = None
    ) -> Progress:
        """The progress once the epoch's validation result is known.

        Args:
            accuracy, loss: the result.
            score: what the phase monitors, from `metrics.monitored`.
            average: how many epochs the phase will average at most; None for none.
        """
        results = (*self.to_average, (self.step, score, loss))
        ranked = sorted(results, key=lambda result: quality(*result[1:]), reverse=True)
        done = dataclasses.replace(
            self,
            epoch=self.epoch + 1,
            batch=0,
            sums=NONE,
            stale=self.stale + 1,
            to_average=tuple(ranked[: average or 0]),
        )
        if quality(score, loss) <= self.best_quality:
            return done
        return dataclasses.replace(
            done,
            stale=0,
            best_step=self.step,
            best_epoch=done.epoch,
            best_accuracy=accuracy,
            best_loss=loss,
            best_score=score,
        )

    def averaged(self, accuracy: float, loss: float, score: float) -> Progress:
        """The progress once the variables of its last step are the average of the best epochs."""
        return dataclasses.replace(
            self,
            best_step=self.step,
            best_accuracy=accuracy,
            best_loss=loss,
            best_score=score,
            to_average=(),
        )

    def finished(self, phase: Phase) -> bool:
        """Whether the phase has run all its epochs, or its patience has ended it."""
        out_of_patience = phase.patience is not None and self.stale >= phase.patience
        return self.epoch >= phase.epochs or out_of_patience

    def result_number(self, phase: Phase) -> int:
        """The number of the checkpoint whose variables are the result of the phase so far."""
        if phase.restore_best and self.best_number is not None:
            return self.best_number
        return self.number
