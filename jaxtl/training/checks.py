"""What is refused before a run begins: settings that fit neither devices nor images."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from rich.console import Console

from jaxtl.config import Config, Phase
from jaxtl.data.sources import Source
from jaxtl.data.splits import Splits
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


def check_monitors(config: Config, data: Splits, out: Console) -> None:
    """Says what a monitor does with classes that the images for validation or the test lack.

    Args:
        config: the config of a run.
        data: its images.
        out: the terminal.

    Raises:
        UserError: a metric has no value on these images.
    """
    for phase in config.phases:
        _check_monitor(phase, data.val, "validation", out)
    if data.test is not None:  # has what the last phase monitors
        _check_monitor(config.phases[-1], data.test, "test", out)


def _check_monitor(phase: Phase, images: Source, split: str, out: Console) -> None:
    present = np.unique(images.labels).tolist()
    absent = [name for index, name in enumerate(images.classes) if index not in present]
    if phase.monitor == "auroc" and len(present) < 2:
        raise UserError(
            f"phases.{phase.name}.monitor: auroc needs {split} images of two classes at "
            f"least, and there are none of {', '.join(absent)}: add some, or take accuracy"
        )
    if phase.monitor in CLASS_METRICS and absent:
        out.print(
            f"{phase.name}: {phase.monitor} is the mean over the {len(present)} classes that the "
            f"{split} images have, without {', '.join(absent)}"
        )
