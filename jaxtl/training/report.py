"""Draws the page of a run: while it trains, at its end, and again later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

from jaxtl.config import Config, Phase
from jaxtl.data.sources import Source
from jaxtl.metrics import Evaluation
from jaxtl.models import Network, Variables, batch_statistics, split, stage_of
from jaxtl.reports import Findings, PlannedPhase, find, write_page
from jaxtl.runs.directory import RunDirectory
from jaxtl.training.optimizer import schedule
from jaxtl.training.predictor import load_run
from jaxtl.training.trainable import Trainable, select_trainable

_RATES = 200  # of the learning rate of a phase, about
_SHARE = 0.05  # of the time of a run may go into drawing its page after epochs


class Page:
    """The page of a run that trains. An error while it is drawn prints a line and ends nothing.

    Args:
        run: the run directory.
        config: its config.
        network: the structure of its network.
        trainables: what trains, for each phase.
        train_images: the number of images of an epoch.
        out: the terminal.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        network: Network,
        trainables: Sequence[Trainable],
        train_images: int,
        out: Console,
    ):
        self._run, self._config, self._network, self._out = run, config, network, out
        self._trainables, self._train_images = trainables, train_images
        self._failed = self._behind = False
        self._next = -math.inf
        self._rates: dict[str, float] | None = None

    def after_epoch(self, *, at_once: bool) -> None:
        """Draws what the metrics say. After one error it draws nothing until the end of the run.

        Args:
            at_once: draw also where epochs are so short that not each is drawn.
        """
        begun = time.monotonic()
        self._behind = begun < self._next and not at_once
        if self._failed or self._behind:
            return
        self._draw()
        ended = time.monotonic()
        self._next = ended + (ended - begun) / _SHARE

    def catch_up(self) -> None:
        """Draws the epochs that were not drawn, before the run ends early."""
        if self._behind and not self._failed:
            self._draw()
            self._behind = False

    def at_the_end(
        self,
        evaluation: Evaluation,
        source: Source,
        variables: Variables,
        thresholds: Float[np.ndarray, "classes"] | None = None,
    ) -> None:
        """Draws all there is to say of the result.

        Args:
            evaluation: the validation of the result, with log probabilities.
            source: the images that it saw.
            variables: the variables of the result.
            thresholds: those of its labels; None of one class an image.
        """
        drawn = self._config, evaluation, source, self._network, variables, thresholds
        self._draw(lambda: find(*drawn))

    def _plan(self) -> list[PlannedPhase]:
        rates = self._run.metadata().learning_rates
        if rates != self._rates:
            planned = plan(self._config, self._network, self._trainables, self._train_images, rates)
            self._rates, self._planned = rates, planned
        return self._planned

    def _draw(self, finding: Callable[[], Findings] | None = None) -> None:
        try:
            write_page(self._run, self._plan(), finding() if finding else None)
        except Exception as error:  # whatever it is, the run goes on
            self._failed = True
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._out.print(
                f"{self._run.report} could not be drawn ({reason}); to try again: "
                f"python -m jaxtl.report {self._run.path}"
            )


def draw_again(directory: Path, to: Path | None) -> Path:
    """Validates a run again and draws its page from that.

    Args:
        directory: the run directory.
        to: the file to write; None for that of the run.

    Returns:
        The file.

    Raises:
        UserError: there is no run, it is damaged, it has no checkpoint yet, or the images that it
            was validated on are not there any more.
    """
    predictor = load_run(directory)
    config, network = predictor.config, predictor.network
    source = predictor.images("val")
    evaluation = predictor.evaluate(source, keep_probabilities=True)
    trainables = [select_trainable(network, p.train, p.batch_norm) for p in config.phases]
    run = RunDirectory(directory)
    findings = find(config, evaluation, source, network, split(network)[1], predictor.thresholds)
    metadata = predictor.metadata
    images, rates = metadata.data.train.images, metadata.learning_rates
    planned = plan(config, network, trainables, images, rates)
    return write_page(run, planned, findings, to)


def plan(
    config: Config,
    network: Network,
    trainables: Sequence[Trainable],
    train_images: int,
    rates: Mapping[str, float],
) -> list[PlannedPhase]:
    """What each phase is to do, as its page shows it.

    Args:
        config: the config of the run.
        network: the structure of its network.
        trainables: what trains, for each phase.
        train_images: the number of images of an epoch.
        rates: the learning rates that phases found; one that has not begun has none to show.
    """
    steps_per_epoch = -(-train_images // config.data.batch_size)
    statistics = batch_statistics(network)
    sizes: dict[str, dict[str, int]] = {}
    for path, value in split(network)[1].items():
        if path not in statistics:
            sizes.setdefault(stage_of(path), {})[path] = value.size
    ordered = [stage for stage in network.stage_names if stage in sizes]
    return [
        PlannedPhase(
            phase.name,
            trainable.frontier,
            {
                stage: sum(size for p, size in sizes[stage].items() if p in trainable.multipliers)
                / sum(sizes[stage].values())
                for stage in ordered
            },
            _learning_rates(phase, steps_per_epoch, rates.get(phase.name, 0.0)),
        )
        for phase, trainable in zip(config.scaled_phases, trainables, strict=True)
    ]


def _learning_rates(phase: Phase, steps_per_epoch: int, found: float) -> list[tuple[float, float]]:
    """Epoch within the phase and learning rate, at some of its steps and at the last."""
    lr = found if phase.lr == "auto" else phase.lr
    if not lr:
        return []
    steps = phase.epochs * steps_per_epoch
    at = np.unique(np.append(np.arange(0, steps, max(steps // _RATES, 1)), steps - 1))
    # Some schedules of optax take one step alone.
    factors = np.asarray(jax.vmap(schedule(phase, steps_per_epoch))(at))
    epochs = ((at + 1) / steps_per_epoch).tolist()
    return list(zip(epochs, (lr * factors).tolist(), strict=True))
