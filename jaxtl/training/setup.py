"""From a config to a run: opens the data, gets the weights, trains, and writes the result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import platformdirs
from rich.console import Console

from jaxtl.config import Config
from jaxtl.console import correct_text, metrics_text
from jaxtl.data.loader import Loader
from jaxtl.data.sources import Source, absolute, found_line
from jaxtl.data.splits import Splits, open_splits, skipped
from jaxtl.errors import UserError
from jaxtl.files import as_text
from jaxtl.metrics import Evaluation
from jaxtl.models import Network, Variables, split
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.directory import (
    DataMetadata,
    RunDirectory,
    RunMetadata,
    SplitMetadata,
    find_unfinished,
)
from jaxtl.runs.metrics_log import MetricsLog
from jaxtl.runs.progress import Progress
from jaxtl.runs.trackers import Trackers
from jaxtl.tasks import task_of
from jaxtl.training import hosts
from jaxtl.training.checks import check_monitors, check_plan
from jaxtl.training.feature_store import FeatureStore
from jaxtl.training.loop import AfterEpoch, Training
from jaxtl.training.parallel import all_devices
from jaxtl.training.profiling import Trace, check_planned
from jaxtl.training.report import Page
from jaxtl.training.shared_run import (
    NoLog,
    RunLog,
    SharedCheckpoints,
    as_progress,
    check_same_everywhere,
    check_shared,
    progress_as_json,
)
from jaxtl.training.stage_table import stage_table
from jaxtl.training.trainable import Trainable, select_trainable
from jaxtl.weights import Origin, WeightsRecord, load_weights, plan_network, with_convention
from jaxtl.weights.sources import NoWeights

_NAMED = 1000  # skipped images in `run.json`, whose size is limited where it is read


def train(
    config: Config,
    data: Splits,
    workdir: Path,
    out: Console,
    profile: range = range(0),
    after_epoch: AfterEpoch | None = None,
    trackers: Sequence[str] = (),
    show_test: bool = False,
) -> dict[str, float]:
    """Trains a classifier, or continues the run in `workdir`.

    Args:
        config: the config of the run.
        data: the data from `open_data`.
        workdir: the run directory: a new one, or that of a run of the same config and data.
        out: the terminal.
        profile: the steps to trace into the run directory, counted from 0; none by default.
        after_epoch: called after each epoch, once it is saved; what it raises ends the run.
        trackers: what gets the metrics too, see `Trackers`.
        show_test: whether to print the result on the test: not where it could choose among runs.

    Returns:
        What `run.json` says of the result, see `result_of`.

    Raises:
        UserError: the user has to change something; the message says what.
        Interrupted: a signal asked the run to stop; it is saved.
    """
    begun, task = time.perf_counter(), task_of(data.train.labels)
    _check(config, data, profile)
    for part in data.named.values():
        out.print(found_line(part))
    network, trainables = hosts.together(lambda: plan_run(config, len(data.train.classes)))
    config = config.with_monitor(task.monitors[0])
    hosts.together(lambda: check_monitors(config, data, out))
    run = hosts.together(lambda: RunDirectory(workdir))
    with contextlib.ExitStack() as opened:
        training = _open(run, config, data, network, trainables, out, opened, profile, trackers)
        training.after_epoch = after_epoch
        evaluation, tested = training.run()
        thresholds = task.thresholds(evaluation)
        asked = len(data.train.classes), config.phases[-1].monitor, thresholds
        val = task.metrics(evaluation, *asked)
        test = {} if tested is None else task.metrics(tested, *asked)
        result = result_of(training.progress, val, test)

        def finish() -> None:
            run.finish(result, () if thresholds is None else thresholds.tolist())
            if training.trace.missing:
                out.print("no step was traced: the run ended before --profile began")
            training.page.at_the_end(evaluation, data.val, training.variables, thresholds)

        hosts.from_first(finish)
    steps, seconds = training.progress.step, time.perf_counter() - begun
    said = _result_text(evaluation, val, "val_")
    out.print(f"{said} after {steps:,} steps and {seconds:.0f} s  {workdir}")
    if tested is not None and show_test:
        out.print(_result_text(tested, test, "test_"))
    return result


def _result_text(evaluation: Evaluation, metrics: Mapping[str, float], prefix: str) -> str:
    counts = int(evaluation.sums.top1), int(evaluation.sums.images)
    return f"{metrics_text(metrics, prefix)}  {correct_text(*counts)}"


def choose_workdir(config: Config, data: Splits, name: str, new: bool, out: Console) -> Path:
    """Finds the unfinished run of a config and data in `runs/`, or names a new one there.

    Args:
        config, data, out: as for `train`.
        name: what the name of a new one begins with.
        new: whether to leave an unfinished run alone.
    """

    def choose() -> str:
        found = None if new else find_unfinished(Path("runs"), config, run_metadata(config, data))
        if found is None:
            return str(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
        out.print(f"{found} is an unfinished run of this config and data; --new starts anew")
        return str(found)

    return Path(hosts.from_first(choose))


def open_data(config: Config) -> Splits:
    """Opens the data of a run.

    Raises:
        UserError: there is no such source, or its images and labels cannot be used.
    """
    return open_splits(config.data)


def _check(config: Config, data: Splits, profile: range) -> None:
    """Refuses on every host what cannot be trained, or traced."""
    if hosts.several():
        check_same_everywhere(config, run_metadata(config, data))
    hosts.together(lambda: check_plan(config, data.train, all_devices()))
    steps_per_epoch = -(-len(data.train) // config.data.batch_size)
    planned = steps_per_epoch * sum(phase.epochs for phase in config.phases)
    hosts.together(lambda: check_planned(profile, planned))


def plan_run(config: Config, num_classes: int) -> tuple[Network, list[Trainable]]:
    """Plans the network of a run and what trains in each phase.

    Raises:
        UserError: there is no such network, or a phase's patterns do not fit it.
    """
    model = config.model
    network = plan_network(
        model.name,
        num_classes=num_classes,
        weights=model.weights,
        width=model.width,
        dropout=model.dropout,
        dtype=config.dtype,
        fresh_head=True,
    )
    return network, [select_trainable(network, p.train, p.batch_norm) for p in config.phases]


def pretrained(config: Config, network: Network) -> tuple[Network, Variables, WeightsRecord | None]:
    """The variables that a new run begins with, with a new head.

    Args:
        config: the config of the run.
        network: the network from `plan_run`.

    Returns:
        The structure in the convention of the weights, the variables, and where they came from.

    Raises:
        UserError: no source has the weights, or they do not fit the network.
    """
    try:
        return load_weights(
            network,
            config.model.weights,
            image_size=config.model.image_size,
            fresh_head=True,
            seed=config.seed,
        )
    except NoWeights as error:
        raise UserError(
            f"no weights can be had: {'; '.join(error.reasons)}. "
            "Try --cfg.model.weights=path/to/file.h5, or =None for random parameters"
        ) from error


def origin_of(weights: WeightsRecord | None, network: Network, config: Config) -> Origin | None:
    """Where the variables from `pretrained` came from; None for random ones."""
    size, seed = config.model.image_size, config.seed
    return Origin.of(weights, network, image_size=size, seed=seed)


def run_metadata(config: Config, data: Splits) -> RunMetadata:
    """The metadata of a run before its weights are known."""
    splits = {
        name: SplitMetadata(images=len(part), sha256=part.fingerprint)
        for name, part in data.named.items()
    }
    left_out = skipped(data)
    return RunMetadata(
        classes=data.train.classes,
        data=DataMetadata(**splits),
        source=absolute(config.data.source),
        skipped=tuple({"path": as_text(path), "reason": why} for path, why in left_out[:_NAMED]),
        skipped_images=len(left_out),
        task=task_of(data.train.labels).name,
    )


def result_of(
    progress: Progress, val: Mapping[str, float], test: Mapping[str, float]
) -> dict[str, float]:
    """What `run.json` says of a complete run.

    Args:
        progress: where the run stands.
        val, test: the metrics of its validation and of its test; none without a test.

    Returns:
        Steps, best epoch of the last phase, validation metrics, and those of the test with names
        that begin with `test_`.
    """
    best_epoch = progress.best_epoch or progress.epoch
    return {
        "step": progress.step,
        "best_epoch": best_epoch,
        **val,
        **{f"test_{name}": value for name, value in test.items()},
    }


def _open(
    run: RunDirectory,
    config: Config,
    data: Splits,
    network: Network,
    trainables: list[Trainable],
    out: Console,
    opened: contextlib.ExitStack,
    profile: range,
    trackers: Sequence[str],
) -> Training:
    """Begins a new run, or continues the run in the directory from its last checkpoint.

    What it opens is closed with `opened`, also when a run cannot begin. On several hosts the first
    one opens the run, and the others get what it found.
    """
    own: list[Checkpoints] = []

    def lock() -> None:
        opened.enter_context(run.locked())

    def begin() -> dict[str, Any]:
        checkpoints, progress, convention, variables = _begin(
            run, config, data, network, out, opened
        )
        own.append(checkpoints)
        return {
            "convention": convention,
            "progress": progress_as_json(progress),
            "variables": variables,
        }

    hosts.from_first(lock)
    check_shared(run)
    begun = hosts.from_first(begin)
    progress, test = as_progress(begun["progress"]) or Progress(), data.test
    if test is not None and not hosts.from_first(lambda: run.metadata().data.test is not None):
        out.print("the run began without these test images, and goes on without them")
        test = None
    network = with_convention(network, begun["convention"])
    out.print(stage_table(network, config.scaled_phases, trainables))
    return Training(
        config=config,
        network=network,
        trainables=trainables,
        variables=begun["variables"],
        progress=progress,
        train_data=loader(data.train, config, shuffle=True),
        val_data=loader(data.val, config, shuffle=False),
        test_data=None if test is None else loader(test, config, shuffle=False),
        directory=run,
        checkpoints=SharedCheckpoints(*own) if hosts.several() else own[0],
        log=hosts.together(lambda: _open_log(run, progress, opened, trackers) if own else NoLog()),
        out=out,
        devices=all_devices(),
        store=feature_store(config),
        trace=hosts.together(
            lambda: Trace(run.path / "profile", profile, done=progress.step, here=hosts.is_first())
        ),
        page=Page(run, config, network, trainables, len(data.train), out),
    )


def _open_log(
    run: RunDirectory, progress: Progress, opened: contextlib.ExitStack, trackers: Sequence[str]
) -> RunLog:
    tracked = opened.enter_context(Trackers(trackers, run))
    # An epoch that is not validated has no lines yet.
    until = progress.step - progress.batch
    log = MetricsLog(run.metrics, run.tensorboard, until=until, trackers=tracked)
    opened.callback(log.close)
    return log


def _begin(
    run: RunDirectory,
    config: Config,
    data: Splits,
    network: Network,
    out: Console,
    opened: contextlib.ExitStack,
) -> tuple[Checkpoints, Progress, str, Variables]:
    """The checkpoints of a run, its progress, and the convention and the variables to go on with.

    A new run is written down first.
    """
    metadata = run_metadata(config, data)
    checkpoints = None
    if run.checkpoints.exists():
        checkpoints = opened.enter_context(contextlib.closing(Checkpoints(run.checkpoints)))
    progress = checkpoints.newest() if checkpoints else None
    if checkpoints and progress:
        run.check_same(config, metadata)
        run.note_versions()
        network = with_convention(network, run.metadata().convention)
        phase = run.phase(progress.phase)
        finished = progress.finished(phase)
        number = progress.result_number(phase) if finished else progress.number
        variables = checkpoints.variables(number, split(network)[1])
        out.print(f"continuing {run.path} in phase {phase.name} after epoch {progress.epoch}")
    else:
        run.check_empty()
        if run.exists() and run.metrics.exists() and run.metrics.stat().st_size:
            out.print(f"{run.path} has metrics and no checkpoint: its run begins anew")
        network, variables, weights = pretrained(config, network)
        if checkpoints is None:
            checkpoints = opened.enter_context(contextlib.closing(Checkpoints(run.checkpoints)))
        origin = origin_of(weights, network, config)
        checkpoints.save_initial(variables, origin, full=config.checkpoint.full)
        run.begin(config, metadata.model_copy(update={"weights": weights}))
        progress = Progress()
    return checkpoints, progress, network.spec.convention.name, variables


def feature_store(config: Config) -> FeatureStore:
    """The store of frozen activations in the user's cache directory."""
    folder = platformdirs.user_cache_path("jaxtl") / "activations"
    return FeatureStore(folder, config.cache.disk_gb * 1e9)


def loader(source: Source, config: Config, *, shuffle: bool) -> Loader:
    """A loader of one split, in the order that the run's seed gives."""
    return Loader(
        source,
        image_size=config.model.image_size,
        resize=config.data.resize,
        batch_size=config.data.batch_size,
        seed=config.seed,
        shuffle=shuffle,
        balanced=shuffle and config.data.balanced,
        memory_bytes=config.data.memory_gb * 1e9,
        retry_seconds=config.data.retry_seconds,
        part=(jax.process_index(), jax.process_count()),
    )
