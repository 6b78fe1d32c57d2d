"""The learning-rate schedule and the optimizer of a phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxtl.config import Phase
from jaxtl.errors import UserError
from jaxtl.tasks import task_of
from jaxtl.training.trainable import FROZEN, Trainable

_FEWEST_OF_A_CYCLE = 4  # steps, of which 30 % are the rise


class Hyperparameters(NamedTuple):
    """The numbers that a compiled training step takes as arguments.

    Runs that differ only in them share one program.

    Attributes:
        lr: the learning rate of the phase (1 where it is `auto`), before schedule and multipliers.
        weight_decay: the decoupled weight decay of kernels.
        label_smoothing: the fraction of each label that is spread over all classes.
        seed: seeds dropout, and views that are drawn anew every epoch.
        view_seed: seeds the finite views of each image.
        class_weights: the weight of the images of each class; None if all have the same.
    """

    lr: Float[Array | np.ndarray, ""]
    weight_decay: Float[Array | np.ndarray, ""]
    label_smoothing: Float[Array | np.ndarray, ""]
    seed: Int[Array | np.ndarray, ""]
    view_seed: Int[Array | np.ndarray, ""]
    class_weights: Float[Array | np.ndarray, "classes"] | None = None


def hyperparameters(
    phase: Phase, seed: int, view_seed: int, class_weights: np.ndarray | None = None
) -> Hyperparameters:
    """The hyperparameters of a phase, as arrays of the types that a step is compiled for."""
    return Hyperparameters(
        lr=np.asarray(phase.base_lr, np.float32),
        weight_decay=np.asarray(phase.weight_decay, np.float32),
        label_smoothing=np.asarray(phase.label_smoothing, np.float32),
        seed=np.asarray(seed, np.int32),
        view_seed=np.asarray(view_seed, np.int32),
        class_weights=class_weights,
    )


def weights_of_classes(
    phase: Phase, labels: Int[np.ndarray, "images *classes"], classes: Sequence[str]
) -> Float[np.ndarray, "classes"] | None:
    """The weight of each class in the loss of a phase; None if all have the same.

    Args:
        phase: the phase, for its `class_weights`.
        labels: the classes of the training images.
        classes: the names of the classes.

    Raises:
        UserError: the weights are not those of exactly these classes.
    """
    given = phase.class_weights
    if given is None:
        return None
    if given == "auto":
        return task_of(labels).automatic_weights(labels, len(classes))
    if set(given) != set(classes):
        odd = min(set(given) ^ set(classes))
        wrong = "has no weight" if odd in classes else "is not a class of these images"
        raise UserError(f"class_weights of {phase.name}: {odd!r} {wrong}; give one for each class")
    return np.asarray([given[name] for name in classes], np.float32)


def check_schedule(phase: Phase, steps_per_epoch: int) -> None:
    """Refuses a schedule that a phase has too few steps for.

    Raises:
        UserError: two of `step_epochs` are the same step, or one is the end of the warm-up or of
            the phase; or `one_cycle` has no step to rise in.
    """
    steps = phase.epochs * steps_per_epoch
    epochs = (phase.warmup_epochs, *phase.step_epochs, phase.epochs)
    at = [round(epoch * steps_per_epoch) for epoch in epochs]
    if phase.step_epochs and sorted(set(at)) != at:
        raise UserError(
            f"step_epochs of {phase.name} are steps {at[1:-1]} of {steps}: an epoch has "
            f"{steps_per_epoch} steps; give epochs further apart"
        )
    if phase.schedule == "one_cycle" and steps < _FEWEST_OF_A_CYCLE:
        raise UserError(
            f"schedule='one_cycle' of {phase.name} cannot rise and fall in {steps} steps; "
            f"take --cfg.phases.{phase.name}.schedule=cosine"
        )


def _falling(phase: Phase, steps: int, warmup: int, steps_per_epoch: int) -> optax.Schedule:
    """The factor after a warm-up of so many steps, over the other `steps` of the phase."""
    boundaries = {round(epoch * steps_per_epoch) - warmup: 0.1 for epoch in phase.step_epochs}
    schedules = {
        "constant": lambda: optax.constant_schedule(1.0),
        # Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
        "cosine": lambda: optax.cosine_decay_schedule(1.0, steps),
        "linear": lambda: optax.linear_schedule(1.0, 0.0, steps),
        # Smith and Topin 2018, arXiv:1708.07120, as in PyTorch's OneCycleLR.
        "one_cycle": lambda: optax.cosine_onecycle_schedule(steps, 1.0),
        # As ResNets are trained (He et al. 2016, arXiv:1512.03385).
        "step": lambda: optax.piecewise_constant_schedule(1.0, boundaries),
    }
    return schedules[phase.schedule]()


def schedule(phase: Phase, steps_per_epoch: int) -> optax.Schedule:
    """The factor on the phase's learning rate at each step, before multipliers.

    It rises linearly over `warmup_epochs`, then does what `Phase.schedule` says.
    """
    steps = phase.epochs * steps_per_epoch
    warmup = round(phase.warmup_epochs * steps_per_epoch)
    after = _falling(phase, max(steps - warmup, 1), warmup, steps_per_epoch)
    if not warmup:
        return after
    # Not from zero, where the first step would do nothing.
    rise = optax.linear_schedule(1 / warmup, 1.0, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def optimizer(
    phase: Phase, trainable: Trainable, steps_per_epoch: int, hyper: Hyperparameters
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a phase over all of a network's parameters.

    There is one group for each learning-rate multiplier, and `set_to_zero` for frozen parameters,
    which have no optimizer state and no decay. Clipping comes first, by the norm of all trained
    gradients together; frozen gradients are zeros there. With `sam_rho` its update takes the
    gradient as a function too (`grad_fn` of `optax.contrib.sam`).

    Args:
        phase: the phase, for its optimizer, schedule, clipping and `sam_rho`.
        trainable: what trains.
        steps_per_epoch: the number of steps in an epoch of the schedule.
        hyper: the learning rate and weight decay; they may be traced.
    """
    factor = schedule(phase, steps_per_epoch)
    groups = {
        trainable.labels[path]: _group(phase, factor, multiplier, hyper)
        for path, multiplier in trainable.multipliers.items()
    }
    whole = optax.multi_transform({**groups, FROZEN: optax.set_to_zero()}, trainable.labels)
    if phase.clip_norm is not None:
        whole = optax.chain(optax.clip_by_global_norm(phase.clip_norm), whole)
    if phase.sam_rho is not None:
        # Not `optax.contrib.normalize`, which makes NaNs of gradients that are all zero.
        direction = optax.normalize_by_update_norm(eps=1e-12)
        uphill = optax.chain(direction, optax.sgd(phase.sam_rho))
        whole = optax.contrib.sam(whole, uphill, opaque_mode=True)
    return optax.with_extra_args_support(whole)


