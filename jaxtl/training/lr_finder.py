"""What `jaxtl.lr_find` does: the range test of a phase of a config."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from jaxtl.config import Config, Phase
from jaxtl.data.splits import Splits
from jaxtl.errors import UserError
from jaxtl.models import Network, Variables, split
from jaxtl.training.checks import check_plan
from jaxtl.training.feature_cache import Feed
from jaxtl.training.lr_range import RangeTest, constant, rising_rates
from jaxtl.training.optimizer import hyperparameters, weights_of_classes
from jaxtl.training.parallel import all_devices
from jaxtl.training.phase import begin_phase
from jaxtl.training.predictor import Predictor
from jaxtl.training.setup import loader, plan_run, pretrained, train
from jaxtl.weights import with_convention


def range_test(config: Config, data: Splits, name: str | None, out: Console) -> RangeTest:
    """Tests learning rates for a phase, see `rising_rates`.

    The phases before are trained first, and nothing is kept. The phase trains as it does in a run,
    but for its schedule; its multipliers hold.

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
    phase = constant(config.scaled_phases[index])
    feed, devices = Feed(loader(data.train, config, shuffle=True)), all_devices()
    weights = weights_of_classes(phase, data.train.labels, data.train.classes)
    begun = begin_phase(
        *(network, trainables[index], phase, variables),
        hyperparameters(phase, config.seed, config.seed, weights),
        steps_per_epoch=feed.loader.steps_per_epoch,
        devices=devices,
        augmentation=config.augment,
    )
    found = rising_rates(begun, feed, devices)
    # A run scales the rate that the config has.
    scale = phase.base_lr / config.phases[index].base_lr
    return found._replace(lrs=found.lrs / scale, suggestion=found.suggestion / scale)


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
