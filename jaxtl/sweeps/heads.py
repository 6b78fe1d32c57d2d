"""Runs that train together: heads on the same cached features that differ in numbers alone.

They are one program under `vmap`, with one axis of runs. The order of images, dropout, schedules,
patience and best epochs of each run are those of a single run, and so is its result, up to the
rounding of matrix products.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float64, Int
from rich.console import Console

from jaxtl.config import Augment, Config, Phase
from jaxtl.console import counter
from jaxtl.data.loader import Batch, Loader
from jaxtl.metrics import Evaluation, Sums
from jaxtl.models import Network, Variables, output_spec, split
from jaxtl.runs.checkpoints import Progress
from jaxtl.sweeps.outcome import Measurement, Outcome, Saved
from jaxtl.training.feature_cache import Feed, FrozenPass, Plan, open_feed, plan
from jaxtl.training.feature_store import FeatureStore
from jaxtl.training.loop import Diverged, Interrupted, check_finite, stop_signals
from jaxtl.training.optimizer import Hyperparameters, hyperparameters, optimizer
from jaxtl.training.parallel import AXIS, replicate, shard
from jaxtl.training.step import TrainState, TrainStep, make_score_step, make_train_step
from jaxtl.training.trainable import Trainable, partition, training_graph


def feature_plans(
    config: Config, row: jax.ShapeDtypeStruct, train: int, val: int, *, runs: int
) -> list[tuple[Plan, Config]]:
    """The plans of runs that train together on one set of features.

    Args:
        config: of one of the runs.
        row: what the stages before the head return for one image.
        train, val: numbers of images.
        runs: how many runs there are.

    Returns:
        A plan for each phase, one for validation after an epoch, and one for that of the result,
        with the config that says how the features are kept: a single run validates its result by
        the whole network, without rounding to `cache.dtype`.
    """
    phases = [plan(config, row, train, epochs=p.epochs, runs=runs) for p in config.phases]
    trained = sum({planned.views: planned.size for planned in phases}.values())
    val_plan = plan(config, row, val, epochs=runs, views=1, beside=trained)
    unrounded = config.cache.model_copy(update={"dtype": "float32"})
    exact = config.model_copy(update={"cache": unrounded})
    # The same array where nothing is rounded.
    beside = trained + (val_plan.size if exact != config else 0)
    exact_plan = plan(exact, row, val, epochs=runs, views=1, beside=beside)
    return [*((planned, config) for planned in phases), (val_plan, config), (exact_plan, exact)]


@dataclasses.dataclass
class HeadTraining:
    """A group of N runs.

    Attributes:
        configs: of the runs.
        network: their structure.
        trainables: what trains, for each phase.
        variables: all variables as the first run begins.
        heads: those of the last stage as each run begins, with a leading axis of runs.
        train_data: the training images, by seed.
        val_data: the validation images.
        out: the terminal.
        devices: as for `shard`.
        store: keeps the features.
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
    store: FeatureStore

    def __post_init__(self) -> None:
        count = len(self.configs)
        self.stage = self.network.stage_names[-1]
        self.row = output_spec(self.network, self.configs[0].model.image_size, self.stage)
        self.variables = replicate(self.variables, self.devices)
        self.trunk = partition(self.variables, self.heads)[1]
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
            The outcome of each run; None where the features could not be kept.

        Raises:
            Interrupted: a signal asked for it; nothing is saved.
        """
        with stop_signals() as stop:
            feeds = self._feeds(stop)
            if feeds is None:
                return None
            *training, val, exact = feeds
            for index, train in enumerate(training):
                if len(self.diverged) < len(self.configs):
                    self._phase(index, train, val, stop)
        evaluations = self._evaluate(exact)
        return [
            self.diverged.get(run) or Outcome(evaluation, self.measured[run], self.saved[run])
            for run, evaluation in enumerate(evaluations)
        ]

    def _feeds(self, stop: threading.Event) -> list[Feed] | None:
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
            if key not in made:  # the phases share a table
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
                feed = open_feed(planned, work, self.store, self.out, stop.is_set)
                if feed is None:
                    raise Interrupted
                if feed.table is None:
                    return None
                made[key] = feed
            feeds.append(made[key])
        return feeds

    def _phase(self, index: int, train: Feed, val: Feed, stop: threading.Event) -> None:
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
                state, better = self._epoch(run, state, epoch, going, stop)
                now = state.variables, state.optimizer
                newest = _where(going, now, newest)
                best = _where(better, now, best)
                show(epoch + 1)
        self._end(run, newest, best)
        accuracy = max(progress.best_accuracy for progress in self.progress)
        seconds = time.perf_counter() - begun
        self.out.print(f"{title} in {seconds:.1f} s, the best val_accuracy is {accuracy:.4f}")

    def _going(self, phase: Phase) -> Bool[np.ndarray, " runs"]:
        """Which runs are not at the end of the phase yet; the others compute on, unused."""
        return np.array(
            [
                number not in self.diverged and not progress.finished(phase)
                for number, progress in enumerate(self.progress)
            ]
        )

    def _begin(self, index: int, train: Feed, val: Feed) -> tuple[_PhaseRun, TrainState]:
        """What stays the same while a phase runs, and the state that it starts from."""
        trainable, phase = self.trainables[index], self.configs[0].phases[index]
        each = [
            hyperparameters(config.phases[index], config.seed, config.data.seed)
            for config in self.configs
        ]
        hyper = Hyperparameters(*map(np.stack, zip(*each, strict=True)))
        trained, fixed = partition(self.heads, trainable.variables)
        step = make_train_step(
            # No BatchNorm lies in a head.
            training_graph(self.network, trainable, momentum=1.0, axis_name=AXIS),
            trainable,
            phase,
            steps_per_epoch=train.loader.steps_per_epoch,
            augmentation=Augment(),
            cached=self.row.dtype,
            devices=self.devices,
            over_runs=True,
        )
        hyper, fixed = replicate((hyper, fixed), self.devices)
        feeds = {
            seed: dataclasses.replace(train, loader=loader)
            for seed, loader in self.train_data.items()
        }
        run = _PhaseRun(index, phase, trainable, feeds, val, step, self.trunk | fixed, hyper)
        steps = jnp.asarray([progress.step for progress in self.progress], jnp.int32)
        state = TrainState(
            steps, jax.tree.map(jnp.copy, trained), self._optimizer_state(run, self.heads)
        )
        return run, replicate(state, self.devices)

    def _optimizer_state(self, run: _PhaseRun, heads: Variables) -> optax.OptState:
        shared = {path: self.trunk[path] for path in run.trainable.labels if path in self.trunk}
        own = {path: heads[path] for path in run.trainable.labels if path in heads}
        steps = next(iter(run.train.values())).loader.steps_per_epoch
        hyper = hyperparameters(run.phase, 0, 0)
        transform = optimizer(run.phase, run.trainable, steps, hyper)
        return jax.jit(jax.vmap(lambda own: transform.init(shared | own)))(own)

    def _epoch(
        self,
        run: _PhaseRun,
        state: TrainState,
        epoch: int,
        going: Bool[np.ndarray, " runs"],
        stop: threading.Event,
    ) -> tuple[TrainState, Bool[np.ndarray, " runs"]]:
        """One epoch of all runs: train, validate, and log those that go on.

        Returns:
            The state after it, and which runs are better than before.
        """
        begun = time.perf_counter()
        past = sum(phase.epochs for phase in self.configs[0].phases[: run.index])
        seeds = list(run.train)
        row = [seeds.index(config.seed) for config in self.configs]
        table = run.train[seeds[0]].table
        waiting: list[Sums] = []
        for chunks in zip(*(f.chunks(past + epoch) for f in run.train.values()), strict=True):
            if stop.is_set():
                raise Interrupted
            stacked = Batch(
                *(np.stack(of_seeds, axis=1)[:, row] for of_seeds in zip(*chunks, strict=True))
            )
            chunk = shard(stacked, self.devices, axis=2)
            state, sums = run.step(state, run.fixed, table, run.hyper, chunk)
            waiting.append(sums)
        train = _on_host(waiting)
        seconds = time.perf_counter() - begun
        val = _on_host(self._score(run.fixed | state.variables, run.val)[0])
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
    ) -> tuple[list[Sums], list[Int[Array, "devices steps runs batch"]]]:
        """The sums of each chunk of a feed, and the predicted classes."""
        chunks = (shard(chunk, self.devices, axis=1) for chunk in feed.chunks(0))
        pairs = [self.score_step(variables, feed.table, chunk) for chunk in chunks]
        return [sums for sums, _ in pairs], [predicted for _, predicted in pairs]

    def _note(
        self, run: _PhaseRun, number: int, train: _OnHost, val: _OnHost, seconds: float
    ) -> None:
        """Logs an epoch of a run.

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
        """Ends a phase: each run with its best variables, if the phase says so."""
        earlier = np.array([p.best_step not in (None, p.step) for p in self.progress])
        if run.index == len(self.trainables) - 1:
            self._save(earlier, *jax.device_get((newest, best)))
        back = np.array([p.result_step(run.phase) != p.step for p in self.progress])
        self.heads = self.heads | _where(back, best[0], newest[0])

    def _save(self, earlier: Bool[np.ndarray, " runs"], newest: _Kept, best: _Kept) -> None:
        """Keeps what a single run would have in its checkpoints now."""
        everywhere = frozenset().union(*(trainable.variables for trainable in self.trainables))
        before = partition(jax.device_get(self.heads), everywhere)[0]
        of_runs = {"newest": newest, "best": best}
        for number, progress in enumerate(self.progress):
            states = [("best", self.best[number])] if earlier[number] else []
            for name, reached in [*states, ("newest", progress)]:
                variables, optimizer_state = jax.tree.map(
                    lambda array, number=number: array[number, ...], of_runs[name]
                )
                unchanged = {path: value[number] for path, value in before.items()}
                self.saved[number].append(Saved(reached, unchanged | variables, optimizer_state))

    def _evaluate(self, feed: Feed) -> list[Evaluation]:
        """The validation of each run's result."""
        heads = replicate(self.heads, self.devices)
        sums, predicted = self._score(self.trunk | heads, feed)
        totals = _on_host(sums)
        # (devices, steps, runs, batch) -> (runs, steps, devices, batch)
        parts = [np.asarray(part).transpose(2, 1, 0, 3) for part in predicted]
        classes = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=-1)
        labels = np.asarray(self.val_data.source.labels)
        return [
            Evaluation(_sums(totals[..., run]), labels, classes[run, : len(labels)])
            for run in range(len(self.configs))
        ]


