"""The learning-rate range test: the loss while the learning rate rises from step to step."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

from jaxtl.config import Config, Phase
from jaxtl.data.loader import Batch, Loader
from jaxtl.data.splits import Splits
from jaxtl.errors import UserError
from jaxtl.files import write_whole
from jaxtl.metrics import to_host
from jaxtl.models import Network, Variables, split
from jaxtl.training.checks import check_plan
from jaxtl.training.optimizer import hyperparameters, weights_of_classes
from jaxtl.training.parallel import all_devices, replicate, shard
from jaxtl.training.phase import begin_phase
from jaxtl.training.predictor import Predictor
from jaxtl.training.setup import loader, plan_run, pretrained, train
from jaxtl.weights import with_convention

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


def range_test(config: Config, data: Splits, name: str | None, out: Console) -> RangeTest:
    """Trains a phase for a hundred steps, at learning rates from 1e-7 to 10 that rise by a factor.

    Smith 2017 (arXiv:1506.01186, section 3.3). The phases before are trained first, and nothing is
    kept. The phase trains as it does in a run, but for its schedule; its multipliers hold. The test
    ends early where the loss is four times the lowest.

    Args:
        config: the config of a run.
        data: its images.
        name: the phase; None for the first one.
        out: the terminal.

    Raises:
        UserError: there is no such phase, or the loss never falls.
    """
    names = [phase.name for phase in config.phases]
    if name is not None and name not in names:
        raise UserError(f"no phase is called {name!r}; there are {names}")
    index = names.index(name) if name is not None else 0
    check_plan(config, data.train, all_devices())
    network, trainables = plan_run(config, len(data.train.classes))
    if index:
        network, variables = _after(config, config.phases[:index], network, data, out)
    else:
        network, variables, _ = pretrained(config, network)
    plain = {"schedule": "constant", "warmup_epochs": 0.0, "step_epochs": ()}
    phase = config.scaled_phases[index].model_copy(update=plain)
    images, devices = loader(data.train, config, shuffle=True), all_devices()
    weights = weights_of_classes(phase, data.train.labels, data.train.classes)
    step, state, frozen, hyper = begin_phase(
        *(network, trainables[index], phase, variables),
        hyperparameters(phase, config.seed, config.seed, weights),
        steps_per_epoch=images.steps_per_epoch,
        devices=devices,
        augmentation=config.augment,
    )
    lrs = np.geomspace(_LOWEST, _HIGHEST, _STEPS)
    losses: list[float] = []
    for lr, batch in zip(lrs, _batches(images), strict=False):
        hyper = hyper._replace(lr=replicate(np.float32(lr), devices))
        chunk = shard(jax.tree.map(lambda array: array[None], batch), devices, axis=1)
        state, sums = step(state, frozen, None, hyper, chunk)
        (done,) = to_host(sums)
        losses.append(float(done.loss / done.images))
        smooth = _smoothed(losses)
        if not smooth[-1] < _DIVERGED * smooth.min():
            break
    scaled = phase.lr / config.phases[index].lr  # a run scales the rate that the config has
    return _found(lrs[: len(losses)] / scaled, _smoothed(losses))


def _after(
    config: Config, phases: tuple[Phase, ...], network: Network, data: Splits, out: Console
) -> tuple[Network, Variables]:
    """The network as some phases leave it."""
    with tempfile.TemporaryDirectory() as folder:
        before = config.model_copy(update={"phases": phases})
        train(before, data._replace(test=None), Path(folder) / "run", out)
        trained = Predictor(Path(folder) / "run")
        variables = split(trained.network)[1]
    return with_convention(network, trained.metadata.convention), variables


def _batches(images: Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from images.epoch(epoch)
        epoch += 1


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
    """Draws the curve as an SVG; a file that is there is replaced."""
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
    figure.savefig(image, format="svg")
    write_whole(path, image.getvalue())
