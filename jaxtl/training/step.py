"""Compiles the training steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from jaxtl.config import Augment, Phase
from jaxtl.data.augmentation import augment
from jaxtl.data.loader import Batch
from jaxtl.data.mixing import mix, partners
from jaxtl.metrics import Sums
from jaxtl.models import Context, Variables, merge, split
from jaxtl.tasks import task_of
from jaxtl.training.accumulation import Gradients, pieces_on_cpu, sum_over_pieces
from jaxtl.training.averaging import add_to_average, moving
from jaxtl.training.inference import frozen_stages, run_axes, view_keys
from jaxtl.training.optimizer import Hyperparameters, optimizer
from jaxtl.training.parallel import AXIS, data_parallel, on_cpu
from jaxtl.training.trainable import Trainable, partition


class TrainState(NamedTuple):
    """What a training step changes. It holds nothing that is frozen.

    Attributes:
        step: the number of training steps since the run began, int32; (N,) for N runs at once.
        variables: the trained parameters and batch statistics, by path.
        optimizer: the state of the optimizer.
    """

    step: Int[Array, "*runs"]
    variables: Variables
    optimizer: optax.OptState


class Draws(NamedTuple):
    """What a step draws for each image.

    Attributes:
        keys: a random key, for dropout.
        mixed: where images are mixed, the labels of the other image, and the weight of the image's
            own, 0.5 to 1, of which the other has the rest.
    """

    keys: Array
    mixed: tuple[Array, Array] | None = None


TrainStep = Callable[..., tuple[TrainState, Sums]]


def make_train_step(
    graph: nnx.GraphDef,
    trainable: Trainable,
    phase: Phase,
    *,
    steps_per_epoch: int,
    augmentation: Augment,
    cached: jax.typing.DTypeLike | None,
    devices: Sequence[jax.Device],
    runs_per_batch: int = 0,
) -> TrainStep:
    """Compiles training steps, many in one call, data parallel over `devices`.

    Args:
        graph: the network's structure, from `trainable.training_graph`.
        trainable: what trains.
        phase: the phase; the numbers in `Hyperparameters` are arguments of the step instead.
        steps_per_epoch: the number of steps in an epoch of the schedule.
        augmentation: the augmentation of the images.
        cached: the type of cached activations; None if the batches hold images.
        devices: the devices, as for `shard`, of all processes that train together.
        runs_per_batch: the number of runs that train on each batch (`_over_runs`); 0 for one run.

    Returns:
        A function (state, frozen variables, table, hyperparameters, chunk) -> (state, sums) that
        donates the state. The chunk holds S sharded batches; the sums (S,) are their metrics.
        Inputs are images or activations or, with a table of activations, row numbers in it.
    """
    gradients_of = _batch_gradients(graph, trainable, phase, augmentation, cached, devices)

    def train_step(
        frozen: Variables,
        table: Array | None,
        hyper: Hyperparameters,
        state: TrainState,
        batch: Batch,
    ) -> tuple[TrainState, Sums]:
        before, optimizer_state = moving(state.variables, state.optimizer)
        parameters, statistics = partition(before, trainable.multipliers)
        batch, draws = _drawn(phase, augmentation, hyper, state.step, batch)

        def total_gradients(parameters: Variables) -> Gradients:
            updated, gradients, sums = gradients_of(
                frozen, parameters, statistics, table, hyper, batch, draws
            )
            return updated, lax.psum(gradients, AXIS), sums

        updated, gradients, sums = total_gradients(parameters)
        everything = partition(frozen | parameters, trainable.labels)[0]
        transform = optimizer(phase, trainable, steps_per_epoch, hyper)
        parameters, optimizer_state = _update(
            transform, gradients, optimizer_state, everything, lambda at: total_gradients(at)[1]
        )
        moved = parameters | updated, optimizer_state
        if phase.ema is not None:
            moved = add_to_average(phase.ema, state.variables, state.optimizer, *moved)
        return TrainState(state.step + 1, *moved), lax.psum(sums, AXIS)

    over_runs = partial(_over_runs, stage=trainable.frontier, runs_per_batch=runs_per_batch)
    return _in_chunks(over_runs(train_step) if runs_per_batch else train_step, devices)


def _batch_gradients(
    graph: nnx.GraphDef,
    trainable: Trainable,
    phase: Phase,
    augmentation: Augment,
    cached: jax.typing.DTypeLike | None,
    devices: Sequence[jax.Device],
) -> Callable[..., Gradients]:
    """The gradients of one device's part of a batch; the arguments are `make_train_step`'s.

    Its loss is the sum over the valid images of the part, divided by the number of valid images on
    all devices. So the gradients of all devices, and of all pieces, add up to that of the mean.
    """
    left = Augment() if phase.mixes else augmentation
    run_frozen = frozen_stages(graph, trainable.frontier, left, devices)

    def gradients_of(
        frozen: Variables,
        parameters: Variables,
        statistics: Variables,
        table: Array | None,
        hyper: Hyperparameters,
        batch: Batch,
        draws: Draws,
    ) -> Gradients:
        count = lax.psum(_total_weight(batch, draws, hyper.class_weights), AXIS)

        def features_of(batch: Batch) -> Array:
            if cached is None:
                return run_frozen(frozen | parameters | statistics, hyper.view_seed, batch)
            inputs = jnp.asarray(batch.inputs)
            return (inputs if table is None else table[inputs]).astype(cached)

        def of_piece(statistics: Variables, batch: Batch, draws: Draws) -> Gradients:
            features, labels, valid = features_of(batch), *map(jnp.asarray, batch[1:3])
            context = Context(draws.keys, valid)
            if (
                trainable.statistics and phase.accumulate > 1
            ):  # a piece may have nothing but padding
                empty = lax.psum(jnp.sum(valid), AXIS) == 0
                context = Context(draws.keys, valid | empty)  # which no NaN may come from

            def loss_fn(parameters: Variables) -> tuple[Array, tuple[Array, Variables]]:
                network = merge(graph, frozen | statistics | parameters)
                logits = network(features, start=trainable.frontier, context=context)
                losses = _losses(logits, labels, draws, hyper, phase.focal)
                updated_statistics = partition(split(network)[1], trainable.statistics)[0]
                return jnp.sum(losses, where=valid) / count, (logits, updated_statistics)

            gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
            (_, (logits, updated)), gradients = gradient_fn(parameters)
            return updated, gradients, task_of(labels).sums_of(logits, labels, valid)

        pieces = phase.accumulate
        if on_cpu(devices) and not trainable.statistics:
            pieces = max(pieces, pieces_on_cpu(jax.eval_shape(features_of, batch)))
        return sum_over_pieces(of_piece, pieces, statistics, batch, draws)

    return gradients_of


def _in_chunks(one_step: Callable[..., tuple[TrainState, Sums]], devices: Any) -> TrainStep:
    """Compiles a step for each batch of a chunk, on all devices."""

    def train_steps(
        state: TrainState, frozen: Variables, table: Any, hyper: Any, chunk: Batch
    ) -> tuple[TrainState, Sums]:
        step = partial(one_step, frozen, table, hyper)
        if len(chunk.labels) == 1:  # XLA's CPU backend is more than twice as slow within a loop
            state, sums = step(state, jax.tree.map(lambda array: array[0], chunk))
            return state, jax.tree.map(lambda array: array[None], sums)
        return lax.scan(step, state, chunk)

    return data_parallel(
        train_steps,
        devices,
        in_axes=(None, None, None, None, 0),
        out_axes=(None, None),
        donate_argnums=(0,),
    )


def _over_runs(
    train_step: Callable[..., tuple[TrainState, Sums]], stage: str, runs_per_batch: int
) -> Callable[..., tuple[TrainState, Sums]]:
    """The same step for N runs at once, which differ in the variables of `stage`.

    State, hyperparameters and the variables of `stage` have a leading axis of N runs. Batches have
    a leading axis of N / R, where R is `runs_per_batch`. All other variables and the table are
    shared. R consecutive runs have the same step and seeds: they drop the same features of the same
    images, and their heads are one matrix product.
    """

    def fold(array: Array) -> Array:
        return array.reshape(-1, runs_per_batch, *array.shape[1:])

    def flatten(array: Array) -> Array:
        return array.reshape(-1, *array.shape[2:])

    def step(
        frozen: Variables,
        table: Array | None,
        hyper: Hyperparameters,
        state: TrainState,
        batch: Any,
    ) -> tuple[TrainState, Sums]:
        axes = run_axes(frozen, stage)
        frozen = {path: fold(v) if axes[path] == 0 else v for path, v in frozen.items()}
        seed, view_seed, done = (
            array[::runs_per_batch] for array in (hyper.seed, hyper.view_seed, state.step)
        )
        hyper = jax.tree.map(fold, hyper)._replace(seed=seed, view_seed=view_seed)
        state = jax.tree.map(fold, state)._replace(step=done)
        hyper_axes = jax.tree.map(lambda _: 0, hyper)._replace(seed=None, view_seed=None)
        state_axes = jax.tree.map(lambda _: 0, state)._replace(step=None)
        on_one_batch = jax.vmap(train_step, (axes, None, hyper_axes, state_axes, None))
        on_all_batches = jax.vmap(on_one_batch, (axes, None, 0, 0, 0))
        return jax.tree.map(flatten, on_all_batches(frozen, table, hyper, state, batch))

    return step


def _drawn(
    phase: Phase,
    augmentation: Augment,
    hyper: Hyperparameters,
    step: Array,
    batch: Batch,
) -> tuple[Batch, Draws]:
    """What a step draws for the images of a device; they are augmented if it mixes them."""
    keys = _dropout_keys(hyper.seed, step, len(batch.labels))
    if not phase.mixes:
        return batch, Draws(keys)
    inputs, labels, valid = map(jnp.asarray, batch[:3])
    images: Any = augment(inputs, view_keys(hyper.view_seed, batch), augmentation)
    own = jax.vmap(partial(jax.random.fold_in, data=1))(keys)
    images, weights = mix(images, own, valid, mixup=phase.mixup, cutmix=phase.cutmix)
    return batch._replace(inputs=images), Draws(keys, (partners(labels), weights))


def _total_weight(batch: Batch, draws: Draws, class_weights: Any) -> Array:
    """What the losses of a device's images are divided by, summed over all devices."""
    if class_weights is None:
        return jnp.sum(batch.valid)
    labels = jnp.asarray(batch.labels)
    targets = _targets(labels, draws, len(class_weights))
    return jnp.sum(task_of(labels).weight(targets, class_weights), where=batch.valid)


