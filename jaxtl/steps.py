"""The training and prediction steps: data parallel over all local devices, and the only `pmap`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from jaxtl.config import Augment, Phase
from jaxtl.data.augment import augment
from jaxtl.data.loader import Batch
from jaxtl.errors import UserError
from jaxtl.freeze import Freezing, partition
from jaxtl.metrics import Sums, cross_entropy, hits
from jaxtl.models import Context, Variables, merge, split

AXIS = "data"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a training step changes; it holds nothing of what is frozen.

    Attributes:
        step: training steps since the run began.
        changing: the trained parameters and moving statistics, by path.
        optimizer: the optimizer's state.
    """

    step: Int[Array, ""]
    changing: Variables
    optimizer: optax.OptState


TrainStep = Callable[[TrainState, Variables, Batch], tuple[TrainState, Sums]]


def make_train_step(
    graph: nnx.GraphDef,
    frozen: Freezing,
    transform: optax.GradientTransformation,
    *,
    phase: Phase,
    augmentation: Augment,
    seed: int,
    devices: Sequence[jax.Device],
) -> TrainStep:
    """Compiles one training step, data parallel over `devices`.

    Left of the frontier the network is a fixed function that is not differentiated. Gradients are
    taken of the trained parameters alone; they alone are summed over the devices.

    Args:
        graph: from `freeze.training_graph`.
        frozen: what trains.
        transform: from `optim.optimizer`.
        phase: for its label smoothing.
        augmentation: made anew for every picture and step.
        seed: of augmentation and dropout; each picture's key is folded from seed, step and position
            in the global batch, so that it does not depend on the number of devices.
        devices: what `shard` splits batches over.

    Returns:
        A function of the state (donated), the frozen variables and a sharded batch that returns the
        next state and the sums of the batch.
    """

    def train_step(state: TrainState, fixed: Variables, batch: Batch) -> tuple[TrainState, Sums]:
        images, labels, valid = map(jnp.asarray, batch)
        augment_keys, dropout_keys = _keys(seed, state.step, len(labels))
        context = Context(dropout_keys, valid)
        images = augment(images, augment_keys, augmentation)
        parameters, moving = partition(state.changing, frozen.multipliers)
        features = merge(graph, fixed | state.changing)(images, stop=frozen.frontier)
        count = lax.psum(jnp.sum(valid), AXIS)

        def loss_fn(parameters: Variables) -> tuple[Array, tuple[Array, Variables]]:
            network = merge(graph, fixed | moving | parameters)
            logits = network(features, start=frozen.frontier, context=context)
            losses = cross_entropy(logits, labels, phase.label_smoothing)
            moved = partition(split(network)[1], frozen.moving)[0]
            return jnp.sum(losses, where=valid) / count, (logits, moved)

        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (logits, moved)), gradients = gradient_fn(parameters)
        gradients = lax.psum(gradients, AXIS)
        everything = {path: (fixed | parameters)[path] for path in frozen.labels}
        updated, optimizer = _update(transform, gradients, state.optimizer, everything)
        sums = lax.psum(_sums(logits, labels, valid), AXIS)
        return TrainState(state.step + 1, updated | moved, optimizer), sums

    return jax.pmap(
        train_step,
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=(None, None),
        donate_argnums=0,
        devices=devices,
    )


def make_predict_step(
    graph: nnx.GraphDef, *, devices: Sequence[jax.Device]
) -> Callable[[Variables, UInt8[np.ndarray, "devices batch h w 3"]], Array]:
    """Compiles inference, data parallel over `devices`.

    Args:
        graph: from `models.split`; all BatchNorms use their running statistics.
        devices: what `shard` splits pictures over.

    Returns:
        A function of all variables and sharded pictures (D, B / D, H, W, 3) that returns the log
        probabilities (D, B / D, C).
    """

    def predict_step(
        variables: Variables, images: UInt8[Array, "batch h w 3"]
    ) -> Float[Array, "batch classes"]:
        return jax.nn.log_softmax(merge(graph, variables)(images))

    return jax.pmap(predict_step, axis_name=AXIS, in_axes=(None, 0), devices=devices)


def shard(batch: Any, devices: Sequence[jax.Device]) -> Any:
    """Splits the leading axis of every array of a global batch over the devices.

    Args:
        batch: arrays (B, ...).
        devices: D devices.

    Returns:
        Arrays (D, B / D, ...).
    """
    return jax.tree.map(lambda x: x.reshape(len(devices), -1, *x.shape[1:]), batch)


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


def _keys(seed: int, step: Array, batch: int) -> tuple[Array, Array]:
    """Two keys for each picture of this device's share of the batch."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    positions = lax.axis_index(AXIS) * batch + jnp.arange(batch)
    keys = jax.vmap(lambda position: jax.random.split(jax.random.fold_in(key, position)))(positions)
    return keys[:, 0], keys[:, 1]


def _sums(logits: Array, labels: Array, valid: Array) -> Sums:
    """Of the real pictures; without label smoothing, to be held against the validation loss."""
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
