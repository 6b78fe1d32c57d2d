"""What a run that trained together with others came to, and its run directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import optax

from jaxtl.config.config_file import Config
from jaxtl.metrics import Evaluation
from jaxtl.models import Variables
from jaxtl.runs.checkpoints import Checkpoints, Progress
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.metrics_log import MetricsLog
from jaxtl.runs.report import write_page


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
    """What a run came to.

    Attributes:
        evaluation: the validation of its result.
        measurements: of every epoch, in order.
        checkpoints: the best epoch of the last phase, unless it is the newest, and the newest.
    """

    evaluation: Evaluation
    measurements: Sequence[Measurement]
    checkpoints: Sequence[Saved]

    def result(self, num_classes: int) -> dict[str, float]:
        """What `run.json` says: the steps of the run and the validation of its result."""
        step = self.checkpoints[-1].progress.step
        return {"step": step, **self.evaluation.sums.means(num_classes)}


def write_run(
    run: RunDirectory,
    config: Config,
    metadata: Mapping[str, Any],
    outcome: Outcome,
    initial: Variables | RunDirectory,
    *,
    page: bool,
) -> None:
    """Writes the directory of a complete run, as `jaxtl.train` leaves it.

    Args:
        run: a directory that is not there yet.
        config: of the run.
        metadata: as `RunDirectory.begin` takes them.
        outcome: what the run came to.
        initial: all variables as it began, or a run that began with the same.
        page: with its page, which takes longer than all the rest.
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
    if page:
        write_page(run, outcome.evaluation, metadata["classes"])
    checkpoints.close()
    run.finish(outcome.result(len(metadata["classes"])))