def _targets(labels: Array, draws: Draws, classes: int) -> Float[Array, "batch classes"]:
    """The weight of each class in the label of each image: its own, or those of a mixture."""
    targets = task_of(labels).targets(labels, classes)
    if draws.mixed is None:
        return targets
    others, weights = draws.mixed
    weights = weights[:, None]
    return weights * targets + (1 - weights) * task_of(labels).targets(others, classes)


def _losses(
    logits: Array, labels: Array, draws: Draws, hyper: Hyperparameters, focal: float
) -> Float[Array, "batch"]:
    """The loss of each image, times its weight."""
    return task_of(labels).losses(
        logits,
        _targets(labels, draws, logits.shape[-1]),
        smoothing=hyper.label_smoothing,
        class_weights=hyper.class_weights,
        focal=focal,
    )


def _dropout_keys(seed: Int[Array | np.ndarray, ""], step: Array, batch: int) -> Array:
    """The key of each image on this device, from seed, step and position in the global batch."""
    key = jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)
    positions = lax.axis_index(AXIS) * batch + jnp.arange(batch)
    return jax.vmap(partial(jax.random.fold_in, key))(positions)


def _update(
    transform: optax.GradientTransformationExtraArgs,
    gradients: Variables,
    state: optax.OptState,
    parameters: Variables,
    gradients_at: Callable[[Variables], Variables],
) -> tuple[Variables, optax.OptState]:
    """Applies the optimizer and returns the trained parameters, which are those with a gradient.

    `multi_transform` takes all parameters. The gradients of frozen parameters are zeros, which the
    compiler removes. Frozen parameters are not returned: adding a zero turns -0.0 into 0.0.
    `gradients_at` returns the gradients at other trained parameters, for SAM.
    """

    def padded(gradients: Variables) -> Variables:
        return jax.tree.map(jnp.zeros_like, parameters) | gradients

    def grad_fn(moved: Variables, number: int) -> Variables:
        return padded(gradients_at(partition(moved, gradients)[0]))

    updates, state = transform.update(padded(gradients), state, parameters, grad_fn=grad_fn)
    trained, moves = (partition(tree, gradients)[0] for tree in (parameters, updates))
    return optax.apply_updates(trained, moves), state
