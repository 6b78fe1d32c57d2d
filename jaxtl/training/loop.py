"""The training loop: phases of epochs of steps, each to be continued from its last checkpoint."""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxtl.config.config_file import Augment, Config, Phase
from jaxtl.console import EpochProgress, metrics_text
from jaxtl.data.loader import Loader
from jaxtl.errors import UserError
from jaxtl.metrics import Evaluation, Sums, to_host
from jaxtl.models import Network, Variables
from jaxtl.runs.checkpoints import Checkpoints, Progress
from jaxtl.runs.metrics_log import MetricsLog
from jaxtl.training.evaluation import Classifier
from jaxtl.training.feature_cache import (
    Feed,
    FrozenPass,
    has_work,
    open_feed,
    plan,
    row_spec,
    validation_plan,
)
from jaxtl.training.feature_store import Store
from jaxtl.training.optimizer import Hyperparameters, hyperparameters, optimizer
from jaxtl.training.step import AXIS, TrainState, TrainStep, make_train_step, prefetch, replicate
from jaxtl.training.trainable import Trainable, partition, running_momentum, training_graph

_LAG = 2  # calls under way on the device before the host looks at the sums of an earlier one
_SECONDS_BETWEEN_CHECKPOINTS = 10.0  # a checkpoint an epoch would slow short epochs down


class Interrupted(Exception):
    """The user or the cluster asked the run to stop; it is saved."""


class Diverged(UserError):
    """A loss is not finite any more."""


