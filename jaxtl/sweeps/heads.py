"""Runs that train together: heads on the same cached features that differ in numbers alone.

They are one program under `vmap`. The order of images, dropout, schedules, patience and best
epochs of each are those of a single run, and so is its result, up to the rounding of matrix
products.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float64, Int
from rich.console import Console

from jaxtl.config.config_file import Augment, Config, Phase
from jaxtl.console import counter
from jaxtl.data.loader import Batch, Loader
from jaxtl.metrics import Evaluation, Sums
from jaxtl.models import Network, Variables, split
from jaxtl.runs.checkpoints import Progress
from jaxtl.sweeps.lanes import Lanes
from jaxtl.sweeps.outcome import Measurement, Outcome, Saved
from jaxtl.training.feature_cache import Feed, FrozenPass, feature_plans, open_feed, row_spec
from jaxtl.training.feature_store import Store
from jaxtl.training.loop import Diverged, Interrupted, check_finite, finished, signals
from jaxtl.training.optimizer import Hyperparameters, hyperparameters, optimizer
from jaxtl.training.step import (
    AXIS,
    TrainState,
    TrainStep,
    make_score_step,
    make_train_step,
    replicate,
    shard,
)
from jaxtl.training.trainable import Trainable, partition, training_graph


@dataclasses.dataclass
class Together:
    """A group of runs.

    Attributes:
        configs: of the runs.
        network: their structure.
        trainables: what trains, for each phase.
        variables: all variables as the first run begins.
        heads: those of the last stage as each run begins, with a leading axis of runs.
        train_data: the training images, by seed.
        val_data: the validation images.
        out: the terminal.
        devices: what batches are split over.
        store: where the features are kept.
    """

    configs: Sequence[Config]
    network: Network
    trainables: Sequence[Trainable]
    variables: Variables
    heads: Variables
    train_data: dict[int, Loader]
    val_data: Loader
    out: Console
    devices: Sequence[jax.Device]
    store: Store

    def __post_init__(self) -> None:
        count = len(self.configs)
        self.stage = self.network.stage_names[-1]
        self.row = row_spec(self.network, self.stage, self.configs[0].model.image_size)
        self.variables = replicate(self.variables, self.devices)
        self.frozen = partition(self.variables, self.heads)[1]
        self.score_step = make_score_step(
            split(self.network)[0], self.stage, cached=self.row.dtype, devices=self.devices
        )
        self.progress = [Progress() for _ in range(count)]
        self.best = list(self.progress)
        self.measured: list[list[Measurement]] = [[] for _ in range(count)]
        self.saved: list[list[Saved]] = [[] for _ in range(count)]
        self.diverged: dict[int, Diverged] = {}

    def run(self) -> list[Outcome | Diverged] | None:
        """Trains the runs from their start to their end.

        Returns:
            What each came to; None where the features could not be kept.

        Raises:
            Interrupted: a signal asked for it; nothing is saved.
        """
        with signals() as asked:
            feeds = self._feeds(asked)
            if feeds is None:
                return None
            *training, val, exact = feeds
            for index, train in enumerate(training):
                if len(self.diverged) < len(self.configs):
                    self._phase(index, train, val, asked)
        evaluations = self._evaluate(exact)
        return [
            self.diverged.get(run) or Outcome(evaluation, self.measured[run], self.saved[run])
            for run, evaluation in enumerate(evaluations)
        ]

    def _feeds(self, asked: list[int]) -> list[Feed] | None:
        """What each phase trains on, what its epochs are validated on, and what the result is."""
        config = self.configs[0]
        images = next(iter(self.train_data.values()))
        sizes = len(images), len(self.val_data)
        plans = feature_plans(config, self.row, *sizes, runs=len(self.configs))
        for phase, (planned, _) in zip(config.phases, plans, strict=False):
            self.out.print(f"{phase.name}: {planned.why}")
        given = [(images, config.augment)] * len(config.phases) + [(self.val_data, Augment())] * 2
        feeds: list[Feed] = []
        made: dict[tuple[int, str, bool], Feed] = {}
        for (planned, which), (loader, augmentation) in zip(plans, given, strict=True):
            key = planned.views, which.cache.dtype, loader is self.val_data
            if key in made:  # the phases share a table
                feeds.append(made[key])
                continue
            work = FrozenPass(
                config=which,
                network=self.network,
                variables=self.variables,
                loader=loader,
                stage=self.stage,
                row=self.row,
                views=planned.views,
                augmentation=augmentation,
                devices=self.devices,
            )
            feed = open_feed(planned, work, self.store, self.out, lambda: bool(asked))
            if feed is None:
                raise Interrupted
            if feed.table is None:
                return None
            feeds.append(feed)
            made[key] = feed
        return feeds

    def _phase(self, index: int, train: Feed, val: Feed, asked: list[int]) -> None:
        """Trains all runs through one phase, from its start to its end."""
        if index:
            self.progress = [progress.next_phase() for progress in self.progress]
        run, state = self._begin(index, train, val)
        phase, begun = run.phase, time.perf_counter()
        newest = jax.tree.map(jnp.zeros_like, (state.variables, state.optimizer))
        best = jax.tree.map(jnp.copy, newest)
        title = f"{phase.name}: {len(self.configs)} runs"
        with counter(self.out, title, phase.epochs) as show:
            for epoch in range(phase.epochs):
                going = self._going(phase)
                if not going.any():
                    break
                state, better = self._epoch(run, state, epoch, going, asked)
                now = state.variables, state.optimizer
                newest = _where(run.lanes.spread(going), now, newest)
                best = _where(run.lanes.spread(better), now, best)
                show(epoch + 1)
        self._end(run, newest, best)
        accuracy = max(progress.best_accuracy for progress in self.progress)
        seconds = time.perf_counter() - begun
        self.out.print(f"{title} in {seconds:.1f} s, the best val_accuracy is {accuracy:.4f}")

    def _going(self, phase: Phase) -> Bool[np.ndarray, " runs"]:
        """Which runs are not at the end of the phase yet."""
        return np.array(
            [
                number not in self.diverged and not finished(phase, progress)
                for number, progress in enumerate(self.progress)
            ]
        )

    def _begin(self, index: int, train: Feed, val: Feed) -> tuple[_PhaseRun, TrainState]:
        """What stays the same while a phase runs, and the state that it starts from."""
        trainable, phase = self.trainables[index], self.configs[0].phases[index]
        seeds = [config.seed for config in self.configs]
        steps = [progress.step for progress in self.progress]
        keys = [
            None if number in self.diverged else key
            for number, key in enumerate(zip(seeds, steps, strict=True))
        ]
        lanes = Lanes.of(keys)
        first = lanes.runs[:, 0]
        each = [
            hyperparameters(config.phases[index], config.seed, config.data.seed)
            for config in self.configs
        ]
        by_run = Hyperparameters(*map(np.stack, zip(*each, strict=True)))
        hyper = lanes.spread(by_run)._replace(
            seed=by_run.seed[first], view_seed=by_run.view_seed[0]
        )
        changing, fixed = partition(lanes.spread(self.heads), trainable.variables)
        step = make_train_step(
            # No BatchNorm lies in a head.
            training_graph(self.network, trainable, momentum=1.0, axis_name=AXIS),
            trainable,
            phase,
            steps_per_epoch=train.loader.steps_per_epoch,
            augmentation=Augment(),
            cached=self.row.dtype,
            devices=self.devices,
            together=True,
        )
        hyper, fixed = replicate((hyper, fixed), self.devices)
        feeds = [
            dataclasses.replace(train, loader=self.train_data[seeds[number]]) for number in first
        ]
        run = _PhaseRun(
            index, phase, trainable, lanes, feeds, val, step, self.frozen | fixed, hyper
        )
        optimizer_state = self._optimizer_state(run, changing | fixed)
        state = TrainState(jnp.asarray(steps, jnp.int32)[first], changing, optimizer_state)
        return run, replicate(state, self.devices)

    def _optimizer_state(self, run: _PhaseRun, heads: Variables) -> optax.OptState:
        shared = {path: self.frozen[path] for path in run.trainable.labels if path in self.frozen}
        own = {path: heads[path] for path in run.trainable.labels if path in heads}
        steps, hyper = run.train[0].loader.steps_per_epoch, hyperparameters(run.phase, 0, 0)
        transform = optimizer(run.phase, run.trainable, steps, hyper)

        def init(own: Variables, shared: Variables) -> optax.OptState:
            return transform.init(shared | own)

        return jax.jit(jax.vmap(jax.vmap(init, (0, None)), (0, None)))(own, shared)

    def _epoch(
        self,
        run: _PhaseRun,
        state: TrainState,
        epoch: int,
        going: Bool[np.ndarray, " runs"],
        asked: list[int],
    ) -> tuple[TrainState, Bool[np.ndarray, " runs"]]:
        """One epoch of all runs: train, validate, and note what those that go on did.

        Returns:
            The state after it, and which runs are better than before.
        """
        begun = time.perf_counter()
        past = sum(phase.epochs for phase in self.configs[0].phases[: run.index])
        waiting: list[Sums] = []
        for chunks in zip(*(feed.chunks(past + epoch) for feed in run.train), strict=True):
            if asked:
                raise Interrupted
            stacked = Batch(*(np.stack(of_rows, axis=1) for of_rows in zip(*chunks, strict=True)))
            chunk = shard(stacked, self.devices, axis=2)
            state, sums = run.step(state, run.fixed, run.train[0].table, run.hyper, chunk)
            waiting.append(sums)
        train = _on_host(waiting, run.lanes)
        seconds = time.perf_counter() - begun
        val = _on_host(self._score(run.fixed | state.variables, run.val)[0], run.lanes)
        better = np.zeros_like(going)
        for number in np.flatnonzero(going).tolist():
            try:
                self._note(run, number, train[..., number], val[..., number], seconds)
            except Diverged as error:
                self.diverged[number] = error
                continue
            progress = self.progress[number]
            better[number] = progress.best_step == progress.step
            if better[number]:
                self.best[number] = progress
        return state, better

    def _score(
        self, variables: Variables, feed: Feed
    ) -> tuple[list[Sums], list[Int[Array, "devices steps rows columns batch"]]]:
        """The sums of each chunk of a feed, and the likeliest classes."""
        chunks = (shard(chunk, self.devices, axis=1) for chunk in feed.chunks(0))
        pairs = [self.score_step(variables, feed.table, chunk) for chunk in chunks]
        return [sums for sums, _ in pairs], [predicted for _, predicted in pairs]

    def _note(
        self, run: _PhaseRun, number: int, train: _OnHost, val: _OnHost, seconds: float
    ) -> None:
        """Takes note of what a run did in an epoch.

        Raises:
            Diverged: a loss is not finite.
        """
        before, steps = self.progress[number], train.shape[1]
        losses = train[0].cumsum()
        for step in np.flatnonzero(~np.isfinite(losses)).tolist():
            check_finite("training", losses[step], before.step + step + 1)
        trained, validated = (
            _sums(each).means(self.network.num_classes or 0) for each in (train, val)
        )
        check_finite("validation", validated["loss"], before.step + steps)
        progress = dataclasses.replace(before, step=before.step + steps).after_epoch(
            validated["accuracy"], validated["loss"]
        )
        self.progress[number] = progress
        trained["images_per_second"] = float(train[3].sum()) / seconds
        for name, metrics in (("train", trained), ("val", validated)):
            line = Measurement(run.phase.name, progress.epoch, progress.step, name, metrics)
            self.measured[number].append(line)

    def _end(self, run: _PhaseRun, newest: _Kept, best: _Kept) -> None:
        """Ends a phase: each run with its best parameters, if the phase says so."""
        earlier = np.array([p.best_step not in (None, p.step) for p in self.progress])
        if run.index == len(self.trainables) - 1:
            self._save(run, earlier, *jax.device_get((newest, best)))
        back = earlier & run.phase.restore_best
        self.heads = self.heads | run.lanes.gather(
            _where(run.lanes.spread(back), best[0], newest[0])
        )

    def _save(
        self, run: _PhaseRun, earlier: Bool[np.ndarray, " runs"], newest: _Kept, best: _Kept
    ) -> None:
        """Keeps what a single run would have in its checkpoints now."""
        everywhere = frozenset().union(*(trainable.variables for trainable in self.trainables))
        before = partition(jax.device_get(self.heads), everywhere)[0]
        of_runs = {"newest": run.lanes.gather(newest), "best": run.lanes.gather(best)}
        for number, progress in enumerate(self.progress):
            states = [("best", self.best[number])] if earlier[number] else []
            for name, reached in [*states, ("newest", progress)]:
                changing, optimizer_state = jax.tree.map(
                    lambda array, number=number: array[number, ...], of_runs[name]
                )
                unchanged = {path: value[number] for path, value in before.items()}
                self.saved[number].append(Saved(reached, unchanged | changing, optimizer_state))

    def _evaluate(self, feed: Feed) -> list[Evaluation]:
        """The validation of each run's result."""
        lanes = Lanes.of([0] * len(self.configs))
        heads = replicate(lanes.spread(self.heads), self.devices)
        sums, predicted = self._score(self.frozen | heads, feed)
        totals = _on_host(sums, lanes)
        # (devices, steps, rows, columns, batch) -> (rows, columns, steps, devices, batch)
        parts = [np.asarray(part).transpose(2, 3, 1, 0, 4) for part in predicted]
        shape = (*lanes.runs.shape, -1)
        classes = lanes.gather(np.concatenate([part.reshape(shape) for part in parts], axis=-1))
        labels = np.asarray(self.val_data.source.labels)
        return [
            Evaluation(_sums(totals[..., run]), labels, classes[run, : len(labels)])
            for run in range(len(self.configs))
        ]


