"""The compiled steps: training, prediction, scoring, and the pass over the frozen stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
from jaxtl.metrics import Sums, cross_entropy, hits
from jaxtl.models import Context, Variables, merge, split, stage_of
from jaxtl.training.optimizer import Hyperparameters, optimizer
from jaxtl.training.parallel import AXIS, data_parallel, on_cpu
from jaxtl.training.trainable import Trainable, partition

_PIXELS_AT_A_TIME = 2 * 224 * 224  # on a CPU


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a training step changes. It holds nothing that is frozen.

    Attributes:
        step: training steps since the run began: an int32 scalar, or (N,) for N runs at once.
        variables: the trained parameters and batch statistics, by path.
        optimizer: the optimizer's state.
    """

    step: Any
    variables: Variables
    optimizer: optax.OptState


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

    Left of the frontier the network is a fixed function that is not differentiated. Gradients are
    taken of the trained parameters alone, and they alone are summed over the devices.

    Args:
        graph: from `trainable.training_graph`.
        trainable: what trains.
        phase: its optimizer and schedule. The numbers in `Hyperparameters` are arguments instead.
        steps_per_epoch: for the schedule.
        augmentation: of images.
        cached: type of the activations that come in at the frontier; None if the batches hold
            images.
        devices: as for `shard`.
        runs_per_batch: train many runs at once, as many as this on each batch, see `_over_runs`;
            0 for a single run.

    Returns:
        A function (state, frozen variables, table, hyperparameters, chunk) -> (state, sums). It
        donates the state. The chunk holds S sharded batches; with a table of activations, their
        inputs are rows of it, and the table is None otherwise. The sums (S,) are those of each
        batch. Dropout depends on the seed, the step and the position in the global batch, and so
        not on the number of devices.
    """

    def train_step(
        fixed: Variables,
        table: Array | None,
        hyper: Hyperparameters,
        state: TrainState,
        batch: Batch,
    ) -> tuple[TrainState, Sums]:
        inputs, labels, valid = map(jnp.asarray, batch[:3])
        inputs = inputs if table is None else table[inputs]
        parameters, statistics = partition(state.variables, trainable.multipliers)
        if cached is None:
            run = _frozen_stages(graph, fixed | state.variables, trainable.frontier, augmentation)
            features = _in_pieces(run, (inputs, _view_keys(hyper.view_seed, batch)), devices)
        else:
            features = inputs.astype(cached)
        context = Context(_dropout_keys(hyper.seed, state.step, len(labels)), valid)
        count = lax.psum(jnp.sum(valid), AXIS)

        def loss_fn(parameters: Variables) -> tuple[Array, tuple[Array, Variables]]:
            network = merge(graph, fixed | statistics | parameters)
            logits = network(features, start=trainable.frontier, context=context)
            losses = cross_entropy(logits, labels, hyper.label_smoothing)
            updated_statistics = partition(split(network)[1], trainable.statistics)[0]
            return jnp.sum(losses, where=valid) / count, (logits, updated_statistics)

        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (logits, statistics)), gradients = gradient_fn(parameters)
        gradients = lax.psum(gradients, AXIS)
        everything = {path: (fixed | parameters)[path] for path in trainable.labels}
        transform = optimizer(phase, trainable, steps_per_epoch, hyper)
        parameters, optimizer_state = _update(transform, gradients, state.optimizer, everything)
        sums = lax.psum(_sums(logits, labels, valid), AXIS)
        return TrainState(state.step + 1, parameters | statistics, optimizer_state), sums

    if runs_per_batch:
        return _in_chunks(_over_runs(train_step, trainable.frontier, runs_per_batch), devices)
    return _in_chunks(train_step, devices)


def _in_chunks(one_step: Callable[..., tuple[TrainState, Sums]], devices: Any) -> TrainStep:
    """A step for each batch of a chunk, on all devices."""

    def train_steps(
        state: TrainState, fixed: Variables, table: Any, hyper: Any, chunk: Batch
    ) -> tuple[TrainState, Sums]:
        step = partial(one_step, fixed, table, hyper)
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

    State, hyperparameters and the variables of `stage` have a leading axis of N runs, batches one
    of N / R, where R is `runs_per_batch`; all other variables and the table are shared. R runs in a
    row agree in their step and seeds: they drop out the same features of the same images, and
    their heads are one matrix product.
    """

    def fold(array: Array) -> Array:
        return array.reshape(-1, runs_per_batch, *array.shape[1:])

    def flatten(array: Array) -> Array:
        return array.reshape(-1, *array.shape[2:])

    def step(
        fixed: Variables, table: Array | None, hyper: Hyperparameters, state: TrainState, batch: Any
    ) -> tuple[TrainState, Sums]:
        axes = _run_axes(fixed, stage)
        fixed = {path: fold(v) if axes[path] == 0 else v for path, v in fixed.items()}
        seed, view_seed, done = (
            array[::runs_per_batch] for array in (hyper.seed, hyper.view_seed, state.step)
        )
        hyper = jax.tree.map(fold, hyper)._replace(seed=seed, view_seed=view_seed)
        state = dataclasses.replace(jax.tree.map(fold, state), step=done)
        of_hyper = Hyperparameters(0, 0, 0, None, None)
        of_state = dataclasses.replace(jax.tree.map(lambda _: 0, state), step=None)
        of_batch = jax.vmap(train_step, (axes, None, of_hyper, of_state, None))
        of_all = jax.vmap(of_batch, (axes, None, 0, 0, 0))
        return jax.tree.map(flatten, of_all(fixed, table, hyper, state, batch))

    return step


