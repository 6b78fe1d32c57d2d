"""Compiles inference: prediction, scoring, and the pass over the frozen stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from jaxtl.config import Augment
from jaxtl.data.augmentation import augment
from jaxtl.data.loader import Batch
from jaxtl.metrics import Sums
from jaxtl.models import Variables, merge, stage_of
from jaxtl.tasks import SINGLE_LABEL, Task, task_of
from jaxtl.training.parallel import AXIS, data_parallel, on_cpu

_PIXELS_AT_A_TIME = 2 * 224 * 224  # on a CPU

Flip = tuple[bool, bool]
"""Whether the rows and whether the columns of an image are mirrored."""

NO_FLIP: Flip = (False, False)


def run_axes(variables: Variables, stage: str) -> dict[str, int | None]:
    """The axis of runs of each variable: only those of `stage` have one."""
    return {path: 0 if stage_of(path) == stage else None for path in variables}


def make_predict_step(
    graph: nnx.GraphDef,
    *,
    devices: Sequence[jax.Device],
    start: str | None = None,
    cached: jax.typing.DTypeLike | None = None,
    flips: Sequence[Flip] = (NO_FLIP,),
    task: Task = SINGLE_LABEL,
) -> Callable[..., Array]:
    """Compiles inference, data parallel over `devices`.

    Args:
        graph: the structure from `models.split`; all BatchNorms use their running statistics.
        devices: the devices, as for `shard`.
        start: the stage at which activations come in; None for images.
        cached: the type of these activations.
        flips: how images are mirrored; of several the probabilities are averaged.
        task: what the probabilities are of.

    Returns:
        A function of all variables, a table of activations or None, and sharded inputs (D, B / D,
        ...), which are row numbers if there is a table. It returns log probabilities (D, B / D, C).
    """

    def predict_step(
        variables: Variables, table: Array | None, inputs: Array
    ) -> Float[Array, "batch classes"]:
        inputs = inputs if table is None else table[inputs]
        if start is not None:
            logits = merge(graph, variables)(inputs.astype(cached), start=start)
            return task.log_probabilities(logits)

        def classify(images: Array) -> Array:
            network = merge(graph, variables)
            views = [
                images[:, :: -1 if rows else 1, :: -1 if columns else 1] for rows, columns in flips
            ]
            logs = jnp.stack([task.log_probabilities(network(view)) for view in views])
            return jax.nn.logsumexp(logs, axis=0, b=1 / len(views)) if len(views) > 1 else logs[0]

        return _in_pieces(classify, (inputs,), devices)

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
        graph: the structure from `models.split`; all BatchNorms use their running statistics.
        stage: the stage at which the activations come in; its variables have a leading axis of
            runs.
        cached: the type of the activations.
        devices: the devices, as for `shard`.

    Returns:
        A function of all variables, a table of activations, and a sharded chunk of S batches whose
        inputs are row numbers in the table. It returns the metrics (S, N) of each batch.
    """

    def score_step(variables: Variables, table: Array, batch: Batch) -> Sums:
        inputs, labels, valid = map(jnp.asarray, batch[:3])
        logits = merge(graph, variables)(table[inputs].astype(cached), start=stage)
        return lax.psum(task_of(labels).sums_of(logits, labels, valid), AXIS)

    def score_steps(variables: Variables, table: Array, chunk: Batch) -> Sums:
        step = jax.vmap(score_step, (run_axes(variables, stage), None, None))
        return lax.map(lambda batch: step(variables, table, batch), chunk)

    return data_parallel(score_steps, devices, in_axes=(None, None, 0), out_axes=None)


def make_feature_step(
    graph: nnx.GraphDef, stop: str, *, augmentation: Augment, devices: Sequence[jax.Device]
) -> Callable[[Variables, Int[Array, ""], Batch], Array]:
    """Compiles the frozen stages of a network, data parallel over `devices`.

    Args:
        graph: the structure from `models.split`; all BatchNorms use their running statistics.
        stop: the stage to stop before.
        augmentation: the augmentation that makes a view of each image.
        devices: the devices, as for `shard`.

    Returns:
        A function of all variables, the seed of the views and a sharded batch of images. It returns
        the output of the last stage that runs (D, B / D, ...).
    """
    step = frozen_stages(graph, stop, augmentation, devices)
    return data_parallel(step, devices, in_axes=(None, None, 0))


def frozen_stages(
    graph: nnx.GraphDef, stop: str, augmentation: Augment, devices: Sequence[jax.Device]
) -> Callable[[Variables, Any, Batch], Array]:
    """The step of `make_feature_step` on one device, not compiled."""

    def feature_step(variables: Variables, view_seed: Array, batch: Batch) -> Array:
        def run(images: Array, keys: Array) -> Array:
            return merge(graph, variables)(augment(images, keys, augmentation), stop=stop)

        images, keys = jnp.asarray(batch.inputs), view_keys(view_seed, batch)
        return _in_pieces(run, (images, keys), devices)

    return feature_step


def _in_pieces(
    function: Callable[..., Array], arrays: tuple[Array, ...], devices: Sequence[jax.Device]
) -> Array:
    """Applies a function to a batch of images; on a CPU to a few images at a time.

    The maps between the layers then fit in the CPU's cache
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


def view_keys(seed: Int[Array | np.ndarray, ""], batch: Batch) -> Array:
    """The key of each image's view, which depends only on seed, image and view."""
    key = jax.random.split(jax.random.key(seed))[0]
    image_keys = jax.vmap(partial(jax.random.fold_in, key))(batch.indices)
    return jax.vmap(jax.random.fold_in)(image_keys, batch.views)
