"""Averages of what trains: the moving one of the steps, and that of the best epochs.

With a moving average, the optimizer moves a copy in place of the phase's variables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxtl.models import Variables


class Averaged(NamedTuple):
    """The optimizer's state of a phase that trains to an average, which is the phase's variables.

    Attributes:
        optimizer: the state of the optimizer.
        variables: the variables that the optimizer moves, by path.
        steps: the number of steps in the average, int32; (N,) for N runs at once.
    """

    optimizer: optax.OptState
    variables: Variables
    steps: Int[Array, "*runs"]


def begin_average(
    variables: Variables, optimizer: optax.OptState, step: Int[Array, "*runs"]
) -> Averaged:
    """The state before the first step; `step` has the shape of that of the `TrainState`."""
    return Averaged(optimizer, jax.tree.map(jnp.copy, variables), jnp.zeros_like(step))


def moving(variables: Variables, optimizer: optax.OptState) -> tuple[Variables, optax.OptState]:
    """The variables that the optimizer moves, and its own state; both with an average or without.

    Args:
        variables, optimizer: those of a `TrainState`.
    """
    if isinstance(optimizer, Averaged):
        return optimizer.variables, optimizer.optimizer
    return variables, optimizer


def add_to_average(
    decay: float,
    average: Variables,
    before: Averaged,
    moved: Variables,
    optimizer: optax.OptState,
) -> tuple[Variables, Averaged]:
    """The average after one more step, and the state with it.

    What it began with does not count: the average after t steps is that of Kingma and Ba 2015
    (arXiv:1412.6980, section 7.2), with their correction 1 - decay^t.

    Args:
        decay: the fraction of itself that it keeps, above 0 and below 1.
        average, before: the average before the step, and the state with it.
        moved, optimizer: the variables as the step moved them, and the optimizer's own state.
    """
    steps = before.steps + 1
    weight = (1 - decay) / (1 - decay ** steps.astype(jnp.float32))
    average = optax.incremental_update(moved, average, weight)
    return average, Averaged(optimizer, moved, steps)


Quality = tuple[float, float]


def greedy_soup(
    epochs: Sequence[Callable[[], Variables]],
    best: Quality,
    measure: Callable[[Variables], Quality],
) -> tuple[Variables, Quality, list[int]]:
    """Averages the best epochs, without each that makes the average so far worse.

    Wortsman et al. 2022, arXiv:2203.05482, recipe 1.

    Args:
        epochs: read the variables of each epoch, the best one first.
        best: how good the best one is (`metrics.quality`).
        measure: returns how good variables are.

    Returns:
        The average, how good it is, and the indices of the epochs in it.
    """
    average, used = epochs[0](), [0]
    for index, variables in enumerate(epochs[1:], start=1):
        wider = optax.incremental_update(variables(), average, 1 / (len(used) + 1))
        if (quality := measure(wider)) >= best:
            average, best = wider, quality
            used.append(index)
    return average, best, used
