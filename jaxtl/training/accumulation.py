"""The gradient of a batch as a sum over pieces of it, which run one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxtl.data.loader import Batch
from jaxtl.metrics import Sums
from jaxtl.models import Variables
from jaxtl.training.parallel import AXIS

T = TypeVar("T")
_PIXELS_AT_A_TIME = 8 * 224 * 224  # on a CPU

Gradients = tuple[Variables, Variables, Sums]
"""Updated batch statistics, gradients, and metrics."""


def pieces_on_cpu(features: jax.ShapeDtypeStruct) -> int:
    """How many pieces of a batch a CPU differentiates fastest, and in the least memory.

    They have so few images that the maps between the layers fit in its cache
    (docs/decisions/0045-gradients-of-a-few-images-at-a-time.md).

    Args:
        features: shape and type of what the first trained stage gets.
    """
    if len(features.shape) != 4:
        return 1
    count, height, width, _ = features.shape
    return -(-count // max(1, _PIXELS_AT_A_TIME // (height * width)))


def sum_over_pieces(
    gradients_of: Callable[[Variables, Batch, T], Gradients],
    pieces: int,
    statistics: Variables,
    batch: Batch,
    draws: T,
) -> Gradients:
    """Adds up the gradients of the pieces of one device's part of a batch.

    The statistics of BatchNorms that train go from each piece to the next. A piece takes every K-th
    image, so that the images which only fill up a batch are spread over all of them. One that has
    no others on any device leaves the statistics as they are.

    Args:
        gradients_of: a function of statistics, images and what is drawn for them, whose gradients
            are sums over valid images.
        pieces: their number K, at least 1. Where the images do not divide by it, some pieces have
            one that does not count.
        statistics: the batch statistics that train.
        batch: one device's part of a batch.
        draws: arrays with an entry for each image.
    """
    if pieces == 1:
        return gradients_of(statistics, batch, draws)
    count = len(batch.labels)
    places = jnp.arange(-(-count // pieces) * pieces).reshape(-1, pieces).T
    taken, filled = jnp.minimum(places, count - 1), places < count
    split, split_draws = jax.tree.map(lambda array: jnp.asarray(array)[taken], (batch, draws))
    split = split._replace(valid=split.valid & filled)

    def add_piece(total: Gradients, piece: tuple[Batch, T]) -> tuple[Gradients, None]:
        before, *sums = total
        after, *more = gradients_of(before, *piece)
        if before:
            counts = lax.psum(jnp.sum(piece[0].valid), AXIS) > 0
            after = jax.tree.map(lambda new, old: jnp.where(counts, new, old), after, before)
        gradients, metrics = jax.tree.map(jnp.add, tuple(sums), tuple(more))
        return (after, gradients, metrics), None

    first = jax.tree.map(lambda array: array[0], (split, split_draws))
    _, *shapes = jax.eval_shape(gradients_of, statistics, *first)
    zeros = jax.tree.map(lambda of: jnp.zeros(of.shape, of.dtype), tuple(shapes))
    return lax.scan(add_piece, (statistics, *zeros), (split, split_draws))[0]
