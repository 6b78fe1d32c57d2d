"""The training and prediction steps: data parallel over all local devices, and the only `pmap`."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxtl.config.config_file import Augment, Phase
from jaxtl.data.augmentation import augment
from jaxtl.data.loader import Batch
from jaxtl.errors import UserError
from jaxtl.metrics import Sums, cross_entropy, hits
from jaxtl.models import Context, Variables, merge, split
from jaxtl.training.optimizer import Hyperparameters, optimizer
from jaxtl.training.trainable import Trainable, partition

AXIS = "data"
_PIXELS_AT_A_TIME = 2 * 224 * 224  # on a CPU
_AHEAD = 2  # chunks on their way to the devices


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a training step changes; it holds nothing of what is frozen.

    Attributes:
        step: training steps since the run began.
        variables: the trained parameters and moving statistics, by path.
        optimizer: the optimizer's state.
    """

    step: Int[Array, ""]
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
    together: bool = False,
) -> TrainStep:
    """Compiles training steps, many in one call, data parallel over `devices`.

    Left of the frontier the network is a fixed function that is not differentiated. Gradients are
    taken of the trained parameters alone; they alone are summed over the devices.

    Args:
        graph: from `freeze.training_graph`.
        trainable: what trains.
        phase: its optimizer and schedule; the numbers in `Hyperparameters` are arguments instead.
        steps_per_epoch: of the schedule.
        augmentation: of images, as their view and the hyperparameters' `view_seed` say.
        cached: the type of the activations that come in at the frontier; None where the batches
            hold images.
        devices: what `shard` splits batches over.
        together: many runs at once, see `_over_runs`.

    Returns:
        A function of the state (donated), the frozen variables, a table of activations or None, the
        hyperparameters and a sharded chunk of S batches, in which the inputs are rows of the table,
        if there is one. It returns the next state and the sums (S,) of each batch. Dropout draws
        from the seed, the step and the position in the global batch, so that it does not depend on
        the number of devices.
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
        parameters, moving = partition(state.variables, trainable.multipliers)
        if cached is None:
            run = _frozen_stages(graph, fixed | state.variables, trainable.frontier, augmentation)
            features = _in_pieces(run, (inputs, _view_keys(hyper.view_seed, batch)), devices)
        else:
            features = inputs.astype(cached)
        context = Context(_dropout_keys(hyper.seed, state.step, len(labels)), valid)
        count = lax.psum(jnp.sum(valid), AXIS)

        def loss_fn(parameters: Variables) -> tuple[Array, tuple[Array, Variables]]:
            network = merge(graph, fixed | moving | parameters)
            logits = network(features, start=trainable.frontier, context=context)
            losses = cross_entropy(logits, labels, hyper.label_smoothing)
            moved = partition(split(network)[1], trainable.statistics)[0]
            return jnp.sum(losses, where=valid) / count, (logits, moved)

        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (logits, moved)), gradients = gradient_fn(parameters)
        gradients = lax.psum(gradients, AXIS)
        everything = {path: (fixed | parameters)[path] for path in trainable.labels}
        transform = optimizer(phase, trainable, steps_per_epoch, hyper)
        updated, optimizer_state = _update(transform, gradients, state.optimizer, everything)
        sums = lax.psum(_sums(logits, labels, valid), AXIS)
        return TrainState(state.step + 1, updated | moved, optimizer_state), sums

    return _mapped(_over_runs(train_step, trainable.frontier) if together else train_step, devices)


def _over_runs(
    train_step: Callable[..., tuple[TrainState, Sums]], stage: str
) -> Callable[..., tuple[TrainState, Sums]]:
    """The same step for K x M runs at once: K that see other batches, each with M settings.

    Batches have a leading axis K, and so have the seed and the state's step, which say what dropout
    drops. What else the state holds, the variables of `stage` and the rates have leading axes K and
    M; all other variables and the table are shared.
    """
    axis: Any = 0
    no_axis: Any = None
    rates = Hyperparameters(axis, axis, axis, seed=no_axis, view_seed=no_axis)
    state = TrainState(step=no_axis, variables=axis, optimizer=axis)

    def step(fixed: Variables, *rest: Any) -> tuple[TrainState, Sums]:
        own = _run_axes(fixed, stage)
        inner = (own, None, rates, state, None)
        outer = (own, None, rates._replace(seed=axis), 0, 0)
        return jax.vmap(jax.vmap(train_step, inner, (state, 0)), outer)(fixed, *rest)

    return step


def _run_axes(variables: Variables, stage: str) -> dict[str, int | None]:
    """The axis of runs of each variable: only those of `stage` have one."""
    return {path: 0 if path.partition("/")[0] == stage else None for path in variables}


def _mapped(train_step: Callable[..., tuple[TrainState, Sums]], devices: Any) -> TrainStep:
    """One step for each batch of a chunk, on all devices at once."""

    def train_steps(
        state: TrainState, fixed: Variables, table: Any, hyper: Any, chunk: Batch
    ) -> tuple[TrainState, Sums]:
        step = partial(train_step, fixed, table, hyper)
        if len(chunk.labels) == 1:  # XLA's CPU backend is more than twice as slow within a loop
            state, sums = step(state, jax.tree.map(lambda array: array[0], chunk))
            return state, jax.tree.map(lambda array: array[None], sums)
        return lax.scan(step, state, chunk)

    return jax.pmap(
        train_steps,
        axis_name=AXIS,
        in_axes=(None, None, None, None, 0),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )


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
        devices: what `shard` splits images over.
        start: the stage at which activations come in; None for images.
        cached: the type of these activations.

    Returns:
        A function of all variables, a table of activations or None, and sharded inputs (D, B / D,
        ...), which are rows of the table, if there is one. It returns the log probabilities
        (D, B / D, C).
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

    return jax.pmap(predict_step, axis_name=AXIS, in_axes=(None, None, 0), devices=devices)


def make_score_step(
    graph: nnx.GraphDef,
    stage: str,
    *,
    cached: jax.typing.DTypeLike,
    devices: Sequence[jax.Device],
) -> Callable[..., tuple[Sums, Int[Array, "..."]]]:
    """Compiles the validation of K x M runs at once on cached activations.

    Args:
        graph: from `models.split`; all BatchNorms use their running statistics.
        stage: at which the activations come in; its variables have leading axes K and M.
        cached: the type of the activations.
        devices: what `shard` splits batches over.

    Returns:
        A function of all variables, a table of activations, and a sharded chunk of S batches, in
        which the inputs are rows of the table. It returns the sums (S, K, M) of each batch and the
        likeliest classes (D, S, K, M, B / D).
    """

    def score_step(variables: Variables, table: Array, batch: Batch) -> tuple[Sums, Array]:
        inputs, labels, valid = map(jnp.asarray, batch[:3])
        logits = merge(graph, variables)(table[inputs].astype(cached), start=stage)
        return lax.psum(_sums(logits, labels, valid), AXIS), jnp.argmax(logits, axis=-1)

    def score_steps(variables: Variables, table: Array, chunk: Batch) -> tuple[Sums, Array]:
        own = _run_axes(variables, stage)
        step = jax.vmap(jax.vmap(score_step, (own, None, None)), (own, None, None))
        return lax.map(lambda batch: step(variables, table, batch), chunk)

    return jax.pmap(
        score_steps, axis_name=AXIS, in_axes=(None, None, 0), out_axes=(None, 0), devices=devices
    )


def make_activations_step(
    graph: nnx.GraphDef, stop: str, *, augmentation: Augment, devices: Sequence[jax.Device]
) -> Callable[[Variables, Int[Array, ""], Batch], Array]:
    """Compiles the frozen stages of a network, data parallel over `devices`.

    Args:
        graph: from `models.split`; all BatchNorms use their running statistics.
        stop: the stage before which they end.
        augmentation: of the images, as their view says.
        devices: what `shard` splits batches over.

    Returns:
        A function of all variables, the seed of the views and a sharded batch of images that
        returns what the last stage returned (D, B / D, ...).
    """

    def activations_step(variables: Variables, view_seed: Array, batch: Batch) -> Array:
        run = _frozen_stages(graph, variables, stop, augmentation)
        images = jnp.asarray(batch.inputs)
        return _in_pieces(run, (images, _view_keys(view_seed, batch)), devices)

    return jax.pmap(activations_step, axis_name=AXIS, in_axes=(None, None, 0), devices=devices)


def on_cpu(devices: Sequence[jax.Device]) -> bool:
    """Whether the devices are a CPU's, real or simulated."""
    return devices[0].platform == "cpu"


