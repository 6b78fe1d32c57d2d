"""From a config to a run: opens the data, loads the weights, trains, and writes the result."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from pathlib import Path
from typing import Any

import jax
import platformdirs
from rich.console import Console

from jaxtl.config.config_file import Config
from jaxtl.console import metrics_text, stage_table
from jaxtl.data.loader import Loader
from jaxtl.data.sources import Source, Splits, absolute, found_line, open_splits
from jaxtl.errors import UserError
from jaxtl.hints import allocator_hint
from jaxtl.models import Network, Variables, build, split
from jaxtl.runs.checkpoints import Checkpoints, Progress
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.metrics_log import MetricsLog
from jaxtl.runs.report import write_page
from jaxtl.training.feature_store import Store
from jaxtl.training.loop import Training
from jaxtl.training.step import check_batch_size, on_cpu
from jaxtl.training.trainable import Trainable, select_trainable
from jaxtl.weights import create
from jaxtl.weights.sources import NoWeights, likely_convention


def train(config: Config, workdir: Path, out: Console) -> dict[str, float]:
    """Trains a classifier as a config says, or goes on where the same run was left.

    Args:
        config: the run.
        workdir: the run directory; a new one, or that of the same config and data.
        out: the terminal.

    Returns:
        The validation metrics of the result.

    Raises:
        UserError: something that the user can mend.
        Interrupted: a signal asked the run to stop; it is saved.
    """
    begun = time.perf_counter()
    check_batch_size(config.data.batch_size, jax.local_devices())
    data = open_splits(
        config.data.source, val_fraction=config.data.val_fraction, seed=config.data.seed
    )
    for part in data:
        out.print(found_line(part))

    classes = data.train.classes
    structure(config, len(classes))  # what is wrong with a phase shows before weights are fetched
    run = RunDirectory(workdir)
    with run.locked():
        training = _open(run, config, data, out)
        try:
            evaluation = training.run()
        finally:
            training.close()
        metrics = evaluation.sums.means(len(classes))
        write_page(run, evaluation, classes)
        run.finish({"step": training.progress.step, **metrics})
    right = f"({evaluation.sums.top1}/{evaluation.sums.images} right)"
    out.print(
        f"{metrics_text(metrics, 'val_')}  {right} after "
        f"{training.progress.step:,} steps and {time.perf_counter() - begun:.0f} s  {workdir}"
    )
    return metrics


def structure(
    config: Config, num_classes: int, convention: str | None = None
) -> tuple[Network, list[Trainable]]:
    """The network of a run, whose parameters do not count, and what trains in each phase.

    Args:
        config: of the run.
        num_classes: of its data.
        convention: that of its weights; None for that of the first source.

    Raises:
        UserError: there is no such network, or a phase's patterns do not fit it.
    """
    model = config.model
    network = build(
        model.name,
        num_classes=num_classes,
        width=model.width,
        dropout=model.dropout,
        convention=convention or likely_convention(model.weights),
        dtype=config.dtype,
    )
    return network, [
        select_trainable(network, phase.train, phase.batch_norm) for phase in config.phases
    ]


def _open(run: RunDirectory, config: Config, data: Splits, out: Console) -> Training:
    """A new run, or the run in the directory where it was left."""
    metadata, classes = run_metadata(data), len(data.train.classes)
    checkpoints = Checkpoints(run.checkpoints) if run.exists() else None
    progress = checkpoints.newest() if checkpoints else None
    if checkpoints and progress:
        run.check_same(config, metadata)
        network, trainables = structure(config, classes, run.convention())
        variables = checkpoints.variables(progress.step, split(network)[1])
        phase = config.phases[progress.phase].name
        out.print(f"continuing {run.path} in phase {phase} after epoch {progress.epoch}")
    else:
        run.check_empty()
        variables, convention, origin = pretrained(config, classes)
        network, trainables = structure(config, classes, convention)
        checkpoints = checkpoints or Checkpoints(run.checkpoints)
        checkpoints.save_initial(variables)
        run.begin(config, {**metadata, **origin})
        progress = Progress()
    out.print(stage_table(network, config.phases, trainables))
    deep = any(trainable.frontier != network.stage_names[-1] for trainable in trainables)
    if deep and on_cpu(jax.local_devices()):
        _advise(out)
    return Training(
        config=config,
        network=network,
        trainables=trainables,
        variables=variables,
        progress=progress,
        train_data=loader(data.train, config, shuffle=True),
        val_data=loader(data.val, config, shuffle=False),
        checkpoints=checkpoints,
        log=MetricsLog(run.metrics, run.tensorboard, until=progress.step),
        out=out,
        devices=jax.local_devices(),
        store=activations_store(config),
    )


@functools.cache  # once for all runs of a sweep
def _advise(out: Console) -> None:
    if hint := allocator_hint(os.environ, Path("/proc/self/maps")):
        out.print(hint)


def activations_store(config: Config) -> Store:
    """Where activations are kept, in the user's cache directory."""
    folder = platformdirs.user_cache_path("jaxtl") / "activations"
    return Store(folder, config.cache.disk_gb * 1e9)


def run_metadata(data: Splits) -> dict[str, Any]:
    """What must not change while a run lasts, besides its config."""
    return {
        "classes": list(data.train.classes),
        "data": {
            "train": {"images": len(data.train), "sha256": data.train.fingerprint},
            "val": {"images": len(data.val), "sha256": data.val.fingerprint},
        },
    }


def pretrained(config: Config, num_classes: int) -> tuple[Variables, str, dict[str, Any]]:
    """The variables that a new run begins with, its head a fresh one, and where all comes from.

    Returns:
        The variables, the convention of their weights, and what `run.json` says of them.
    """
    try:
        network, record = create(
            config.model.name,
            num_classes=num_classes,
            weights=config.model.weights,
            width=config.model.width,
            image_size=config.model.image_size,
            dropout=config.model.dropout,
            fresh_head=True,
            seed=config.seed,
        )
    except NoWeights as error:
        raise UserError(
            f"no weights can be had: {'; '.join(error.reasons)}. "
            "Try --cfg.model.weights=path/to/file.h5, or =None for random parameters"
        ) from error
    weights = dataclasses.asdict(record) if record else None
    metadata = {"source": absolute(config.data.source), "weights": weights}
    return split(network)[1], network.spec.convention.name, metadata


def loader(source: Source, config: Config, *, shuffle: bool) -> Loader:
    """The images of one split, in the order of a run."""
    return Loader(
        source,
        image_size=config.model.image_size,
        resize=config.data.resize,
        batch_size=config.data.batch_size,
        seed=config.seed,
        shuffle=shuffle,
        memory_bytes=config.data.memory_gb * 1e9,
    )
