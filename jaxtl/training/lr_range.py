"""The learning-rate range test: the loss while the learning rate rises from step to step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxtl.config import Phase
from jaxtl.data.loader import Batch
from jaxtl.errors import UserError
from jaxtl.files import write_whole
from jaxtl.metrics import to_host
from jaxtl.training.evaluation import in_step
from jaxtl.training.feature_cache import Feed
from jaxtl.training.parallel import replicate, shard
from jaxtl.training.phase import BegunPhase
from jaxtl.training.stopping import Stop

_LOWEST, _HIGHEST, _STEPS = 1e-7, 10.0, 100
_SKIPPED = 10  # steps of which the smoothed loss is the mean of too few
_SMOOTHING, _DIVERGED = 0.98, 4.0
"""The weight of the past in the smoothed loss, and how many times the lowest loss ends the test;
both are those of fastai's `lr_find` (Howard and Gugger 2020, arXiv:2002.04688)."""


class RangeTest(NamedTuple):
    """What a range test found.

    Attributes:
        lrs: the learning rates of the config, each one step.
        losses: the smoothed loss of each.
        suggestion: the learning rate at which the smoothed loss falls fastest.
    """

    lrs: Float[np.ndarray, "steps"]
    losses: Float[np.ndarray, "steps"]
    suggestion: float


def constant(phase: Phase) -> Phase:
    """The phase without its schedule."""
    plain = {"schedule": "constant", "warmup_epochs": 0.0, "step_epochs": ()}
    return phase.model_copy(update=plain)


def _single_batches(feed: Feed) -> Iterator[Batch]:
    """The batches of one epoch after the other, without end, each a chunk of one step."""
    for epoch in itertools.count():
        for chunk in feed.chunks(epoch):
            for step in range(len(chunk.labels)):
                yield jax.tree.map(lambda array, at=step: array[at : at + 1], chunk)


def rising_rates(
    begun: BegunPhase,
    feed: Feed,
    devices: Sequence[jax.Device],
    stop: Stop | None = None,
) -> RangeTest:
    """Trains for a hundred steps, at learning rates from 1e-7 to 10 that rise by a factor.

    Smith 2017 (arXiv:1506.01186, section 3.3). It ends early where the loss is four times the
    lowest.

    Args:
        begun: a phase without a schedule, from `begin_phase`; its arrays are used up.
        feed: what it trains on.
        devices: as for `begin_phase`.
        stop: asks to stop between two batches.

    Raises:
        UserError: the loss never falls.
    """
    step, state, frozen, hyper = begun
    lrs, losses = np.geomspace(_LOWEST, _HIGHEST, _STEPS), []
    batches = _single_batches(feed)
    for lr, batch in zip(lrs, in_step(batches, stop) if stop else batches, strict=False):
        hyper = hyper._replace(lr=replicate(np.float32(lr), devices))
        state, sums = step(state, frozen, feed.table, hyper, shard(batch, devices, axis=1))
        (done,) = to_host(sums)
        losses.append(float(done.loss / done.images))
        smooth = _smoothed(losses)
        if not smooth[-1] < _DIVERGED * smooth.min():
            break
    return _found(lrs[: len(losses)], _smoothed(losses))


def _smoothed(losses: list[float]) -> Float[np.ndarray, "steps"]:
    """The moving average of the losses, corrected for its beginning at zero."""
    average, smooth = 0.0, []
    for count, loss in enumerate(losses, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smooth.append(average / (1 - _SMOOTHING**count))
    return np.asarray(smooth)


def _found(lrs: np.ndarray, losses: np.ndarray) -> RangeTest:
    lowest = int(np.nanargmin(np.where(np.arange(len(losses)) < _SKIPPED, np.inf, losses)))
    if lowest <= _SKIPPED:
        raise UserError("the loss does not fall at any learning rate; check images and labels")
    slopes = np.gradient(losses[: lowest + 1], np.log(lrs[: lowest + 1]))
    steepest = _SKIPPED + int(np.argmin(slopes[_SKIPPED:]))
    return RangeTest(lrs, losses, float(lrs[steepest]))


def write_curve(path: Path, found: RangeTest, title: str) -> None:
    """Draws the curve, as the name of the file says; one that is there is replaced."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.lrs, found.losses, color="#1f6feb")
    axes.axvline(found.suggestion, color="#d1242f", linestyle="--")
    axes.annotate(
        f" {found.suggestion:.2g}: the loss falls fastest ",
        (found.suggestion, 0.97),
        xycoords=("data", "axes fraction"),
        ha="right" if found.suggestion > 1e-3 else "left",
        va="top",
        color="#d1242f",
    )
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss (nats)", title=title)
    top = float(np.nanmin([_DIVERGED * found.losses.min(), np.nanmax(found.losses)]))
    axes.set_ylim(0, 1.05 * top)
    axes.grid(color="#e6e8ec", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:].lower())
    write_whole(path, image.getvalue())