def _group(
    phase: Phase, factor: optax.Schedule, multiplier: float, hyper: Hyperparameters
) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(hyper.weight_decay, mask=_kernels)
    descend = optax.scale_by_learning_rate(lambda step: factor(step) * (hyper.lr * multiplier))
    # Biases and BatchNorms begin at zero or one, and their norm says nothing of a good step.
    trust = partial(optax.masked, mask=_kernels)
    if phase.optimizer == "lars":  # You et al. 2017, arXiv:1708.03888, as `optax.lars` chains it
        ratio = trust(optax.scale_by_trust_ratio(trust_coefficient=0.001))
        return optax.chain(decay, ratio, descend, optax.trace(phase.momentum))
    if phase.optimizer == "lamb":  # You et al. 2020, arXiv:1904.00962, as `optax.lamb` chains it
        adam = optax.scale_by_adam(eps=1e-6)
        return optax.chain(adam, decay, trust(optax.scale_by_trust_ratio()), descend)
    rules = {
        "adam": optax.scale_by_adam,
        "sgd": lambda: optax.trace(phase.momentum, nesterov=True),
        "rmsprop": optax.scale_by_rms,
        "lion": optax.scale_by_lion,  # Chen et al. 2023, arXiv:2302.06675
    }
    return optax.chain(rules[phase.optimizer](), decay, descend)


def _kernels(parameters: Mapping[str, object]) -> dict[str, bool]:
    return {path: path.endswith("/kernel") for path in parameters}
