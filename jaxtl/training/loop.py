"""The training loop: phases of epochs of steps, each continued from its last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import chex
import jax
import numpy as np
from rich.console import Console

from jaxtl.config import Config, Phase
from jaxtl.console import EpochProgress
from jaxtl.data.loader import Loader
from jaxtl.errors import Interrupted, UserError
from jaxtl.metrics import Evaluation, Sums, monitored, quality, to_host
from jaxtl.models import Network, Variables
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.progress import Progress
from jaxtl.tasks import task_of
from jaxtl.training import hosts
from jaxtl.training.averaging import Quality, greedy_soup
from jaxtl.training.divergence import Diverged, check_finite
from jaxtl.training.evaluation import Evaluator
from jaxtl.training.feature_cache import Feed
from jaxtl.training.feature_store import FeatureStore
from jaxtl.training.lr_range import constant, rising_rates
from jaxtl.training.memory import OutOfMemory, is_out_of_memory, out_of_memory
from jaxtl.training.optimizer import hyperparameters, weights_of_classes
from jaxtl.training.parallel import lagging, replicate, shard
from jaxtl.training.phase import PhaseRun, begin_phase, open_inputs
from jaxtl.training.profiling import InputWait, Trace, device_use, is_idle
from jaxtl.training.recovery import Recovery
from jaxtl.training.report import Page
from jaxtl.training.saving import Saver, warn_not_saved
from jaxtl.training.shared_run import RunCheckpoints, RunLog
from jaxtl.training.stopping import Stop, stop_signals
from jaxtl.training.trainable import Trainable, partition

AfterEpoch = Callable[[int, float], None]


@dataclasses.dataclass
class Training:
    """One run, from where it stands to its end.

    Attributes:
        config: the config of the run.
        network: the structure of the network.
        trainables: what trains, for each phase.
        variables: all variables where the run stands.
        progress: where the run stands.
        train_data, val_data, test_data: the images; None for those of a test where there are none.
        directory: the run directory.
        checkpoints: the checkpoints of the run.
        log: the log of its metrics.
        out: the terminal.
        devices: the devices, as for `shard`, of all hosts.
        store: the store of frozen activations.
        trace: the trace of some of its steps.
        page: the page that shows it.
        after_epoch: called with the number of epochs so far, of all phases, and what runs are
            ranked by, of the validation.
    """

    config: Config
    network: Network
    trainables: Sequence[Trainable]
    variables: Variables
    progress: Progress
    train_data: Loader
    val_data: Loader
    test_data: Loader | None
    directory: RunDirectory
    checkpoints: RunCheckpoints
    log: RunLog
    out: Console
    devices: Sequence[jax.Device]
    store: FeatureStore
    trace: Trace
    page: Page
    after_epoch: AfterEpoch | None = None

    def __post_init__(self) -> None:
        self.task = task_of(self.train_data.source.labels)
        self.evaluator = Evaluator(self.network, jax.local_devices(), task=self.task)
        self.variables = replicate(self.variables, self.devices)
        self.saver = Saver(
            self.checkpoints,
            self.directory,
            every_minutes=self.config.checkpoint.every_minutes,
            newest=None if self.progress == Progress() else self.progress,
        )
        self.recovery = Recovery(
            self.config.on_nan, self.checkpoints, self.saver, self.log, self.out, self.devices
        )

    def run(self) -> tuple[Evaluation, Evaluation | None]:
        """Trains what is left of the run; returns, or raises, once everything is on disk.

        Returns:
            The validation of the run's result and its test, with log probabilities.

        Raises:
            Interrupted: a signal asked the run to stop; it is saved and can be continued, unless
                the cause is an error.
            Diverged: a loss is not finite any more.
            UserError: a checkpoint cannot be written, or something else that the user can fix.
        """
        with stop_signals() as stop:
            try:
                for index in range(self.progress.phase, len(self.config.phases)):
                    if index > self.progress.phase:
                        self.progress = self.progress.next_phase()
                    self._phase(index, stop)
                evaluation, tested = self._result(stop)
            except Interrupted:
                # An error here is the one to report: the run is not saved.
                hosts.together(self._close)
                raise
            except Exception as error:
                self._close_after_error()
                if is_out_of_memory(error) and not isinstance(error, UserError):
                    raise OutOfMemory(
                        "there is too little memory; try a smaller --cfg.data.batch_size or "
                        "--cfg.cache.memory_gb in a new --workdir"
                    ) from error
                raise
            hosts.together(self._close)
            hosts.together(stop.check)
        return evaluation, tested

    def _result(self, stop: Stop) -> tuple[Evaluation, Evaluation | None]:
        def evaluate(data: Loader) -> Evaluation:
            return self.evaluator.evaluate(
                self.variables, Feed(data), stop, keep_probabilities=True
            )

        val = evaluate(self.val_data)
        # Here alone a run looks at these images: all that it could choose is chosen.
        return val, None if self.test_data is None else evaluate(self.test_data)

    def _close(self) -> None:
        with contextlib.ExitStack() as closing:
            closing.callback(self.log.close)
            closing.callback(self.checkpoints.close)
            self.page.catch_up()
            self.trace.close()

    def _close_after_error(self) -> None:
        try:
            self._close()
        except Exception as error:  # the first one is the one to report
            if not self.saver.failed:
                warn_not_saved(error)

    def _phase(self, index: int, stop: Stop) -> None:
        """Trains what is left of a phase; whatever ends it early, what was trained is saved."""
        if self.progress.finished(self.config.phases[index]):
            return
        run = self._begin(index, stop)
        while not self.progress.finished(run.phase):
            try:
                self._epoch(run, stop)
            except Diverged as error:
                run.chunk = None
                self.progress = self._recover(run, error)
            except Interrupted:
                self._save(run, at_once=True)
                raise
            except Exception as error:
                self.saver.rescue(run.position(self.progress), error)
                on_host = isinstance(error, MemoryError)  # where images are decoded
                if run.chunk is None or on_host or not is_out_of_memory(error):
                    raise
                fixed = run.state, run.frozen, run.train.table, run.hyper
                given = run.chunk, self.devices[0], run.phase
                raise out_of_memory(run.step, fixed, *given) from error
        self.variables = run.frozen | run.state.variables
        self._restore_best(run.phase)

    def _recover(self, run: PhaseRun, error: Diverged) -> Progress:
        """Goes back on every host, since all have the same numbers."""
        self.trace.close()
        slow_down = self.recovery.slow_down
        return hosts.together(lambda: slow_down(run, self.progress, self.variables, error))

    def _begin(self, index: int, stop: Stop) -> PhaseRun:
        phase, trainable = self.config.scaled_phases[index], self.trainables[index]
        train, val = open_inputs(
            *(self.config, self.network, phase, trainable.frontier),
            variables=self.variables,
            loaders=(self.train_data, self.val_data),
            store=self.store,
            out=self.out,
            stop=stop,
        )
        view_seed = self.config.data.seed if train.views else self.config.seed
        source = self.train_data.source
        weights = weights_of_classes(phase, source.labels, source.classes)
        hyper = hyperparameters(phase, self.config.seed, view_seed, weights)
        begin = functools.partial(
            begin_phase,
            self.network,
            trainable,
            variables=self.variables,
            steps_per_epoch=self.train_data.steps_per_epoch,
            devices=self.devices,
            augmentation=self.config.augment,
            cached=train.dtype,
        )
        # A phase that diverged and went back to its start has half the rate.
        if phase.lr == "auto" and not self.progress.begun and self.progress.lr_factor == 1:
            begun = begin(phase=constant(phase), hyper=hyper)
            found = rising_rates(begun, train, self.devices, stop).suggestion
            hosts.from_first(lambda: self.directory.note_rate(phase.name, found))
            self.out.print(f"{phase.name}: the loss falls fastest at learning rate {found:.2g}")
            self.progress = dataclasses.replace(self.progress, lr_factor=found)
        lr = np.asarray(phase.base_lr * self.progress.lr_factor, np.float32)
        step, state, frozen, hyper = begin(
            phase=phase, hyper=hyper._replace(lr=lr), step=self.progress.step
        )
        if self.progress.begun:
            saved = self.checkpoints.optimizer(self.progress.number, state.optimizer)
            state = state._replace(optimizer=replicate(saved, self.devices))
        chex.assert_trees_all_equal_shapes_and_dtypes(frozen | state.variables, self.variables)
        changed = [path for one in self.trainables[: index + 1] for path in one.variables]
        return PhaseRun(
            phase=phase,
            past_epochs=sum(phase.epochs for phase in self.config.phases[:index]),
            trainable=trainable,
            changed=tuple(changed),
            start=self.progress,
            train=train,
            val=val,
            step=step,
            frozen=frozen,
            hyper=hyper,
            state=state,
        )

    def _restore_best(self, phase: Phase) -> None:
        """Returns to the phase's best variables, if `phase.restore_best`."""
        number = self.progress.result_number(phase)
        if number == self.progress.number:
            return
        best = self.checkpoints.changed(number, self.variables)
        self.variables = self.variables | replicate(best, self.devices)
        self.out.print(f"{phase.name}: back to its best, {self.progress.best_text(phase)}")

    def _average_best(self, run: PhaseRun, progress: Progress, stop: Stop) -> Progress:
        """Puts the average of the best epochs in place of the last one, if one is as good.

        Until this is done, the run stands before the validation of its last epoch, and a run that
        is stopped here does all of it again.
        """
        self.saver.save_bests(progress)

        def variables_at(step: int) -> Variables:
            if step == progress.step:
                return run.state.variables
            saved = self.checkpoints.changed(2 * step + 1, self.variables)
            return replicate(partition(saved, run.state.variables)[0], self.devices)

        measured: dict[Quality, dict[str, float]] = {}

        def measure(variables: Variables) -> Quality:
            means = self._validate(run, variables, stop)
            found = quality(monitored(run.phase.monitor, means), means["loss"])
            measured[found] = means
            return found

        epochs = [functools.partial(variables_at, step) for step, *_ in progress.to_average]
        average, best, used = greedy_soup(epochs, progress.best_quality, measure)
        if len(used) == 1:
            progress = dataclasses.replace(progress, to_average=())
        else:
            run.state, means = run.state._replace(variables=average), measured[best]
            numbers = progress.epochs_of(used, self.train_data.steps_per_epoch)
            hosts.from_first(lambda: self.directory.note_average(run.phase.name, numbers))
            score = monitored(run.phase.monitor, means)
            progress = progress.averaged(means["accuracy"], means["loss"], score)
        self.out.print(
            f"{run.phase.name}: averages {len(used)} of its {len(epochs)} best epochs, "
            f"{progress.best_text(run.phase)}"
        )
        return progress

    def _epoch(self, run: PhaseRun, stop: Stop) -> None:
        """Trains what is left of an epoch, validates, logs and saves, in this order.

        The log comes before the checkpoint: a continued run measures again what was logged after
        its last checkpoint.
        """
        phase, batches = run.phase, self.train_data.steps_per_epoch
        title = f"{phase.name} {self.progress.epoch + 1}/{phase.epochs}"
        run.waits = InputWait()
        with EpochProgress(self.out, title, batches, self.progress.batch) as shown:
            while self.progress.batch < batches:
                self._train_batches(run, shown, stop)
                run.chunk = None
                self._save(run, at_once=self.progress.batch < batches)
            waited = run.waits.fraction
            shown.validating()
            train = self.task.means(self.progress.sums, self.network.num_classes or 0)
            val = self._validate(run, run.state.variables, stop)
            check_finite("validation", val["loss"], self.progress.step, phase.name)
            score = monitored(phase.monitor, val)
            progress = self.progress.after_epoch(
                val["accuracy"], val["loss"], score, phase.average_best
            )
            train |= {"images_per_second": shown.images_per_second, "input_wait": waited}
            train |= device_use(
                jax.local_devices(),
                len(self.devices),
                (lambda: run.macs_per_image) if run.shapes else None,
                shown.images_per_second,
            )
            shown.done(train, val, best=progress.best_step == progress.step)

        def write() -> None:
            for name, metrics in (("train", train), ("val", val)):
                self.log.write(phase.name, progress.epoch, progress.step, name, metrics)

        hosts.together(write)
        if progress.finished(phase) and phase.average_best:
            progress = self._average_best(run, progress, stop)
        self.progress = progress
        at_once = stop.is_set() or progress.finished(phase)
        self._save(run, at_once=at_once)
        if hosts.is_first():
            self.page.after_epoch(at_once=at_once)
        hosts.together(stop.check)
        if self.after_epoch is not None:
            self.after_epoch(run.past_epochs + progress.epoch, val[self.task.monitors[0]])

    def _validate(self, run: PhaseRun, variables: Variables, stop: Stop) -> dict[str, float]:
        """The metrics of what the phase trains, and what it monitors, on the validation images."""
        return self.evaluator.measure(run.frozen | variables, run.val, stop, run.phase.monitor)

    def _train_batches(self, run: PhaseRun, shown: EpochProgress, stop: Stop) -> None:
        """Trains batches until the epoch ends or a checkpoint is due.

        An error is raised once all steps before it are counted, so that they can be saved.
        """
        chunks = run.train.chunks(run.past_epochs + self.progress.epoch, self.progress.batch)
        sharded = run.waits.timed(
            (shard(chunk, self.devices, axis=1) for chunk in stop.interruptible(chunks)),
            lambda: is_idle(run.state),
        )
        errors: list[BaseException] = []
        called = self.progress.step

        def run_steps() -> Iterator[Sums]:
            nonlocal called
            try:
                for chunk, due in hosts.in_step(sharded, self.saver.due):
                    count = chunk.labels.shape[1]
                    self.trace.before(called, count)
                    if run.chunk is None:
                        run.chunk = run.shapes = jax.tree.map(jax.typeof, chunk)
                    run.state, sums = run.step(
                        run.state, run.frozen, run.train.table, run.hyper, chunk
                    )
                    called += count
                    self.trace.after(called, sums)
                    jax.tree.map(lambda array: array.copy_to_host_async(), sums)
                    yield sums
                    if due():
                        return
            except (Exception, Interrupted) as error:
                errors.append(error)

        for sums in lagging(run_steps()):
            self._count(run, sums, shown)
        if errors:
            raise errors[0]

    def _count(self, run: PhaseRun, sums: Sums, shown: EpochProgress) -> None:
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
            check_finite("training", float(total.loss), self.progress.step, run.phase.name)
        images = int(self.progress.sums.images - before.sums.images)
        shown.batches(self.progress.batch - before.batch, self.progress.sums, images)

    def _save(self, run: PhaseRun, *, at_once: bool) -> None:
        self.saver.save(run.position(self.progress), at_once=at_once)