def _run_axes(variables: Variables, stage: str) -> dict[str, int | None]:
    """The axis of runs of each variable: only those of `stage` have one."""
    return {path: 0 if stage_of(path) == stage else None for path in variables}


def make_predict_step(
    graph: nnx.GraphDef,
    *,
    devices: Sequence[jax.Device],
    start: str | None = None,
    cached: jax.typing.DTypeLike | None = None,
) -> Callable[..., Array]:
    """Compiles inference, data parallel over `devices`.

    Args:
        graph: from `models.split`; all BatchNorms use their running statistics.
        devices: as for `shard`.
        start: the stage at which activations come in; None for images.
        cached: type of these activations.

    Returns:
        A function of all variables, a table of activations or None, and sharded inputs (D, B / D,
        ...), which are rows of the table if there is one. It returns log probabilities (D, B / D,
        C).
    """

    def predict_step(
        variables: Variables, table: Array | None, inputs: Array
    ) -> Float[Array, "batch classes"]:
        inputs = inputs if table is None else table[inputs]
        if start is None:
            logits = _in_pieces(merge(graph, variables), (inputs,), devices)
        else:
            logits = merge(graph, variables)(inputs.astype(cached), start=start)
        return jax.nn.log_softmax(logits)

    return data_parallel(predict_step, devices, in_axes=(None, None, 0))


def make_score_step(
    graph: nnx.GraphDef,
    stage: str,
    *,
    cached: jax.typing.DTypeLike,
    devices: Sequence[jax.Device],
) -> Callable[..., Sums]:
    """Compiles the validation of N runs at once on cached activations.

    Args:
        graph: from `models.split`; all BatchNorms use their running statistics.
        stage: at which the activations come in; its variables have a leading axis of runs.
        cached: type of the activations.
        devices: as for `shard`.

    Returns:
        A function of all variables, a table of activations, and a sharded chunk of S batches, in
        which the inputs are rows of the table. It returns the sums (S, N) of each batch.
    """

    def score_step(variables: Variables, table: Array, batch: Batch) -> Sums:
        inputs, labels, valid = map(jnp.asarray, batch[:3])
        logits = merge(graph, variables)(table[inputs].astype(cached), start=stage)
        return lax.psum(_sums(logits, labels, valid), AXIS)

    def score_steps(variables: Variables, table: Array, chunk: Batch) -> Sums:
        step = jax.vmap(score_step, (_run_axes(variables, stage), None, None))
        return lax.map(lambda batch: step(variables, table, batch), chunk)

    return data_parallel(score_steps, devices, in_axes=(None, None, 0), out_axes=None)


