"""The outcome of a run that trained together with others, and its run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import optax

from jaxtl.config.config_file import Config
from jaxtl.metrics import Evaluation
from jaxtl.models import Variables
from jaxtl.runs.checkpoints import Checkpoints, Progress
from jaxtl.runs.directory import RunDirectory, RunMetadata
from jaxtl.runs.metrics_log import MetricsLog
from jaxtl.training.setup import result_of


class Measurement(NamedTuple):
    """One split after one epoch, as `MetricsLog.write` takes it."""

    phase: str
    epoch: int
    step: int
    split: str
    metrics: dict[str, float]


class Saved(NamedTuple):
    """One checkpoint, as `Checkpoints.save` takes it."""

    progress: Progress
    changed: Variables
    optimizer: optax.OptState


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        evaluation: the validation of its result.
        measurements: of every epoch, in order.
        checkpoints: the best epoch of the last phase, unless it is the newest, and the newest.
    """

    evaluation: Evaluation
    measurements: Sequence[Measurement]
    checkpoints: Sequence[Saved]

    def result(self, num_classes: int) -> dict[str, float]:
        """What `run.json` says of the run."""
        return result_of(self.checkpoints[-1].progress, self.evaluation, num_classes)


def write_run(
    run: RunDirectory,
    config: Config,
    metadata: RunMetadata,
    outcome: Outcome,
    initial: Variables | RunDirectory,
) -> None:
    """Writes the directory of a complete run, as `jaxtl.train` leaves it.

    Args:
        run: a directory that is not there yet.
        config: of the run.
        metadata: of the run.
        outcome: of its training.
        initial: all variables as it began, or a run that began with the same.
    """
    run.path.mkdir(parents=True)
    run.begin(config, metadata)
    checkpoints = Checkpoints(run.checkpoints)
    if isinstance(initial, RunDirectory):
        checkpoints.share_initial(initial.checkpoints)
    else:
        checkpoints.save_initial(initial)
    for saved in outcome.checkpoints:
        checkpoints.save(*saved)  # goes on while the rest is written
    log = MetricsLog(run.metrics, run.tensorboard, until=0)
    for measurement in outcome.measurements:
        log.write(*measurement)
    log.close()
    checkpoints.close()
    run.finish(outcome.result(len(metadata.classes)))
