"""The training loop: phases of epochs of steps, each to be continued from its last checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

from jaxtl.checkpoint import Checkpoints, Progress
from jaxtl.config import Config, Phase
from jaxtl.data.loader import Loader
from jaxtl.errors import UserError
from jaxtl.freeze import Freezing, partition, running_momentum, training_graph
from jaxtl.metrics import Sums, to_host
from jaxtl.models import Network, Variables
from jaxtl.optim import optimizer
from jaxtl.predictor import Classifier, Evaluation
from jaxtl.report.log import MetricsLog
from jaxtl.report.terminal import EpochProgress, metrics_text
from jaxtl.steps import AXIS, TrainState, TrainStep, make_train_step, replicate, shard

_LAG = 2  # steps under way on the device before the host looks at the sums of an earlier one


class Interrupted(Exception):
    """The user or the cluster asked the run to stop; it is saved."""


@dataclasses.dataclass
class Training:
    """One run, from where it stands to its end.

    Attributes:
        config: of the run.
        network: its structure.
        freezings: what trains, for each phase.
        variables: all variables where the run stands.
        progress: where it stands.
        train_data, val_data: the pictures.
        checkpoints: where the run is saved.
        log: where its measurements go.
        out: the terminal.
        devices: what batches are split over.
    """

    config: Config
    network: Network
    freezings: Sequence[Freezing]
    variables: Variables
    progress: Progress
    train_data: Loader
    val_data: Loader
    checkpoints: Checkpoints
    log: MetricsLog
    out: Console
    devices: Sequence[jax.Device]

    def __post_init__(self) -> None:
        self.classifier = Classifier(self.network, self.devices)
        self.variables = replicate(self.variables, self.devices)

    def run(self) -> Evaluation:
        """Trains what is left to train.

        Returns:
            The validation of the run's result.

        Raises:
            Interrupted: a signal asked for it; the run is saved and can be continued.
            UserError: a loss is not finite any more.
        """
        with _signals() as asked:
            for index in range(self.progress.phase, len(self.config.phases)):
                if index > self.progress.phase:
                    self.progress = self.progress.next_phase()
                self._phase(index, asked)
        return self.classifier.evaluate(self.variables, self.val_data)

    def close(self) -> None:
        """Waits until everything is on disk."""
        self.checkpoints.close()
        self.log.close()

    def _phase(self, index: int, asked: list[int]) -> None:
        phase, frozen = self.config.phases[index], self.freezings[index]
        transform = optimizer(phase, frozen, self.train_data.steps_per_epoch)
        step = self._compile(phase, frozen, transform)
        state = self._begin(frozen, transform)
        fixed = partition(self.variables, frozen.changing)[1]
        while not _finished(phase, self.progress):
            state = self._epoch(index, step, state, fixed, asked)
        if phase.restore_best and self.progress.best_step is not None:
            best = self.checkpoints.variables(self.progress.best_step, self.variables)
            self.variables = replicate(best, self.devices)
            if self.progress.best_step != self.progress.step:
                result = {"loss": self.progress.best_loss, "accuracy": self.progress.best_accuracy}
                self.out.print(f"{phase.name}: back to its best, {metrics_text(result, 'val_')}")
        else:
            self.variables = fixed | state.changing

    def _compile(
        self, phase: Phase, frozen: Freezing, transform: optax.GradientTransformation
    ) -> TrainStep:
        momentum = phase.batch_norm_momentum
        if momentum is None:
            momentum = running_momentum(phase.epochs * self.train_data.steps_per_epoch)
        return make_train_step(
            training_graph(self.network, frozen, momentum=momentum, axis_name=AXIS),
            frozen,
            transform,
            phase=phase,
            augmentation=self.config.augment,
            seed=self.config.seed,
            devices=self.devices,
        )

    def _begin(self, frozen: Freezing, transform: optax.GradientTransformation) -> TrainState:
        """The state of a phase where the run stands in it: at its start, or at a checkpoint."""
        parameters = {path: self.variables[path] for path in frozen.labels}
        optimizer_state = jax.jit(transform.init)(parameters)
        if self.progress.epoch or self.progress.batch:
            optimizer_state = self.checkpoints.optimizer(self.progress.step, optimizer_state)
        # Copies: the steps donate the state's arrays, and the variables must outlive them.
        changing = jax.tree.map(jnp.copy, partition(self.variables, frozen.changing)[0])
        state = TrainState(jnp.int32(self.progress.step), changing, optimizer_state)
        return replicate(state, self.devices)

    def _epoch(
        self, index: int, step: TrainStep, state: TrainState, fixed: Variables, asked: list[int]
    ) -> TrainState:
        """One epoch or what is left of it: train, validate, log, and save, in this order.

        What is logged after the last checkpoint is measured again when a run is continued, so the
        log comes before the checkpoint.
        """
        phase = self.config.phases[index]
        title = f"{phase.name} {self.progress.epoch + 1}/{phase.epochs}"
        batches = self.train_data.steps_per_epoch
        with EpochProgress(self.out, title, batches, self.progress.batch) as shown:
            state = self._train_batches(index, step, state, fixed, shown, asked)
            shown.validating()
            everything = fixed | state.changing
            num_classes = self.network.num_classes or 0
            evaluation = self.classifier.evaluate(everything, self.val_data)
            train = self.progress.sums.means(num_classes)
            val = evaluation.sums.means(num_classes)
            _check_finite("validation", val["loss"], self.progress.step)
            self.progress = self.progress.after_epoch(val["accuracy"], val["loss"])
            shown.done(train, val, best=self.progress.best_step == self.progress.step)
        train["images_per_second"] = shown.images_per_second
        for split_name, metrics in (("train", train), ("val", val)):
            self.log.write(phase.name, self.progress.epoch, self.progress.step, split_name, metrics)
        self._save(index, state, fixed)
        if asked:
            raise Interrupted
        return state

    def _train_batches(
        self,
        index: int,
        step: TrainStep,
        state: TrainState,
        fixed: Variables,
        shown: EpochProgress,
        asked: list[int],
    ) -> TrainState:
        past = sum(phase.epochs for phase in self.config.phases[:index])
        loader = self.train_data.epoch(past + self.progress.epoch, self.progress.batch)
        waiting: deque[Sums] = deque()
        for batch in loader:
            if asked:
                break
            state, sums = step(state, fixed, shard(batch, self.devices))
            waiting.append(sums)
            if len(waiting) > _LAG:
                self._count(waiting.popleft(), shown)
        while waiting:
            self._count(waiting.popleft(), shown)
        if self.progress.batch < self.train_data.steps_per_epoch:
            self._save(index, state, fixed)
            raise Interrupted
        return state

    def _count(self, sums: Sums, shown: EpochProgress) -> None:
        """Takes note of a step that the device has done."""
        done = to_host(sums)
        total = self.progress.sums + done
        self.progress = dataclasses.replace(
            self.progress, batch=self.progress.batch + 1, step=self.progress.step + 1, sums=total
        )
        _check_finite("training", float(total.loss), self.progress.step)
        shown.batch(total, int(done.pictures))

    def _save(self, index: int, state: TrainState, fixed: Variables) -> None:
        changed = itertools.chain.from_iterable(f.changing for f in self.freezings[: index + 1])
        everything = fixed | state.changing
        self.checkpoints.save(self.progress, partition(everything, changed)[0], state.optimizer)


def _check_finite(kind: str, loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"the {kind} loss is {loss} after step {step}; "
            "try a lower learning rate, or phases.NAME.clip_norm=1.0, in a new --workdir"
        )


def _finished(phase: Phase, progress: Progress) -> bool:
    out_of_patience = phase.patience is not None and progress.stale >= phase.patience
    return progress.epoch >= phase.epochs or out_of_patience


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the signals that ask to stop; a second one stops at once, as usual."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        asked.append(number)
        print("stopping after this step; once more to stop at once", file=sys.stderr)
        signal.signal(number, usual[number])

    usual = {int(number): signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
