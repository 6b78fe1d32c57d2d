"""The training loop: phases of epochs of steps, each continued from its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import chex
import jax
import jax.numpy as jnp
from rich.console import Console

from jaxtl.config import Augment, Config, Phase
from jaxtl.console import EpochProgress, metrics_text
from jaxtl.data.loader import Loader
from jaxtl.errors import UserError
from jaxtl.metrics import Evaluation, Sums, to_host
from jaxtl.models import Network, Variables, output_spec
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.metrics_log import MetricsLog
from jaxtl.runs.progress import Progress
from jaxtl.training.evaluation import Evaluator
from jaxtl.training.feature_cache import Feed, FrozenPass, has_parameters, open_feed, plan
from jaxtl.training.feature_store import FeatureStore
from jaxtl.training.optimizer import Hyperparameters, hyperparameters
from jaxtl.training.parallel import lagging, replicate, shard
from jaxtl.training.phase import begin_phase
from jaxtl.training.step import TrainState, TrainStep
from jaxtl.training.trainable import Trainable, partition

_SECONDS_BETWEEN_CHECKPOINTS = 10.0  # more would slow short epochs down


class Interrupted(Exception):
    """The user or the cluster asked the run to stop; it is saved."""


class Diverged(UserError):
    """A loss is not finite any more."""


@dataclasses.dataclass
class Training:
    """One run, from where it stands to its end.

    Attributes:
        config: the config of the run.
        network: the structure of the network.
        trainables: what trains, for each phase.
        variables: all variables where the run stands.
        progress: where the run stands.
        train_data, val_data: the images.
        checkpoints: the checkpoints of the run.
        log: the log of its metrics.
        out: the terminal.
        devices: the devices, as for `shard`.
        store: the store of frozen activations.
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
    store: FeatureStore

    def __post_init__(self) -> None:
        self.evaluator = Evaluator(self.network, self.devices)
        self.variables = replicate(self.variables, self.devices)
        self._saved_at = -math.inf
        self._unsaved_best: tuple[Progress, TrainState] | None = None

    def run(self) -> Evaluation:
        """Trains what is left of the run.

        Returns:
            The validation of the run's result.

        Raises:
            Interrupted: a signal asked the run to stop; it is saved and can be continued.
            Diverged: a loss is not finite any more.
            UserError: a checkpoint cannot be written.
        """
        with stop_signals() as stop:
            for index in range(self.progress.phase, len(self.config.phases)):
                if index > self.progress.phase:
                    self.progress = self.progress.next_phase()
                self._phase(index, stop)
                self._restore_best(self.config.phases[index])
        return self.evaluator.evaluate(self.variables, Feed(self.val_data))

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
            UserError: a checkpoint cannot be written.
        """
        try:
            self.checkpoints.close()
        finally:
            self.log.close()

    def _phase(self, index: int, stop: threading.Event) -> None:
        phase, trainable = self.config.phases[index], self.trainables[index]
        if self.progress.finished(phase):
            return
        train, val = self._feeds(phase, trainable, stop)
        view_seed = self.config.data.seed if train.views else self.config.seed
        step, state, frozen, hyper = begin_phase(
            self.network,
            trainable,
            phase,
            self.variables,
            hyperparameters(phase, self.config.seed, view_seed),
            steps_per_epoch=self.train_data.steps_per_epoch,
            devices=self.devices,
            step=self.progress.step,
            augmentation=self.config.augment,
            cached=train.dtype,
        )
        if self.progress.epoch or self.progress.batch:
            saved = self.checkpoints.optimizer(self.progress.number, state.optimizer)
            state = TrainState(state.step, state.variables, replicate(saved, self.devices))
        chex.assert_trees_all_equal_shapes_and_dtypes(frozen | state.variables, self.variables)
        run = _PhaseRun(index, phase, train, val, step, frozen, hyper)
        try:
            while not self.progress.finished(phase):
                state = self._epoch(run, state, stop)
        except Exception:  # a run that diverges keeps its best epoch
            self._save_best(run)
            raise
        self.variables = frozen | state.variables

    def _restore_best(self, phase: Phase) -> None:
        """Returns to the phase's best variables, if `phase.restore_best`."""
        number = self.progress.result_number(phase)
        if number == self.progress.number:
            return
        best = self.checkpoints.variables(number, self.variables)
        self.variables = replicate(best, self.devices)
        result = {"loss": self.progress.best_loss, "accuracy": self.progress.best_accuracy}
        self.out.print(f"{phase.name}: back to its best, {metrics_text(result, 'val_')}")

    def _feeds(
        self, phase: Phase, trainable: Trainable, stop: threading.Event
    ) -> tuple[Feed, Feed]:
        """The inputs of training and validation: images, or cached activations."""
        stage = trainable.frontier
        if not has_parameters(self.network, stage):
            views = 0 if self.config.views == "auto" else self.config.views
            return Feed(self.train_data, views), Feed(self.val_data)
        row = output_spec(self.network, self.config.model.image_size, stage)
        train = plan(self.config, row, len(self.train_data), epochs=phase.epochs)
        self.out.print(f"{phase.name}: {train.why}")
        val = plan(
            self.config, row, len(self.val_data), epochs=phase.epochs, views=1, beside=train.size
        )
        feeds = []
        for planned, loader, augmentation in (
            (train, self.train_data, self.config.augment),
            (val, self.val_data, Augment()),
        ):
            work = FrozenPass(
                config=self.config,
                network=self.network,
                variables=self.variables,
                loader=loader,
                stage=stage,
                views=planned.views,
                augmentation=augmentation,
                devices=self.devices,
            )
            feed = open_feed(planned, work, self.store, self.out, stop.is_set)
            if feed is None:
                raise Interrupted
            feeds.append(feed)
        return feeds[0], feeds[1]

    def _epoch(self, run: _PhaseRun, state: TrainState, stop: threading.Event) -> TrainState:
        """Trains what is left of an epoch, validates, logs and saves, in this order.

        The log comes before the checkpoint: a continued run measures again what was logged after
        its last checkpoint.
        """
        phase = run.phase
        title = f"{phase.name} {self.progress.epoch + 1}/{phase.epochs}"
        batches = self.train_data.steps_per_epoch
        with EpochProgress(self.out, title, batches, self.progress.batch) as shown:
            state = self._train_batches(run, state, shown, stop)
            shown.validating()
            evaluation = self.evaluator.evaluate(run.frozen | state.variables, run.val)
            num_classes = self.network.num_classes or 0
            train = self.progress.sums.means(num_classes)
            val = evaluation.sums.means(num_classes)
            check_finite("validation", val["loss"], self.progress.step)
            self.progress = self.progress.after_epoch(val["accuracy"], val["loss"])
            shown.done(train, val, best=self.progress.best_step == self.progress.step)
        train["images_per_second"] = shown.images_per_second
        for split_name, metrics in (("train", train), ("val", val)):
            self.log.write(phase.name, self.progress.epoch, self.progress.step, split_name, metrics)
        stopping = stop.is_set()
        self._save(run, state, at_once=stopping or self.progress.finished(phase))
        if stopping:
            raise Interrupted
        return state

    def _train_batches(
        self, run: _PhaseRun, state: TrainState, shown: EpochProgress, stop: threading.Event
    ) -> TrainState:
        past = sum(phase.epochs for phase in self.config.phases[: run.index])
        chunks = run.train.chunks(past + self.progress.epoch, self.progress.batch)
        sharded = lagging(shard(chunk, self.devices, axis=1) for chunk in chunks)

        def run_steps() -> Iterator[Sums]:
            nonlocal state
            for chunk in sharded:
                if stop.is_set():
                    return
                state, sums = run.step(state, run.frozen, run.train.table, run.hyper, chunk)
                jax.tree.map(lambda array: array.copy_to_host_async(), sums)
                yield sums

        for sums in lagging(run_steps()):
            self._count(sums, shown)
        if self.progress.batch < self.train_data.steps_per_epoch:
            self._save(run, state, at_once=True)
            raise Interrupted
        return state

    def _count(self, sums: Sums, shown: EpochProgress) -> None:
        """Adds the sums of finished steps to the progress."""
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
        """Writes a checkpoint, unless the last one is recent.

        A best epoch that the phase may return to stays in memory until the next checkpoint.
        """
        if not at_once and time.monotonic() < self._saved_at + _SECONDS_BETWEEN_CHECKPOINTS:
            if run.phase.restore_best and self.progress.best_step == self.progress.step:
                # A copy, since the next step donates the arrays of the state.
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
        so_far = self.trainables[: run.index + 1]
        changed = itertools.chain.from_iterable(trainable.variables for trainable in so_far)
        everything = run.frozen | state.variables
        self.checkpoints.save(progress, partition(everything, changed)[0], state.optimizer)


@dataclasses.dataclass(frozen=True)
class _PhaseRun:
    """The values that stay the same while a phase runs."""

    index: int
    phase: Phase
    train: Feed
    val: Feed
    step: TrainStep
    frozen: Variables
    hyper: Hyperparameters


def check_finite(kind: str, loss: float, step: int) -> None:
    """Stops a run whose loss is not finite.

    Raises:
        Diverged: the loss is not finite; the message names `kind`, `training` or `validation`, and
            the step.
    """
    if not math.isfinite(loss):
        raise Diverged(
            f"the {kind} loss is {loss} after step {step}; "
            "try a lower learning rate, or phases.NAME.clip_norm=1.0, in a new --workdir"
        )


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Sets an event on SIGINT or SIGTERM; a second signal stops the process at once, as usual."""
    stop = threading.Event()

    def request(number: int, frame: object) -> None:
        stop.set()
        print("stopping as soon as the run can be saved; once more stops at once", file=sys.stderr)
        signal.signal(number, usual[number])

    usual = {int(n): signal.signal(n, request) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
