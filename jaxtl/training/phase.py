"""The beginning of a phase: its compiled step, and the arrays that the step takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxtl.config import Augment, Config, Phase
from jaxtl.data.loader import Batch, Loader
from jaxtl.errors import Interrupted
from jaxtl.forecast.macs import count_macs
from jaxtl.models import Network, Variables, output_spec, stage_of
from jaxtl.runs.progress import Progress
from jaxtl.training import hosts
from jaxtl.training.averaging import begin_average
from jaxtl.training.feature_cache import Feed, FrozenPass, Plan, has_parameters, open_feed, plan
from jaxtl.training.feature_store import FeatureStore
from jaxtl.training.optimizer import Hyperparameters, optimizer
from jaxtl.training.parallel import AXIS, on_cpu, on_tpu, replicate
from jaxtl.training.profiling import InputWait
from jaxtl.training.saving import Position
from jaxtl.training.step import TrainState, TrainStep, make_train_step
from jaxtl.training.stopping import Stop
from jaxtl.training.trainable import Trainable, partition, running_momentum, training_graph


@dataclasses.dataclass
class PhaseRun:
    """A phase that runs; learning rate, state and `chunk`, the shapes now trained on, change.

    `shapes` are those that it trained on last, and `waits` are those of its epoch.
    """

    phase: Phase
    past_epochs: int
    trainable: Trainable
    changed: Sequence[str]
    start: Progress
    train: Feed
    val: Feed
    step: TrainStep
    frozen: Variables
    hyper: Hyperparameters
    state: TrainState
    chunk: Batch | None = None
    shapes: Batch | None = None
    waits: InputWait = dataclasses.field(default_factory=InputWait)

    @functools.cached_property
    def macs_per_image(self) -> float:
        """The multiply-adds that a training step takes for an image; once it has been called."""
        assert self.shapes is not None
        arguments = self.state, self.frozen, self.train.table, self.hyper, self.shapes
        _, steps, images = self.shapes.valid.shape
        return count_macs(jax.make_jaxpr(self.step)(*arguments).jaxpr) / (steps * images)

    def position(self, progress: Progress) -> Position:
        """The run as it is now, which is where `progress` stands."""
        return Position(
            progress,
            self.phase.name,
            self.state,
            self.frozen,
            self.changed,
            returns_to_best=self.phase.restore_best,
        )


def plan_inputs(
    config: Config,
    network: Network,
    phase: Phase,
    stage: str,
    *,
    images: tuple[int, int],
    several_hosts: bool,
) -> tuple[Plan, Plan]:
    """Decides how training and validation images reach the stages of a phase that train.

    Args:
        config: the config of the run.
        network: its network.
        phase: one of its phases.
        stage: the frontier of the phase.
        images: the numbers of training and of validation images.
        several_hosts: as for `plan`.
    """
    if not has_parameters(network, stage):
        views = 0 if config.views == "auto" else config.views
        why = "every stage with parameters trains"
        return Plan(views, False, False, why), Plan(0, False, False, why)
    row = output_spec(network, config.model.image_size, stage)
    decide = functools.partial(plan, config, row, epochs=phase.epochs, several_hosts=several_hosts)
    train = decide(images[0], mixes=phase.mixes)
    return train, decide(images[1], views=1, beside=train.size)


def open_inputs(
    config: Config,
    network: Network,
    phase: Phase,
    stage: str,
    *,
    variables: Variables,
    loaders: tuple[Loader, Loader],
    store: FeatureStore,
    out: Console,
    stop: Stop,
) -> tuple[Feed, Feed]:
    """The inputs of training and validation: images, or cached activations.

    Args:
        config, network, phase, stage: as for `plan_inputs`.
        variables: all variables at the start of the phase, on all devices.
        loaders: the training images and the validation images.
        store: where activations are kept.
        out: the terminal.
        stop: asks to stop.

    Raises:
        Interrupted: `stop` asked for it.
        UserError: as `open_feed`.
    """
    train, val = plan_inputs(
        *(config, network, phase, stage),
        images=(len(loaders[0]), len(loaders[1])),
        several_hosts=hosts.several(),
    )
    out.print(f"{phase.name}: {train.why}")
    feeds = []
    for planned, loader, augmentation in zip(
        (train, val), loaders, (config.augment, Augment()), strict=True
    ):
        work = FrozenPass(
            config=config,
            network=network,
            variables=variables,
            loader=loader,
            stage=stage,
            views=planned.views,
            augmentation=augmentation,
            devices=jax.local_devices(),
            part=(jax.process_index(), jax.process_count()),
        )
        feed = open_feed(planned, work, store, out, stop.is_set)
        if feed is None:
            hosts.together(stop.check)
            raise Interrupted(stop.signal)
        feeds.append(feed)
    return feeds[0], feeds[1]


BegunPhase = tuple[TrainStep, TrainState, Variables, Hyperparameters]
"""The compiled steps, the state before the first one, the frozen variables, the hyperparameters."""


def begin_phase(
    network: Network,
    trainable: Trainable,
    phase: Phase,
    variables: Variables,
    hyper: Hyperparameters,
    *,
    steps_per_epoch: int,
    devices: Sequence[jax.Device],
    step: Any = 0,
    augmentation: Augment | None = None,
    cached: jax.typing.DTypeLike | None = None,
    runs_per_batch: int = 0,
) -> BegunPhase:
    """Compiles the steps of a phase, and puts what they take on the devices.

    Args:
        network, trainable, phase: as for `make_train_step`.
        variables: all variables. With `runs_per_batch`, those of the frontier have a leading axis
            of N runs, as have `hyper` and `step`.
        hyper: from `hyperparameters`.
        step: training steps since the run began.
        steps_per_epoch, devices, augmentation, cached, runs_per_batch: as for `make_train_step`.
    """
    compiled = phase_step(
        *(network, trainable, phase),
        steps_per_epoch=steps_per_epoch,
        devices=devices,
        augmentation=augmentation,
        cached=cached,
        runs_per_batch=runs_per_batch,
    )
    state = first_state(
        trainable,
        phase,
        variables,
        hyper,
        steps_per_epoch=steps_per_epoch,
        step=step,
        runs_per_batch=runs_per_batch,
    )
    frozen = partition(variables, trainable.variables)[1]
    return compiled, *replicate((state, frozen, hyper), devices)


def phase_step(
    network: Network,
    trainable: Trainable,
    phase: Phase,
    *,
    steps_per_epoch: int,
    devices: Sequence[jax.Device],
    augmentation: Augment | None = None,
    cached: jax.typing.DTypeLike | None = None,
    runs_per_batch: int = 0,
) -> TrainStep:
    """The steps of a phase, not compiled yet; the arguments are those of `begin_phase`."""
    momentum = phase.batch_norm_momentum
    if momentum is None:
        momentum = running_momentum(phase.epochs * steps_per_epoch)
    momentum **= 1 / phase.accumulate  # each piece of a batch moves the statistics
    return make_train_step(
        training_graph(
            network,
            trainable,
            momentum=momentum,
            axis_name=AXIS,
            fused=not on_cpu(devices),
            recomputed=on_tpu(devices),
        ),
        trainable,
        phase,
        steps_per_epoch=steps_per_epoch,
        augmentation=augmentation or Augment(),
        cached=cached,
        devices=devices,
        runs_per_batch=runs_per_batch,
    )


def first_state(
    trainable: Trainable,
    phase: Phase,
    variables: Variables,
    hyper: Hyperparameters,
    *,
    steps_per_epoch: int,
    step: Any,
    runs_per_batch: int = 0,
) -> TrainState:
    """The state before the first step of a phase; the arguments are those of `begin_phase`."""
    parameters = {path: variables[path] for path in trainable.labels}
    init = optimizer(phase, trainable, steps_per_epoch, hyper).init
    if runs_per_batch:
        axes = {path: 0 if stage_of(path) == trainable.frontier else None for path in parameters}
        init = jax.vmap(init, in_axes=(axes,))
    trained = partition(variables, trainable.variables)[0]
    # Copies: the steps donate the state's arrays, and the variables must outlive them.
    copies = jax.tree.map(jnp.copy, trained)
    state = jax.jit(init)(parameters)
    done = jnp.asarray(step, jnp.int32)
    if phase.ema is not None:
        state = begin_average(trained, state, done)
    return TrainState(done, copies, state)
