"""Trains runs that only train a head in one program, and writes their directories.

One checkpoint holds the variables of all of them; each run directory points into it
(docs/decisions/0023-one-checkpoint-for-runs-that-train-together.md).
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxtl.console import counter
from jaxtl.data.sources import Splits
from jaxtl.files import replacing
from jaxtl.metrics import quality
from jaxtl.models import Network, initial_variables, output_spec, split, stage_of
from jaxtl.runs.checkpoints import Group
from jaxtl.runs.directory import RunDirectory, RunMetadata
from jaxtl.runs.metrics_log import MetricsLog
from jaxtl.sweeps.features import FeaturePlans, open_features, plan_features
from jaxtl.sweeps.heads import HeadRun, HeadTraining
from jaxtl.sweeps.variations import Variation
from jaxtl.training import setup
from jaxtl.training.evaluation import Evaluator
from jaxtl.training.feature_cache import FrozenPass
from jaxtl.training.loop import Diverged, stop_signals
from jaxtl.training.parallel import replicate
from jaxtl.training.trainable import Trainable, partition

GROUPS = "heads"
"""The folder of a sweep that holds a checkpoint for each group of runs that trained together."""

_COPIES = 8  # of a head: start, parameters, gradients, updates, Adam's two, results old and new


@dataclasses.dataclass(frozen=True)
class Family:
    """Runs that differ in learning rates, weight decays, label smoothings and seeds alone."""

    variations: list[Variation]
    data: Splits
    network: Network
    trainables: list[Trainable]


def train_together(
    family: Family, workdir: Path, out: Console
) -> dict[str, dict[str, float] | Diverged]:
    """Trains the runs of a family that can train together, as many at once as fit in memory.

    Args:
        family: runs that have not begun.
        workdir: of the sweep.
        out: the terminal.

    Returns:
        The result of each run that was trained, by name, or why it diverged.

    Raises:
        Interrupted: a signal asked for it; nothing of a group that is not complete is saved.
    """
    network, outcomes = family.network, {}
    head = sum(4 * split(network)[1][path].size for path in _head_paths(network))
    memory = family.variations[0].config.cache.memory_gb * 1e9 if family.variations else 0
    most = max(1, int(memory // (_COPIES * head)))
    for first in range(0, len(family.variations), most):
        group = dataclasses.replace(family, variations=family.variations[first : first + most])
        if plans := _plan(group):
            for run in _train_group(group, plans, workdir, out):
                outcomes[run.variation.name] = run.diverged or run.result
    return outcomes


def _plan(group: Family) -> FeaturePlans:
    """How the features are kept; empty unless two runs or more only train a head, on features that
    fit in memory."""
    config, stage = group.variations[0].config, group.network.stage_names[-1]
    runs = len(group.variations)
    if runs < 2 or any(trainable.frontier != stage for trainable in group.trainables):
        return []
    row = output_spec(group.network, config.model.image_size, stage)
    plans = plan_features(config, row, *map(len, group.data), runs=runs)
    return plans if all(planned.cached and planned.resident for planned, _ in plans) else []


def _train_group(
    group: Family, plans: FeaturePlans, workdir: Path, out: Console
) -> Sequence[HeadRun]:
    """Trains runs in one program and writes them; none where the features cannot be kept."""
    configs = [variation.config for variation in group.variations]
    keys = dict.fromkeys(key for variation in group.variations for key in variation.values)
    out.print(f"\n{len(configs)} runs train together: they differ in {', '.join(keys)}")
    network, variables, weights = setup.pretrained(configs[0], group.network)
    stage, devices = network.stage_names[-1], jax.local_devices()
    loaders = {c.seed: setup.loader(group.data.train, c, shuffle=True) for c in configs}
    work = FrozenPass(
        config=configs[0],
        network=network,
        variables=replicate(variables, devices),
        loader=loaders[configs[0].seed],
        stage=stage,
        row=output_spec(network, configs[0].model.image_size, stage),
        views=1,
        augmentation=configs[0].augment,
        devices=devices,
    )
    val = setup.loader(group.data.val, configs[0], shuffle=False)
    store, paths = setup.feature_store(configs[0]), _head_paths(network)
    with stop_signals() as stop:
        feeds = open_features(plans, work, val, store, out, stop.is_set)
        if feeds is None:
            return []
        heads = {seed: initial_variables(network, seed, paths) for seed in loaders}
        training = HeadTraining(
            runs=[HeadRun(variation) for variation in group.variations],
            network=network,
            trainables=group.trainables,
            trunk=partition(work.variables, paths)[1],
            heads={path: jnp.stack([heads[c.seed][path] for c in configs]) for path in paths},
            feeds=feeds,
            loaders=loaders,
            out=out,
            devices=devices,
        )
        training.train(stop)
    metadata = setup.run_metadata(configs[0], group.data).model_copy(update={"weights": weights})
    _write_runs(training, metadata, workdir)
    return training.runs


def _head_paths(network: Network) -> list[str]:
    return [path for path in split(network)[1] if stage_of(path) == network.stage_names[-1]]


def _write_runs(training: HeadTraining, metadata: RunMetadata, workdir: Path) -> None:
    """Writes the variables of all runs, and then the directory of each that did not diverge.

    Only the best run gets a report: 64 reports would take longer than everything before them.
    """
    complete = {i: run.result for i, run in enumerate(training.runs) if run.result is not None}
    if not complete:
        return
    (workdir / GROUPS).mkdir(exist_ok=True)
    # A name that no other sweep has: a run that is moved there must not find other variables.
    folder = workdir / GROUPS / secrets.token_hex(4)
    group = Group.write(folder, training.trunk, training.heads)
    with counter(training.out, "writing the run directories", len(complete)) as show:
        for number, (index, result) in enumerate(complete.items(), start=1):
            run = training.runs[index]
            with replacing(workdir / run.variation.name) as part:
                done = metadata.model_copy(update={"result": result})
                _write_run(RunDirectory(part), run, done, group, index)
            show(number)
    best = max(complete, key=lambda i: quality(complete[i]["accuracy"], complete[i]["loss"]))
    head = {path: value[best] for path, value in training.heads.items()}
    variables = replicate(training.trunk | head, training.devices)
    evaluation = Evaluator(training.network, training.devices).evaluate(
        variables, training.feeds[-1]
    )
    directory = RunDirectory(workdir / training.runs[best].variation.name)
    setup.draw_report(directory, evaluation, training.out)


def _write_run(
    directory: RunDirectory, run: HeadRun, metadata: RunMetadata, group: Group, index: int
) -> None:
    """Writes the directory of a complete run, as `jaxtl.train` leaves it but for variables."""
    directory.path.mkdir()
    step = run.progress.result_step(run.variation.config.phases[-1])
    group.add(directory.checkpoints, index, step, run.progress)
    log = MetricsLog(directory.metrics, directory.tensorboard, until=0)
    for line in run.metrics:
        log.write(*line)
    log.close()
    directory.begin(run.variation.config, metadata)