def _frozen_stages(
    graph: nnx.GraphDef, variables: Variables, stop: str, augmentation: Augment
) -> Callable[[Array, Array], Array]:
    """Views of images, and what the stages before `stop` make of them."""

    def run(images: Array, keys: Array) -> Array:
        return merge(graph, variables)(augment(images, keys, augmentation), stop=stop)

    return run


def _in_pieces(
    function: Callable[..., Array], arrays: tuple[Array, ...], devices: Sequence[jax.Device]
) -> Array:
    """Applies a function of single images; on a CPU, to so few at a time that the cache holds
    what lies between its layers (docs/decisions/0008-a-few-images-at-a-time.md)."""
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


def shard(tree: Any, devices: Sequence[jax.Device], *, axis: int = 0) -> Any:
    """Splits every array of a global batch, or of a chunk of batches, over the devices.

    Args:
        tree: arrays (B, ...), or (S, B, ...) with `axis` 1.
        devices: D devices.
        axis: that of the batch.

    Returns:
        Arrays (D, B / D, ...) or (D, S, B / D, ...), on their way to the devices.
    """

    def split_up(x: np.ndarray) -> np.ndarray:
        shape = (*x.shape[:axis], len(devices), -1, *x.shape[axis + 1 :])
        return np.moveaxis(x.reshape(shape), axis, 0)

    mesh = Mesh(np.array(devices), (AXIS,))
    parts = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.device_put(jax.tree.map(split_up, tree), parts)