def make_feature_step(
    graph: nnx.GraphDef, stop: str, *, augmentation: Augment, devices: Sequence[jax.Device]
) -> Callable[[Variables, Int[Array, ""], Batch], Array]:
    """Compiles the frozen stages of a network, data parallel over `devices`.

    Args:
        graph: from `models.split`; all BatchNorms use their running statistics.
        stop: the stage to stop before.
        augmentation: of the images, as their views say.
        devices: as for `shard`.

    Returns:
        A function of all variables, the seed of the views and a sharded batch of images. It returns
        the output of the last stage that runs (D, B / D, ...).
    """

    def feature_step(variables: Variables, view_seed: Array, batch: Batch) -> Array:
        run = _frozen_stages(graph, variables, stop, augmentation)
        images = jnp.asarray(batch.inputs)
        return _in_pieces(run, (images, _view_keys(view_seed, batch)), devices)

    return data_parallel(feature_step, devices, in_axes=(None, None, 0))


def _frozen_stages(
    graph: nnx.GraphDef, variables: Variables, stop: str, augmentation: Augment
) -> Callable[[Array, Array], Array]:
    """A function of images and their views' keys: augments, and runs the stages before `stop`."""

    def run(images: Array, keys: Array) -> Array:
        return merge(graph, variables)(augment(images, keys, augmentation), stop=stop)

    return run


def _in_pieces(
    function: Callable[..., Array], arrays: tuple[Array, ...], devices: Sequence[jax.Device]
) -> Array:
    """Applies a function of single images; on a CPU to a few at a time.

    What lies between the layers then fits in the CPU's cache
    (docs/decisions/0008-a-few-images-at-a-time.md).
    """
    count, height, width = arrays[0].shape[:3]
    piece = count
    if on_cpu(devices):
        most = max(1, _PIXELS_AT_A_TIME // (height * width))
        piece = max(size for size in range(1, min(most, count) + 1) if count % size == 0)
    if piece == count:
        return function(*arrays)
    pieces = [array.reshape(-1, piece, *array.shape[1:]) for array in arrays]
    done = lax.map(lambda piece: function(*piece), tuple(pieces))
    return done.reshape(count, *done.shape[2:])


def _view_keys(seed: Int[Array | np.ndarray, ""], batch: Batch) -> Array:
    """The key of each image's view: a function of seed, image and view alone."""
    key = jax.random.split(jax.random.key(seed))[0]
    of_image = jax.vmap(partial(jax.random.fold_in, key))(batch.indices)
    return jax.vmap(jax.random.fold_in)(of_image, batch.views)


def _dropout_keys(seed: Int[Array | np.ndarray, ""], step: Array, batch: int) -> Array:
    """A key for each image of this device's part of the batch."""
    key = jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)
    positions = lax.axis_index(AXIS) * batch + jnp.arange(batch)
    return jax.vmap(partial(jax.random.fold_in, key))(positions)


def _sums(logits: Array, labels: Array, valid: Array) -> Sums:
    """Sums over the valid images, without label smoothing, comparable to the validation loss."""
    top1, top5 = hits(logits, labels)
    counts = (jnp.sum(hit & valid) for hit in (top1, top5, valid))
    return Sums(jnp.sum(cross_entropy(logits, labels), where=valid), *counts)


def _update(
    transform: optax.GradientTransformation,
    gradients: Variables,
    state: optax.OptState,
    parameters: Variables,
) -> tuple[Variables, optax.OptState]:
    """Applies the optimizer and returns the trained parameters, which are those with a gradient.

    `multi_transform` wants all parameters: the frozen ones get zeros for gradients, which the
    compiler drops, and are not returned (adding a zero would turn -0.0 into 0.0).
    """
    padded = {path: gradients.get(path, jnp.zeros_like(v)) for path, v in parameters.items()}
    updates, state = transform.update(padded, state, parameters)
    trained, moves = (partition(tree, gradients)[0] for tree in (parameters, updates))
    return optax.apply_updates(trained, moves), state