_OnHost = Float64[np.ndarray, "sums steps *runs"]
_Kept = tuple[Variables, optax.OptState]


@dataclasses.dataclass(frozen=True)
class _PhaseRun:
    """What stays the same while a phase runs; `train` has a feed for each row of the lanes."""

    index: int
    phase: Phase
    trainable: Trainable
    lanes: Lanes
    train: Sequence[Feed]
    val: Feed
    step: TrainStep
    fixed: Variables
    hyper: Hyperparameters


@functools.partial(jax.jit, donate_argnums=2)
def _where(chosen: Bool[Array, "rows columns"], these: Any, others: Any) -> Any:
    """Takes the arrays (K, M, ...) of the chosen runs from one tree, the others from another."""

    def pick(this: Array, other: Array) -> Array:
        return jnp.where(chosen.reshape(*chosen.shape, *[1] * (this.ndim - 2)), this, other)

    return jax.tree.map(pick, these, others)


def _on_host(chunks: Sequence[Sums], lanes: Lanes) -> _OnHost:
    """The sums (S, K, M) of each chunk as those (4, S, N) of all steps, by run."""
    columns = zip(*jax.device_get(chunks), strict=True)
    return lanes.gather(np.stack([np.concatenate(c).astype(np.float64) for c in columns]), axis=2)


def _sums(of_run: _OnHost) -> Sums:
    """The sums (4, S) of a run's steps as one, which add up without rounding."""
    loss, *counts = of_run.sum(axis=1).tolist()
    return Sums(loss, *map(int, counts))