def prefetch(chunks: Iterable[Batch], devices: Sequence[jax.Device]) -> Iterator[Batch]:
    """Shards chunks of batches, each on its way to the devices while the one before is used."""
    waiting: deque[Batch] = deque()
    for chunk in chunks:
        waiting.append(shard(chunk, devices, axis=1))
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Puts the same arrays on every device, once, where `pmap` with `in_axes=None` wants them."""
    everywhere = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    return jax.device_put(tree, everywhere)


def check_batch_size(batch_size: int, devices: Sequence[jax.Device]) -> None:
    """Refuses a global batch size that does not divide by the devices.

    Raises:
        UserError: it leaves a rest; the nearest sizes that fit are named.
    """
    if rest := batch_size % len(devices):
        lower, upper = batch_size - rest, batch_size - rest + len(devices)
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        raise UserError(
            f"a global batch of {batch_size} does not divide by {len(devices)} devices; "
            f"take --cfg.data.batch_size={nearest}"
        )


def _view_keys(seed: Int[Array | np.ndarray, ""], batch: Batch) -> Array:
    """The key of each image's view: a function of seed, image and view alone."""
    key = jax.random.split(jax.random.key(seed))[0]
    of_image = jax.vmap(partial(jax.random.fold_in, key))(batch.indices)
    return jax.vmap(jax.random.fold_in)(of_image, batch.views)


def _dropout_keys(seed: Int[Array | np.ndarray, ""], step: Array, batch: int) -> Array:
    """A key for each image of this device's share of the batch."""
    key = jax.random.fold_in(jax.random.split(jax.random.key(seed))[1], step)
    positions = lax.axis_index(AXIS) * batch + jnp.arange(batch)
    return jax.vmap(partial(jax.random.fold_in, key))(positions)


def _sums(logits: Array, labels: Array, valid: Array) -> Sums:
    """Of the real images; without label smoothing, to be held against the validation loss."""
    top1, top5 = hits(logits, labels)
    counts = (jnp.sum(hit & valid) for hit in (top1, top5, valid))
    return Sums(jnp.sum(cross_entropy(logits, labels), where=valid), *counts)


def _update(
    transform: optax.GradientTransformation,
    gradients: Variables,
    state: optax.OptState,
    parameters: Variables,
) -> tuple[Variables, optax.OptState]:
    """Applies the optimizer to the trained parameters, which are those with a gradient.

    `multi_transform` wants all parameters: frozen ones go in with zeros for gradients, which the
    compiler drops, and nothing of theirs is taken out (adding a zero would turn -0.0 into 0.0).
    """
    padded = {path: gradients.get(path, jnp.zeros_like(v)) for path, v in parameters.items()}
    updates, state = transform.update(padded, state, parameters)
    trained, moves = (partition(tree, gradients)[0] for tree in (parameters, updates))
    return optax.apply_updates(trained, moves), state