_OnHost = Float64[np.ndarray, "sums steps *runs"]
_Kept = tuple[Variables, optax.OptState]


@dataclasses.dataclass(frozen=True)
class _PhaseRun:
    """What stays the same while a phase runs; `train` has a feed for each seed."""

    index: int
    phase: Phase
    trainable: Trainable
    train: dict[int, Feed]
    val: Feed
    step: TrainStep
    fixed: Variables
    hyper: Hyperparameters


@functools.partial(jax.jit, donate_argnums=2)
def _where(chosen: Bool[Array, " runs"], these: Any, others: Any) -> Any:
    """Takes the arrays (N, ...) of the chosen runs from one tree, the others from another."""

    def pick(this: Array, other: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *[1] * (this.ndim - 1)), this, other)

    return jax.tree.map(pick, these, others)


def _on_host(chunks: Sequence[Sums]) -> _OnHost:
    """The sums (S, N) of each chunk as those (4, S, N) of all steps."""
    columns = zip(*jax.device_get(chunks), strict=True)
    return np.stack([np.concatenate(column).astype(np.float64) for column in columns])


def _sums(of_run: _OnHost) -> Sums:
    """The sums (4, S) of a run's steps as one, which add up without rounding."""
    loss, *counts = of_run.sum(axis=1).tolist()
    return Sums(loss, *map(int, counts))