@dataclasses.dataclass
class Training:
    """One run, from where it stands to its end.

    Attributes:
        config: of the run.
        network: its structure.
        trainables: what trains, for each phase.
        variables: all variables where the run stands.
        progress: where it stands.
        train_data, val_data: the images.
        checkpoints: where the run is saved.
        log: where its measurements go.
        out: the terminal.
        devices: what batches are split over.
        store: where the activations of frozen stages are kept.
    """

    config: Config
    network: Network
    trainables: Sequence[Trainable]
    variables: Variables
    progress: Progress
    train_data: Loader
    val_data: Loader
    checkpoints: Checkpoints
    log: MetricsLog
    out: Console
    devices: Sequence[jax.Device]
    store: Store

    def __post_init__(self) -> None:
        self.classifier = Classifier(self.network, self.devices)
        self.variables = replicate(self.variables, self.devices)
        self._saved_at = -math.inf
        self._unsaved_best: tuple[Progress, TrainState] | None = None

    def run(self) -> Evaluation:
        """Trains what is left to train.

        Returns:
            The validation of the run's result.

        Raises:
            Interrupted: a signal asked for it; the run is saved and can be continued.
            Diverged: a loss is not finite any more.
        """
        with signals() as asked:
            for index in range(self.progress.phase, len(self.config.phases)):
                if index > self.progress.phase:
                    self.progress = self.progress.next_phase()
                self._phase(index, asked)
                self._restore_best(self.config.phases[index])
        return self.classifier.evaluate(self.variables, Feed(self.val_data))

    def close(self) -> None:
        """Waits until everything is on disk."""
        self.checkpoints.close()
        self.log.close()

    def _phase(self, index: int, asked: list[int]) -> None:
        phase, trainable = self.config.phases[index], self.trainables[index]
        if finished(phase, self.progress):
            return
        train, val = self._feeds(phase, trainable, asked)
        step = self._compile(phase, trainable, train)
        state = self._begin(phase, trainable)
        fixed = partition(self.variables, trainable.variables)[1]
        run = _PhaseRun(index, phase, train, val, step, fixed, self._hyperparameters(phase, train))
        try:
            while not finished(phase, self.progress):
                state = self._epoch(run, state, asked)
        except Exception:  # a run that diverges keeps its best epoch
            self._save_best(run)
            raise
        self.variables = fixed | state.variables

    def _restore_best(self, phase: Phase) -> None:
        """Ends a phase with its best parameters, if it says so."""
        best_step = self.progress.best_step
        if not phase.restore_best or best_step is None or best_step == self.progress.step:
            return
        best = self.checkpoints.variables(best_step, self.variables)
        self.variables = replicate(best, self.devices)
        result = {"loss": self.progress.best_loss, "accuracy": self.progress.best_accuracy}
        self.out.print(f"{phase.name}: back to its best, {metrics_text(result, 'val_')}")

    def _feeds(self, phase: Phase, trainable: Trainable, asked: list[int]) -> tuple[Feed, Feed]:
        """What the phase trains on and is validated on: images, or cached activations."""
        stage, size = trainable.frontier, self.config.model.image_size
        if not has_work(self.network, stage):
            views = 0 if self.config.views == "auto" else self.config.views
            return Feed(self.train_data, views), Feed(self.val_data)
        row = row_spec(self.network, stage, size)
        planned = plan(self.config, phase, row, len(self.train_data))
        self.out.print(f"{phase.name}: {planned.why}")
        pairs = (
            (planned, self.train_data, self.config.augment),
            (
                validation_plan(self.config, row, len(self.val_data), beside=planned.size),
                self.val_data,
                Augment(),
            ),
        )
        feeds = []
        for how, loader, augmentation in pairs:
            work = FrozenPass(
                config=self.config,
                network=self.network,
                variables=self.variables,
                loader=loader,
                stage=stage,
                row=row,
                views=how.views,
                augmentation=augmentation,
                devices=self.devices,
            )
            feed = open_feed(how, work, self.store, self.out, lambda: bool(asked))
            if feed is None:
                raise Interrupted
            feeds.append(feed)
        return feeds[0], feeds[1]

    def _compile(self, phase: Phase, trainable: Trainable, train: Feed) -> TrainStep:
        momentum = phase.batch_norm_momentum
        if momentum is None:
            momentum = running_momentum(phase.epochs * self.train_data.steps_per_epoch)
        return make_train_step(
            training_graph(self.network, trainable, momentum=momentum, axis_name=AXIS),
            trainable,
            phase,
            steps_per_epoch=self.train_data.steps_per_epoch,
            augmentation=self.config.augment,
            cached=train.dtype,
            devices=self.devices,
        )

    def _hyperparameters(self, phase: Phase, train: Feed) -> Hyperparameters:
        view_seed = self.config.data.seed if train.views else self.config.seed
        return replicate(hyperparameters(phase, self.config.seed, view_seed), self.devices)

    def _begin(self, phase: Phase, trainable: Trainable) -> TrainState:
        """The state of a phase where the run stands in it: at its start, or at a checkpoint."""
        parameters = {path: self.variables[path] for path in trainable.labels}
        steps, hyper = self.train_data.steps_per_epoch, hyperparameters(phase, 0, 0)
        optimizer_state = jax.jit(optimizer(phase, trainable, steps, hyper).init)(parameters)
        if self.progress.epoch or self.progress.batch:
            optimizer_state = self.checkpoints.optimizer(self.progress.step, optimizer_state)
        # Copies: the steps donate the state's arrays, and the variables must outlive them.
        changing = jax.tree.map(jnp.copy, partition(self.variables, trainable.variables)[0])
        state = TrainState(jnp.int32(self.progress.step), changing, optimizer_state)
        return replicate(state, self.devices)

    def _epoch(self, run: _PhaseRun, state: TrainState, asked: list[int]) -> TrainState:
        """One epoch or what is left of it: train, validate, log, and save, in this order.

        What is logged after the last checkpoint is measured again when a run is continued, so the
        log comes before the checkpoint.
        """
        phase = run.phase
        title = f"{phase.name} {self.progress.epoch + 1}/{phase.epochs}"
        batches = self.train_data.steps_per_epoch
        with EpochProgress(self.out, title, batches, self.progress.batch) as shown:
            state = self._train_batches(run, state, shown, asked)
            shown.validating()
            evaluation = self.classifier.evaluate(run.fixed | state.variables, run.val)
            num_classes = self.network.num_classes or 0
            train = self.progress.sums.means(num_classes)
            val = evaluation.sums.means(num_classes)
            check_finite("validation", val["loss"], self.progress.step)
            self.progress = self.progress.after_epoch(val["accuracy"], val["loss"])
            shown.done(train, val, best=self.progress.best_step == self.progress.step)
        train["images_per_second"] = shown.images_per_second
        for split_name, metrics in (("train", train), ("val", val)):
            self.log.write(phase.name, self.progress.epoch, self.progress.step, split_name, metrics)
        stop = bool(asked)
        self._save(run, state, at_once=stop or finished(phase, self.progress))
        if stop:
            raise Interrupted
        return state

    def _train_batches(
        self, run: _PhaseRun, state: TrainState, shown: EpochProgress, asked: list[int]
    ) -> TrainState:
        past = sum(phase.epochs for phase in self.config.phases[: run.index])
        chunks = run.train.chunks(past + self.progress.epoch, self.progress.batch)
        waiting: deque[Sums] = deque()
        for chunk in prefetch(chunks, self.devices):
            if asked:
                break
            state, sums = run.step(state, run.fixed, run.train.table, run.hyper, chunk)
            jax.tree.map(lambda array: array.copy_to_host_async(), sums)
            waiting.append(sums)
            if len(waiting) > _LAG:
                self._count(waiting.popleft(), shown)
        while waiting:
            self._count(waiting.popleft(), shown)
        if self.progress.batch < self.train_data.steps_per_epoch:
            self._save(run, state, at_once=True)
            raise Interrupted
        return state

    def _count(self, sums: Sums, shown: EpochProgress) -> None:
        """Takes note of steps that the device has done."""
        before = self.progress
        for done in to_host(sums):
            total = self.progress.sums + done
            self.progress = dataclasses.replace(
                self.progress,
                batch=self.progress.batch + 1,
                step=self.progress.step + 1,
                sums=total,
            )
            check_finite("training", float(total.loss), self.progress.step)
        images = int(self.progress.sums.images - before.sums.images)
        shown.batches(self.progress.batch - before.batch, self.progress.sums, images)

    def _save(self, run: _PhaseRun, state: TrainState, *, at_once: bool) -> None:
        """Writes a checkpoint, unless there was one a moment ago.

        A best epoch that gets no checkpoint of its own is remembered until the next one.
        """
        if not at_once and time.monotonic() < self._saved_at + _SECONDS_BETWEEN_CHECKPOINTS:
            if self.progress.best_step == self.progress.step:
                # A copy: the next step takes the state's arrays for its own.
                self._unsaved_best = self.progress, jax.tree.map(jnp.copy, state)
            return
        self._save_best(run)
        self._write(run, self.progress, state)
        self._saved_at = time.monotonic()

    def _save_best(self, run: _PhaseRun) -> None:
        """Writes the best epoch if it has no checkpoint yet."""
        best, self._unsaved_best = self._unsaved_best, None
        if best is not None and best[0].step == self.progress.best_step:
            self._write(run, *best)

    def _write(self, run: _PhaseRun, progress: Progress, state: TrainState) -> None:
        earlier = self.trainables[: run.index + 1]
        changed = itertools.chain.from_iterable(trainable.variables for trainable in earlier)
        everything = run.fixed | state.variables
        self.checkpoints.save(progress, partition(everything, changed)[0], state.optimizer)


@dataclasses.dataclass(frozen=True)
class _PhaseRun:
    """What stays the same while a phase runs."""

    index: int
    phase: Phase
    train: Feed
    val: Feed
    step: TrainStep
    fixed: Variables
    hyper: Hyperparameters


def check_finite(kind: str, loss: float, step: int) -> None:
    """Refuses to go on with a loss that is no number.

    Raises:
        Diverged: it says which loss, `training` or `validation`, and after which step.
    """
    if not math.isfinite(loss):
        raise Diverged(
            f"the {kind} loss is {loss} after step {step}; "
            "try a lower learning rate, or phases.NAME.clip_norm=1.0, in a new --workdir"
        )


def finished(phase: Phase, progress: Progress) -> bool:
    """Whether a phase is out of epochs or of patience."""
    out_of_patience = phase.patience is not None and progress.stale >= phase.patience
    return progress.epoch >= phase.epochs or out_of_patience


@contextmanager
def signals() -> Iterator[list[int]]:
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
