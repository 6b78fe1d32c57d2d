"""Heads that train together: runs on the same cached features that differ in numbers alone.

They are one program under `vmap`, with one axis of runs. The order of images, dropout, schedules,
patience and best epochs of each run are those of a single run, and so is its result, up to the
rounding of matrix products.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float64
from rich.console import Console

from jaxtl.config import Phase
from jaxtl.console import counter
from jaxtl.data.loader import Batch, Loader
from jaxtl.metrics import Sums, monitored
from jaxtl.models import Network, Variables, split
from jaxtl.runs.progress import Progress
from jaxtl.sweeps.variations import Variation
from jaxtl.training.divergence import Diverged, check_finite
from jaxtl.training.feature_cache import Feed
from jaxtl.training.inference import make_score_step
from jaxtl.training.optimizer import hyperparameters, weights_of_classes
from jaxtl.training.parallel import replicate, shard
from jaxtl.training.phase import BegunPhase, begin_phase
from jaxtl.training.setup import result_of
from jaxtl.training.stopping import Stop
from jaxtl.training.trainable import Trainable

_OnHost = Float64[np.ndarray, "4 steps runs"]
AfterEpoch = Callable[[str, int, float], bool]
"""Takes the name of a run, its epochs so far, of all phases, and its validation accuracy; returns
whether it goes on."""

_Line = tuple[str, int, int, str, dict[str, float]]


@dataclasses.dataclass
class HeadRun:
    """One of the runs, without its variables.

    Attributes:
        variation: its name, values and config.
        progress: its position in training.
        metrics: metrics of each split after each epoch, as `MetricsLog.write` takes them.
        diverged: the error that ended it early; None if nothing did.
        pruned: whether `HeadTraining.after_epoch` ended it early.
        result: its result in `run.json` once it is complete.
    """

    variation: Variation
    progress: Progress = dataclasses.field(default_factory=Progress)
    metrics: list[_Line] = dataclasses.field(default_factory=list)
    diverged: Diverged | None = None
    pruned: bool = False
    result: dict[str, float] | None = None

    @property
    def ended_early(self) -> bool:
        """Whether the run will have no result."""
        return self.diverged is not None or self.pruned

    def active(self, phase: Phase) -> bool:
        """Whether the run is not at the end of the phase yet."""
        return not self.ended_early and not self.progress.finished(phase)

    def after_epoch(
        self,
        phase: Phase,
        train: Float64[np.ndarray, "4 train_steps"],
        val: Float64[np.ndarray, "4 val_steps"],
        classes: int,
        seconds: float,
    ) -> bool:
        """Records an epoch's metrics and updates the progress.

        Args:
            phase: the phase.
            train, val: the sums of each batch of the epoch and of its validation.
            classes: the number of classes.
            seconds: the time that the training of all runs took.

        Returns:
            Whether the epoch is the best of the phase so far.
        """
        before, steps = self.progress.step, train.shape[1]
        losses = train[0].cumsum()
        trained, validated = (_total(sums).means(classes) for sums in (train, val))
        try:
            for step in np.flatnonzero(~np.isfinite(losses)).tolist():
                check_finite("training", losses[step], before + step + 1, phase.name)
            check_finite("validation", validated["loss"], before + steps, phase.name)
        except Diverged as error:
            self.diverged = error
            return False
        self.progress = dataclasses.replace(self.progress, step=before + steps).after_epoch(
            validated["accuracy"], validated["loss"], monitored(phase.monitor, validated)
        )
        trained["images_per_second"] = float(train[3].sum()) / seconds
        epoch, step = self.progress.epoch, self.progress.step
        for split_name, metrics in (("train", trained), ("val", validated)):
            self.metrics.append((phase.name, epoch, step, split_name, metrics))
        return self.progress.best_step == step


@dataclasses.dataclass
class HeadTraining:
    """The training of N runs, from their start to their end.

    Attributes:
        runs: N runs that have not begun.
        network: the structure of their network.
        trainables: the trainable variables of each phase.
        trunk: the variables of the frozen stages, on all devices.
        heads: the variables of the last stage where each run stands, with a leading axis of runs.
        feeds: features to train on, for each phase; to validate an epoch; to validate a result.
        test: features to test a result; None where there is no test.
        loaders: the training images, by seed.
        out: the terminal.
        after_epoch: is called for each run that is not at its end; None lets all go on.
    """

    runs: list[HeadRun]
    network: Network
    trainables: Sequence[Trainable]
    trunk: Variables
    heads: Variables
    feeds: Sequence[Feed]
    test: Feed | None
    loaders: dict[int, Loader]
    out: Console
    after_epoch: AfterEpoch | None = None

    def __post_init__(self) -> None:
        self.devices = jax.local_devices()
        graph, shapes = split(self.network)
        chex.assert_tree_shape_prefix(self.heads, (len(self.runs),))
        one_head = jax.eval_shape(partial(jax.tree.map, lambda array: array[0]), self.heads)
        chex.assert_trees_all_equal_shapes_and_dtypes(self.trunk | one_head, shapes)
        self.heads = replicate(self.heads, self.devices)
        stage, cached = self.network.stage_names[-1], self.feeds[-1].dtype
        assert cached is not None  # heads train on features alone
        self._score_step = make_score_step(graph, stage, cached=cached, devices=self.devices)

    def train(self, stop: Stop) -> None:
        """Trains the heads, phase by phase, and validates and tests the results.

        Raises:
            Interrupted: `stop` is set; nothing is saved.
        """
        *training, val, exact = self.feeds
        for index, feed in enumerate(training):
            if index:
                for run in self.runs:
                    run.progress = run.progress.next_phase()
            self._phase(index, feed, val, stop)
        sums, classes = self._score(self.heads, exact), self.network.num_classes or 0
        tested = None if self.test is None else self._score(self.heads, self.test)
        for number, run in enumerate(self.runs):
            if not run.ended_early:
                result = _total(sums[..., number]).means(classes)
                test = {} if tested is None else _total(tested[..., number]).means(classes)
                run.result = result_of(run.progress, result, test)

    def _phase(self, index: int, train: Feed, val: Feed, stop: Stop) -> None:
        """Trains all runs through one phase; each ends it with the result of the phase."""
        phases = self.runs[0].variation.config.phases
        phase, past = phases[index], sum(phase.epochs for phase in phases[:index])
        if not any(run.active(phase) for run in self.runs):
            return
        title, begun = f"{phase.name}: {len(self.runs)} runs", time.perf_counter()
        agree = [(run.variation.config.seed, run.progress.step) for run in self.runs]
        # As many runs in a row train on each batch.
        each = math.gcd(*(len(list(runs)) for _, runs in itertools.groupby(agree)))
        step, state, frozen, hyper = self._begin(index, train, each)
        classes = self.network.num_classes or 0
        results = jax.tree.map(jnp.copy, state.variables)  # of the phase so far
        with counter(self.out, title, phase.epochs) as show:
            for epoch in range(phase.epochs):
                # Runs that stopped keep computing; their results are discarded.
                active = np.array([run.active(phase) for run in self.runs])
                if not active.any():
                    break
                epoch_begun, waiting = time.perf_counter(), []
                for chunk in self._chunks(train, past + epoch, each):
                    stop.check()
                    state, sums = step(state, frozen, train.table, hyper, chunk)
                    waiting.append(sums)
                trained = _on_host(waiting)
                seconds = time.perf_counter() - epoch_begun
                validated = self._score(self.heads | state.variables, val)
                better = np.zeros_like(active)
                for number in np.flatnonzero(active).tolist():
                    epoch_sums = trained[..., number], validated[..., number]
                    run = self.runs[number]
                    better[number] = run.after_epoch(phase, *epoch_sums, classes, seconds)
                    self._prune(run, past)
                chosen = better if phase.restore_best else active
                results = _select(chosen, state.variables, results)
                show(epoch + 1)
        self.heads = self.heads | results
        left = [run.progress.best_accuracy for run in self.runs if not run.ended_early]
        outcome = f"the best val_accuracy is {max(left):.4f}" if left else "all diverged or ended"
        self.out.print(f"{title} in {time.perf_counter() - begun:.1f} s, {outcome}")

    def _prune(self, run: HeadRun, past_epochs: int) -> None:
        """Ends a run whose validation after an epoch was too bad to go on."""
        if self.after_epoch is not None and not run.ended_early:
            accuracy, epochs = run.metrics[-1][-1]["accuracy"], past_epochs + run.progress.epoch
            run.pruned = not self.after_epoch(run.variation.name, epochs, accuracy)

    def _begin(self, index: int, train: Feed, runs_per_batch: int) -> BegunPhase:
        configs = [run.variation.config for run in self.runs]
        source, phase = train.loader.source, configs[0].phases[index]
        weights = weights_of_classes(phase, source.labels, source.classes)
        each = [
            hyperparameters(c.scaled_phases[index], c.seed, c.data.seed, weights) for c in configs
        ]
        return begin_phase(
            self.network,
            self.trainables[index],
            phase,
            self.trunk | self.heads,
            jax.tree.map(lambda *arrays: np.stack(arrays), *each),
            steps_per_epoch=train.loader.steps_per_epoch,
            devices=self.devices,
            step=[run.progress.step for run in self.runs],
            cached=train.dtype,
            runs_per_batch=runs_per_batch,
        )

    def _chunks(self, feed: Feed, epoch: int, runs_per_batch: int) -> Iterator[Batch]:
        """Yields the sharded chunks (D, S, N / R, B / D) of an epoch, in each seed's order."""
        feeds = [dataclasses.replace(feed, loader=loader) for loader in self.loaders.values()]
        seeds = list(self.loaders)
        rows = [seeds.index(r.variation.config.seed) for r in self.runs[::runs_per_batch]]
        for chunks in zip(*(feed.chunks(epoch) for feed in feeds), strict=True):
            arrays = (np.stack(field, axis=1)[:, rows] for field in zip(*chunks, strict=True))
            yield shard(Batch(*arrays), self.devices, axis=2)

    def _score(self, heads: Variables, feed: Feed) -> _OnHost:
        """The sums (4, S, N) of the batches of a feed."""
        chunks = (shard(chunk, self.devices, axis=1) for chunk in feed.chunks(0))
        variables = self.trunk | heads
        return _on_host([self._score_step(variables, feed.table, chunk) for chunk in chunks])


@partial(jax.jit, donate_argnums=2)
@jax.vmap
def _select(chosen: Bool[Array, ""], new: Variables, old: Variables) -> Variables:
    """Takes the new variables of the chosen runs, and the old ones of all others."""
    return jax.tree.map(partial(jnp.where, chosen), new, old)


def _on_host(chunks: Sequence[Sums]) -> _OnHost:
    """The sums (S, N) of each chunk as those (4, S, N) of all steps."""
    columns = zip(*jax.device_get(chunks), strict=True)
    return np.stack([np.concatenate(column, dtype=np.float64) for column in columns])


def _total(steps: Float64[np.ndarray, "4 steps"]) -> Sums:
    """Adds up the sums (4, S) of a run's steps, without rounding."""
    loss, *counts = steps.sum(axis=1).tolist()
    return Sums(loss, *map(int, counts))
