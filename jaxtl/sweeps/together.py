"""Trains runs that only train a head in one program, and writes their directories.

One checkpoint holds the variables of all of them; each run directory points into it
(docs/decisions/0023-one-checkpoint-for-runs-that-train-together.md).
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxtl.config import Augment, Config
from jaxtl.config.config_file import leaves
from jaxtl.console import counter
from jaxtl.data.loader import Loader
from jaxtl.data.splits import Splits
from jaxtl.files import replacing
from jaxtl.labels import is_multi_label
from jaxtl.metrics import CLASS_METRICS, quality
from jaxtl.models import Network, Variables, initial_variables, output_spec, split, stage_of
from jaxtl.runs.directory import RunDirectory, RunMetadata
from jaxtl.runs.groups import Group
from jaxtl.runs.metrics_log import MetricsLog
from jaxtl.sweeps.heads import AfterEpoch, HeadRun, HeadTraining
from jaxtl.sweeps.variations import Variation
from jaxtl.training import setup
from jaxtl.training.evaluation import Evaluator
from jaxtl.training.feature_cache import Feed, FrozenPass, Plan, open_feed, plan
from jaxtl.training.parallel import replicate
from jaxtl.training.report import Page
from jaxtl.training.stopping import Stop, stop_signals
from jaxtl.training.trainable import Trainable, partition

GROUPS = "heads"
"""The folder of a sweep that holds a checkpoint for each group of runs that trained together."""

_FREE = {"lr": 1.0, "weight_decay": 0.0, "label_smoothing": 0.0}  # keys that phases may differ in
_COPIES = 8  # of a head: start, parameters, gradients, updates, Adam's two, results old and new
_WRITERS = 8  # threads, which mostly wait for the disk
_Planned = tuple[Plan, Config, Loader, Augment]


class Family(NamedTuple):
    """Runs that differ in learning rates, weight decays, label smoothings and seeds alone."""

    variations: list[Variation]
    data: Splits
    network: Network
    trainables: list[Trainable]


def heads_may_differ_in(key: str, config: Config) -> bool:
    """Whether heads on one trunk may have other values of a dotted key."""
    if key == "seed":  # without weights it makes the frozen stages too
        return config.model.weights is not None
    parts = key.split(".")
    return parts[0] == "phases" and parts[-1] in _FREE


def common(config: Config) -> str:
    """The config without what the runs of a family may differ in."""
    phases = tuple(
        phase.model_copy(
            update={key: value for key, value in _FREE.items() if getattr(phase, key) != "auto"}
        )
        for phase in config.phases
    )
    seed = 0 if heads_may_differ_in("seed", config) else config.seed
    shared = config.model_copy(update={"phases": phases, "seed": seed})
    return json.dumps(shared.model_dump())  # pydantic's JSON knows no names that are not UTF-8


def groups(family: Family) -> list[Family]:
    """The runs of a family, as many together as memory holds heads of."""
    # Runs of one seed stand in a row: they train on the same batches.
    runs = sorted(family.variations, key=lambda variation: variation.config.seed)
    most = _room_for_heads(family) if runs else 1
    parts = [runs[start : start + most] for start in range(0, len(runs), most)]
    return [family._replace(variations=part) for part in parts]


def _room_for_heads(family: Family) -> int:
    shapes = split(family.network)[1]
    head = sum(4 * shapes[path].size for path in _head_paths(family.network))
    memory = family.variations[0].config.cache.memory_gb * 1e9
    return max(1, int(memory // (_COPIES * head)))


def can_train_together(family: Family, runs: int) -> bool:
    """Whether so many runs like those of a family train together, all of them."""
    fit = runs <= _room_for_heads(family) and bool(_plan_features(family, runs))
    return fit and not _monitors(family)


def train_together(
    group: Family,
    workdir: Path,
    out: Console,
    done: Callable[[Sequence[HeadRun]], None],
    after_epoch: AfterEpoch | None = None,
) -> None:
    """Trains runs that have not begun in one program, and writes their directories.

    Args:
        group: the runs, from `groups`.
        workdir: the folder of their directories.
        out: the terminal.
        done: is called with the runs once they are written, and before a signal ends the sweep. It
            is not called where they train more than a head, where a phase monitors a metric of
            classes, or where the features that they train on are not kept in memory: then they have
            to train one by one.
        after_epoch: as for `HeadTraining`.

    Raises:
        Interrupted: a signal asked for it; nothing is saved of runs that are not complete.
        UserError: no source has the weights, or something else that the user can fix.
    """
    if not (plans := _plan_features(group, len(group.variations))):
        return
    configs = [variation.config for variation in group.variations]
    if monitors := _monitors(group):
        what = f"{' and '.join(sorted(monitors))} of each"
        out.print(f"\n{len(configs)} runs train one by one, because of the {what}")
        return
    first, *others = map(leaves, configs)
    keys = [key for key in first if any(other[key] != first[key] for other in others)]
    out.print(f"\n{len(configs)} runs train together: they differ in {', '.join(keys)}")
    network, variables, weights = setup.pretrained(configs[0], group.network)
    variables = replicate(variables, jax.local_devices())
    for phase, (planned, *_) in zip(configs[0].phases, plans, strict=False):
        out.print(f"{phase.name}: {planned.why}")
    with stop_signals() as stop:
        training = _heads(group, plans, network, variables, out, stop)
        if training is None:
            return
        training.after_epoch = after_epoch
        training.train(stop)
        metadata = setup.run_metadata(configs[0], group.data)
        _write_runs(training, group, metadata.model_copy(update={"weights": weights}), workdir)
        done(training.runs)
        stop.check()


def _monitors(family: Family) -> frozenset[str]:
    """What phases monitor that heads together do not know, who only have sums over images."""
    if is_multi_label(family.data.train.labels):
        return frozenset({"mAP"})  # which each has in its result, whatever it monitors
    phases = family.variations[0].config.phases
    return frozenset(name for p in phases if (name := p.monitor) and name in CLASS_METRICS)


def _plan_features(group: Family, runs: int) -> list[_Planned]:
    """Decides how the features are kept; nothing where the runs cannot train together.

    Returns:
        A plan for the training features of each phase, one for the validation of an epoch, one for
        that of a result and, if there is one, one for its test, each with its config, images and
        augmentation: a single run measures its result by the whole network, without rounding to
        `cache.dtype`.
    """
    config, stage = group.variations[0].config, group.network.stage_names[-1]
    if config.on_nan != "stop":
        return []  # each run goes back where it diverges, and the others do not
    if any(phase.average_best for phase in config.phases):
        return []  # each run chooses the epochs that it averages
    if any(phase.lr == "auto" for phase in config.phases):
        return []  # each run finds its own
    if runs < 2 or any(trainable.frontier != stage for trainable in group.trainables):
        return []
    row = output_spec(group.network, config.model.image_size, stage)
    unrounded = config.cache.model_copy(update={"dtype": "float32"})
    exact = config.model_copy(update={"cache": unrounded})
    parts = group.data.named.values()
    train, val, *test = (setup.loader(part, config, shuffle=False) for part in parts)
    plans: list[_Planned] = []
    for phase in config.phases:
        planned = plan(config, row, len(train), epochs=phase.epochs, runs=runs, mixes=phase.mixes)
        plans.append((planned, config, train, config.augment))
    # All of them have to fit on the disk together; phases with as many views share theirs.
    beside = sum({planned.views: planned.size for planned, *_ in plans}.values())
    sizes: dict[tuple[str, int], int] = {}  # by what they share a table for
    for kept, images in ((config, val), (exact, val), *((exact, images) for images in test)):
        table = kept.cache.dtype, id(images)
        others = sum(size for other, size in sizes.items() if other != table)
        planned = plan(kept, row, len(images), epochs=runs, views=1, beside=beside + others)
        plans.append((planned, kept, images, Augment()))
        sizes[table] = planned.size
    return plans if all(planned.cached and planned.resident for planned, *_ in plans) else []


def _heads(
    group: Family,
    plans: Sequence[_Planned],
    network: Network,
    variables: Variables,
    out: Console,
    stop: Stop,
) -> HeadTraining | None:
    """The heads of a group before their first step; None if the features cannot be kept.

    The variables are those of the network, on all devices.
    """
    configs = [variation.config for variation in group.variations]
    loaders = {c.seed: setup.loader(group.data.train, c, shuffle=True) for c in configs}
    paths = _head_paths(network)
    heads = {seed: initial_variables(network, seed, paths) for seed in loaders}
    feeds = _open_features(plans, network, variables, out, stop)
    if feeds is None:
        return None
    test = feeds.pop() if group.data.test is not None else None
    return HeadTraining(
        runs=[HeadRun(variation) for variation in group.variations],
        network=network,
        trainables=group.trainables,
        trunk=partition(variables, paths)[1],
        heads={path: jnp.stack([heads[c.seed][path] for c in configs]) for path in paths},
        feeds=feeds,
        test=test,
        loaders=loaders,
        out=out,
    )


def _open_features(
    plans: Sequence[_Planned],
    network: Network,
    variables: Variables,
    out: Console,
    stop: Stop,
) -> list[Feed] | None:
    """Finds the features of each plan, or makes them; None where they cannot be kept after all."""
    feeds: list[Feed] = []
    opened: dict[tuple[int, str, int], Feed] = {}  # phases with as many views share a table
    for planned, config, images, augmentation in plans:
        key = planned.views, config.cache.dtype, id(images)
        if key not in opened:
            work = FrozenPass(
                config=config,
                network=network,
                variables=variables,
                loader=images,
                stage=network.stage_names[-1],
                views=planned.views,
                augmentation=augmentation,
            )
            feed = open_feed(planned, work, setup.feature_store(config), out, stop.is_set)
            stop.check()
            assert feed is not None  # nothing but a signal ends a pass early
            if feed.table is None:
                return None
            opened[key] = feed
        feeds.append(opened[key])
    return feeds


def _head_paths(network: Network) -> list[str]:
    return [path for path in split(network)[1] if stage_of(path) == network.stage_names[-1]]


def _write_runs(
    training: HeadTraining, group: Family, metadata: RunMetadata, workdir: Path
) -> None:
    """Writes the variables of all runs, and then the directory of each that did not diverge.

    Only the best run of the group gets a report: 64 reports would take longer than all the rest.
    """
    results = {i: run.result for i, run in enumerate(training.runs) if run.result is not None}
    if not results:
        return
    (workdir / GROUPS).mkdir(exist_ok=True)
    # A name that no other sweep has: a run that is moved there must not find other variables.
    folder = workdir / GROUPS / secrets.token_hex(4)
    config = training.runs[0].variation.config
    origin = setup.origin_of(metadata.weights, training.network, config)
    full = config.checkpoint.full
    written = Group.write(folder, training.trunk, training.heads, origin, full=full)

    def write(index: int) -> None:
        run = training.runs[index]
        with replacing(workdir / run.variation.name) as part:
            complete = metadata.model_copy(update={"result": results[index]})
            _write_run(RunDirectory(part), run, complete, written, index)

    # Most of the time goes by until the files are on disk.
    with (
        counter(training.out, "writing the run directories", len(results)) as show,
        ThreadPoolExecutor(_WRITERS) as pool,
    ):
        for number, _ in enumerate(pool.map(write, results), 1):
            show(number)
    best = max(results, key=lambda i: quality(results[i]["accuracy"], results[i]["loss"]))
    head = {path: value[best] for path, value in training.heads.items()}
    variables = replicate(training.trunk | head, jax.local_devices())
    evaluator = Evaluator(training.network, jax.local_devices())
    directory = RunDirectory(workdir / training.runs[best].variation.name)
    evaluation = evaluator.evaluate(variables, training.feeds[-1], keep_probabilities=True)
    config, data = training.runs[best].variation.config, group.data
    page = Page(
        directory, config, training.network, group.trainables, len(data.train), training.out
    )
    page.at_the_end(evaluation, data.val, variables)


def _write_run(
    directory: RunDirectory, run: HeadRun, metadata: RunMetadata, group: Group, index: int
) -> None:
    """Writes the directory of a complete run, as `jaxtl.train` leaves it but for variables."""
    directory.path.mkdir()
    number = run.progress.result_number(run.variation.config.phases[-1])
    group.add(directory.checkpoints, index, number, run.progress)
    log = MetricsLog(directory.metrics, directory.tensorboard, until=0)
    with contextlib.closing(log):
        for line in run.metrics:
            log.write(*line)
    directory.begin(run.variation.config, metadata)
