"""What is refused before a run begins: settings that fit neither devices nor images."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from rich.console import Console

from jaxtl.config import Config
from jaxtl.data.sources import Source
from jaxtl.errors import UserError
from jaxtl.metrics import CLASS_METRICS
from jaxtl.training.optimizer import check_schedule, weights_of_classes
from jaxtl.training.parallel import check_batch_size


def check_plan(config: Config, images: Source, devices: Sequence[jax.Device]) -> None:
    """Refuses batches, schedules and weights that do not fit the devices or the training images.

    Args:
        config: the config of a run.
        images: the training images.
        devices: all devices that train.

    Raises:
        UserError: they do not; the message names numbers that do.
    """
    check_batch_size(config, devices)
    for phase in config.phases:
        check_schedule(phase, -(-len(images) // config.data.batch_size))
        weights_of_classes(phase, images.labels, images.classes)


def check_monitors(config: Config, val: Source, out: Console) -> None:
    """Says what a monitor does with classes that the validation images lack.

    Args:
        config: the config of a run.
        val: the validation images.
        out: the terminal.

    Raises:
        UserError: a metric has no value on the validation images.
    """
    present = np.unique(val.labels).tolist()
    absent = [name for index, name in enumerate(val.classes) if index not in present]
    for phase in config.phases:
        if phase.monitor == "auroc" and len(present) < 2:
            raise UserError(
                f"phases.{phase.name}.monitor: auroc needs validation images of two classes at "
                f"least, and there are none of {', '.join(absent)}: add some, or take accuracy"
            )
        if phase.monitor in CLASS_METRICS and absent:
            out.print(
                f"{phase.name}: {phase.monitor} is the mean over the {len(present)} classes that "
                f"validation has, without {', '.join(absent)}"
            )
