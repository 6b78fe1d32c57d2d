"""What is refused before a run begins: settings that fit neither devices nor images."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from rich.console import Console

from jaxtl.config import Config, Phase
from jaxtl.data.sources import Source
from jaxtl.data.splits import Splits
from jaxtl.errors import UserError
from jaxtl.labels import class_counts, is_multi_label
from jaxtl.metrics import CLASS_METRICS
from jaxtl.tasks import task_of
from jaxtl.training.optimizer import check_schedule, weights_of_classes
from jaxtl.training.parallel import check_batch_size


def check_plan(config: Config, images: Source, devices: Sequence[jax.Device]) -> None:
    """Refuses batches, schedules, weights and monitors that do not fit devices or training images.

    Args:
        config: the config of a run.
        images: the training images.
        devices: all devices that train.

    Raises:
        UserError: they do not; the message names numbers that do.
    """
    check_batch_size(config, devices)
    if config.data.balanced and is_multi_label(images.labels):
        raise UserError(
            "data.balanced draws images by their class, and these have several labels: leave it "
            f"out, and take --cfg.phases.{config.phases[0].name}.class_weights=auto"
        )
    monitors = task_of(images.labels).monitors
    for phase in config.phases:
        if phase.monitor not in (*monitors, None):
            raise UserError(
                f"phases.{phase.name}.monitor: {phase.monitor} is no metric of "
                f"{task_of(images.labels).name} images: take one of {', '.join(monitors)}"
            )
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
    if is_multi_label(data.train.labels):
        for name, part in data.named.items():
            _check_labels(part, name, out)
        return
    for phase in config.phases:
        _check_monitor(phase, data.val, "validation", out)
    if data.test is not None:  # has what the last phase monitors
        _check_monitor(config.phases[-1], data.test, "test", out)


_WITHOUT = {
    "train": "nothing is learnt of it",
    "val": "it is not in mAP and macro_f1, and its threshold is 0.5",
    "test": "it is not in test_mAP and test_macro_f1",
}


def _check_labels(images: Source, split: str, out: Console) -> None:
    absent = _absent(images)
    if len(absent) == len(images.classes):
        raise UserError(f"no image of the split {split} has a label: there is nothing to measure")
    for name in absent:
        out.print(f"no image of the split {split} has the label {name}: {_WITHOUT[split]}")


def _absent(images: Source) -> list[str]:
    """The classes that no image has."""
    counts = class_counts(images.labels, len(images.classes)).tolist()
    return [name for name, count in zip(images.classes, counts, strict=True) if not count]


def _check_monitor(phase: Phase, images: Source, split: str, out: Console) -> None:
    absent = _absent(images)
    present = len(images.classes) - len(absent)
    if phase.monitor == "auroc" and present < 2:
        raise UserError(
            f"phases.{phase.name}.monitor: auroc needs {split} images of two classes at "
            f"least, and there are none of {', '.join(absent)}: add some, or take accuracy"
        )
    if phase.monitor in CLASS_METRICS and absent:
        out.print(
            f"{phase.name}: {phase.monitor} is the mean over the {present} classes that the "
            f"{split} images have, without {', '.join(absent)}"
        )
