"""Compiles the steps of a run for accelerators that are not there (`jaxtl train --compile-for`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxtl.config import Config, Phase
from jaxtl.data.loader import Batch
from jaxtl.data.splits import Splits
from jaxtl.forecast.bounds import Forecast, largest_that_fits, speeds, try_to_build, usable_memory
from jaxtl.forecast.program import Program, compile_program
from jaxtl.forecast.table import caption, forecast_table
from jaxtl.forecast.target import Target, check_compiler, devices, target
from jaxtl.models import Network, output_spec, split
from jaxtl.tasks import MULTI_LABEL, SINGLE_LABEL, Task, task_of
from jaxtl.training.feature_cache import ROWS_AT_A_TIME, Plan
from jaxtl.training.inference import make_feature_step, make_predict_step
from jaxtl.training.optimizer import check_schedule, hyperparameters
from jaxtl.training.parallel import abstract, check_batch_size
from jaxtl.training.phase import first_state, phase_step, plan_inputs
from jaxtl.training.setup import plan_run
from jaxtl.training.trainable import Trainable, partition


@dataclasses.dataclass(frozen=True)
class PhaseForecast:
    """What the steps of a phase cost on a target, and what they can reach at most.

    Attributes:
        name: the name of the phase.
        inputs: how images reach the stages that train, and why.
        steps: training, validation and, where activations are cached, the frozen pass.
    """

    name: str
    inputs: str
    steps: tuple[Forecast, ...]


def compile_for(
    config: Config,
    described: str | Target,
    *,
    classes: int,
    train_images: int,
    val_images: int,
    task: Task = SINGLE_LABEL,
) -> tuple[PhaseForecast, ...]:
    """Compiles the steps of each phase of a config; nothing is trained.

    Import jax after `jaxtl.forecast.target.prepare_environment`, as the command does.

    Args:
        config: the config of a run.
        described: the accelerators, such as `tpu:v5e-8`.
        classes: the number of classes.
        train_images, val_images: the number of images of each split; without any of the
            second, validation is left out.
        task: what is to be said of an image.

    Raises:
        UserError: no such accelerators are known, their compiler is not installed, or the config
            cannot be trained on them.
    """
    described = target(described) if isinstance(described, str) else described
    check_compiler(described)
    return forecast(
        config,
        described,
        devices(described),
        classes=classes,
        images=(train_images, val_images),
        task=task,
    )


def training_programs(
    config: Config, described: Target, *, classes: int, train_images: int
) -> tuple[Program, ...]:
    """Compiles the training step of each phase alone; arguments and errors are `compile_for`'s."""
    check_compiler(described)
    on = devices(described)
    _check(config, train_images, on)
    network, trainables = plan_run(config, classes)
    phases = zip(config.phases, trainables, strict=True)
    return tuple(
        _Steps(config, network, trainable, phase, described, on, (train_images, 0)).training()
        for phase, trainable in phases
    )


def print_forecast(config: Config, data: Splits, described: Target, out: Console) -> None:
    """Prints a table for each phase of a config, and what it is made of.

    Raises:
        UserError: as `compile_for`.
    """
    phases = compile_for(
        config,
        described,
        classes=len(data.train.classes),
        train_images=len(data.train),
        val_images=len(data.val),
        task=task_of(data.train.labels),
    )
    for phase in phases:
        title = f"phase {phase.name} on {described.name}: {phase.inputs}"
        out.print(forecast_table(title, phase.steps, described))
    out.print(caption(described))


def forecast(
    config: Config,
    described: Target,
    on: Sequence[jax.Device],
    *,
    classes: int,
    images: tuple[int, int],
    task: Task = SINGLE_LABEL,
) -> tuple[PhaseForecast, ...]:
    """As `compile_for`, for given devices; `images` are those of training and validation."""
    _check(config, images[0], on)
    network, trainables = plan_run(config, classes)
    phases = zip(config.phases, trainables, strict=True)
    return tuple(
        _Steps(config, network, trainable, phase, described, on, images, task).forecast()
        for phase, trainable in phases
    )


