"""From a phase to its learning-rate schedule and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping

import optax

from jaxtl.config import Phase
from jaxtl.freeze import FROZEN, Freezing


def schedule(phase: Phase, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate of a phase by step, before multipliers.

    It rises linearly over `warmup_epochs`, then stays, or falls to zero as half a cosine
    (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts).
    """
    steps = phase.epochs * steps_per_epoch
    warmup = min(round(phase.warmup_epochs * steps_per_epoch), steps)
    after: optax.Schedule
    if phase.schedule == "cosine":
        after = optax.cosine_decay_schedule(phase.lr, max(steps - warmup, 1))
    else:
        after = optax.constant_schedule(phase.lr)
    if not warmup:
        return after
    # The first step has a rate already: at zero it would do nothing.
    rise = optax.linear_schedule(phase.lr / warmup, phase.lr, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def optimizer(phase: Phase, frozen: Freezing, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optimizer of a phase over all of a network's parameters.

    One group for each learning-rate multiplier, and `set_to_zero` for what is frozen, which
    therefore has no optimizer state and no decay. Clipping comes before the groups, so that the
    norm is that of all trained gradients together; frozen gradients are zeros there.
    """
    rate = schedule(phase, steps_per_epoch)
    groups = {
        frozen.labels[path]: _group(phase, rate, multiplier)
        for path, multiplier in frozen.multipliers.items()
    }
    grouped = optax.multi_transform({**groups, FROZEN: optax.set_to_zero()}, frozen.labels)
    if phase.clip_norm is None:
        return grouped
    return optax.chain(optax.clip_by_global_norm(phase.clip_norm), grouped)


def _group(phase: Phase, rate: optax.Schedule, multiplier: float) -> optax.GradientTransformation:
    rules = {
        "adam": optax.scale_by_adam,
        "sgd": lambda: optax.trace(phase.momentum, nesterov=True),
        "rmsprop": optax.scale_by_rms,
    }
    parts = [rules[phase.optimizer]()]
    if phase.weight_decay:
        parts.append(optax.add_decayed_weights(phase.weight_decay, mask=_kernels))
    return optax.chain(*parts, optax.scale_by_learning_rate(lambda step: rate(step) * multiplier))


def _kernels(parameters: Mapping[str, object]) -> dict[str, bool]:
    return {path: path.endswith("/kernel") for path in parameters}
