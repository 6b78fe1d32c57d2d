"""What is done with a run whose numbers are not finite any more: it is never saved."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxtl.errors import UserError
from jaxtl.training.step import TrainState


class Diverged(UserError):
    """A loss or a parameter is not finite any more.

    Attributes:
        ruined: the step after which the variables were as the number that is not finite shows.
    """

    def __init__(self, message: str, ruined: int):
        super().__init__(message)
        self.ruined = ruined


def check_finite(kind: str, loss: float, step: int, phase: str) -> None:
    """Stops a phase whose loss is not finite.

    Raises:
        Diverged: the loss is not finite; the message names `kind`, `training` or `validation`, the
            step, and the phase.
    """
    if not math.isfinite(loss):
        ruined = step - 1 if kind == "training" else step  # that loss is from before the step
        raise Diverged(f"the {kind} loss is {loss} {_after(step, phase)}", ruined)


def check_state(state: TrainState, step: int, phase: str) -> None:
    """Stops a phase whose last step made numbers that the next loss will not survive.

    Raises:
        Diverged: a variable is not finite, or the optimizer's state has a NaN.
    """
    if not is_finite(state):
        raise Diverged(f"the variables are not finite {_after(step, phase)}", step)


def is_finite(state: TrainState) -> bool:
    """Whether all variables are finite, and the state of the optimizer has no NaN.

    An infinite second moment only means that its parameter does not move any more.
    """
    return bool(_finite(state.variables, state.optimizer))


@jax.jit
def _finite(variables: Any, optimizer: Any) -> Bool[Array, ""]:
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)]
    numbers = [~jnp.isnan(leaf).any() for leaf in jax.tree.leaves(optimizer)]
    return functools.reduce(jnp.logical_and, finite + numbers, jnp.asarray(True))


def _after(step: int, phase: str) -> str:
    return (
        f"after step {step} of phase {phase}; try a lower learning rate, "
        f"--cfg.phases.{phase}.clip_norm=1.0 or --cfg.on_nan=halve_lr, in a new --workdir"
    )