def _check(config: Config, images: int, on: Sequence[jax.Device]) -> None:
    check_batch_size(config, on)
    for phase in config.phases:
        check_schedule(phase, -(-images // config.data.batch_size))


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The steps of one phase."""

    config: Config
    network: Network
    trainable: Trainable
    phase: Phase
    described: Target
    on: Sequence[jax.Device]
    images: tuple[int, int]
    task: Task = SINGLE_LABEL

    def forecast(self) -> PhaseForecast:
        """Compiles and counts all of them."""
        count, limit, row = len(self.on), usable_memory(self.described), self._row()
        each = self.config.data.batch_size // count
        train, val = self._plans()
        program, largest = largest_that_fits(partial(self._train, row, train), each, limit)
        steps = [self._bounded("training", each, program, largest and largest * count)]
        if self.images[1]:
            steps.append(self._tried("validation", each, partial(self._predict, row, val)))
        if train.cached or val.cached:
            steps.append(self._tried("frozen pass", ROWS_AT_A_TIME, self._features))
        return PhaseForecast(self.phase.name, train.why, tuple(steps))

    def training(self) -> Program:
        """Compiles and counts the training step."""
        row = self._row()
        return self._train(row, self._plans()[0], self.config.data.batch_size // len(self.on))

    def _row(self) -> jax.ShapeDtypeStruct:
        return output_spec(self.network, self.config.model.image_size, self.trainable.frontier)

    def _plans(self) -> tuple[Plan, Plan]:
        return plan_inputs(
            *(self.config, self.network, self.phase, self.trainable.frontier),
            images=self.images,
            several_hosts=len({device.process_index for device in self.on}) > 1,
        )

    def _tried(self, name: str, each: int, build: Callable[[int], Program]) -> Forecast:
        return self._bounded(name, each, try_to_build(build, each), None)

    def _bounded(
        self, name: str, each: int, program: Program | None, largest: int | None
    ) -> Forecast:
        images = each * len(self.on)
        fits = program is not None and program.memory_bytes <= usable_memory(self.described)
        bounds = speeds(program, images, self.described) if program and fits else {}
        return Forecast(name, images, program, bounds, largest)

    def _train(self, row: jax.ShapeDtypeStruct, planned: Plan, each: int) -> Program:
        """One step in a call: a step of many in one call costs the same."""
        phase, trainable = self.phase, self.trainable
        steps_per_epoch = -(-self.images[0] // (each * len(self.on)))
        step = phase_step(
            *(self.network, trainable, phase),
            steps_per_epoch=steps_per_epoch,
            devices=self.on,
            augmentation=self.config.augment,
            cached=row.dtype if planned.cached else None,
        )
        classes = self.network.num_classes or 0
        weights = None if phase.class_weights is None else np.ones(classes, np.float32)
        hyper = hyperparameters(phase, 0, 0, weights)
        begin = partial(first_state, trainable, phase, steps_per_epoch=steps_per_epoch, step=0)
        variables = split(self.network)[1]
        state = jax.eval_shape(begin, variables, hyper)
        frozen = partition(variables, trainable.variables)[1]
        inputs, table = self._inputs(row, planned, self.images[0], each)
        of_labels = (classes,) if self.task is MULTI_LABEL else ()
        chunk = jax.tree.map(_stacked, _batch(inputs, of_labels))
        fixed = abstract((state, frozen, table, hyper), self.on)
        return compile_program(step, *fixed, abstract(chunk, self.on, sharded=True))

    def _predict(self, row: jax.ShapeDtypeStruct, planned: Plan, each: int) -> Program:
        inputs, table = self._inputs(row, planned, self.images[1], each)
        step: Any = make_predict_step(
            split(self.network)[0],
            devices=self.on,
            start=self.trainable.frontier if planned.cached else None,
            cached=row.dtype if planned.cached else None,
            task=self.task,
        )
        fixed = abstract((split(self.network)[1], table), self.on)
        return compile_program(step, *fixed, abstract(inputs, self.on, sharded=True))

    def _features(self, each: int) -> Program:
        step: Any = make_feature_step(
            split(self.network)[0],
            self.trainable.frontier,
            augmentation=self.config.augment,
            devices=self.on,
        )
        fixed = abstract((split(self.network)[1], np.int32(0)), self.on)
        batch = _batch(self._images(each))
        return compile_program(step, *fixed, abstract(batch, self.on, sharded=True))

    def _images(self, each: int) -> jax.ShapeDtypeStruct:
        size = self.config.model.image_size
        return jax.ShapeDtypeStruct((len(self.on), each, size, size, 3), np.uint8)

    def _inputs(
        self, row: jax.ShapeDtypeStruct, planned: Plan, images: int, each: int
    ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct | None]:
        """The inputs of a batch, and the table that they are rows of, if there is one."""
        if not planned.cached:
            return self._images(each), None
        shape, dtype = row.shape[1:], self.config.cache.dtype
        if not planned.resident:
            return jax.ShapeDtypeStruct((len(self.on), each, *shape), dtype), None
        table = jax.ShapeDtypeStruct((images * planned.views, *shape), dtype)
        return jax.ShapeDtypeStruct((len(self.on), each), np.int32), table


def _batch(inputs: Any, of_labels: tuple[int, ...] = ()) -> Batch:
    """Shapes and types of a batch of inputs (D, B / D, ...), and the shape of an image's labels."""
    shape = inputs.shape[:2]
    number: Any = jax.ShapeDtypeStruct(shape, np.int32)
    labels: Any = jax.ShapeDtypeStruct((*shape, *of_labels), np.int32)
    valid: Any = jax.ShapeDtypeStruct(shape, bool)
    return Batch(inputs, labels=labels, valid=valid, indices=number, views=number)


def _stacked(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """With an axis of one step."""
    return jax.ShapeDtypeStruct((array.shape[0], 1, *array.shape[1:]), array.dtype)
