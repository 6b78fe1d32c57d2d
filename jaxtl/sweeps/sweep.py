"""Trains the variations of a config, one run directory each."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pydantic
from rich.console import Console

from jaxtl.config.config_file import Config, differences, leaves
from jaxtl.console import counter, metrics_text
from jaxtl.data.sources import Splits, open_splits
from jaxtl.errors import UserError
from jaxtl.files import is_unfinished, replacing, write_json
from jaxtl.models import Network, Variables, initial_variables, output_spec, split, stage_of
from jaxtl.runs.directory import RunDirectory, RunMetadata
from jaxtl.sweeps.heads import HeadTraining, feature_plans
from jaxtl.sweeps.outcome import Outcome, write_run
from jaxtl.sweeps.ranking import Ranked, ranked, ranking_table, write_ranking
from jaxtl.sweeps.variations import Variation
from jaxtl.training.loop import Diverged
from jaxtl.training.parallel import check_batch_size, check_single_process
from jaxtl.training.setup import (
    draw_report,
    feature_store,
    loader,
    plan_run,
    pretrained,
    run_metadata,
    train,
)
from jaxtl.training.trainable import Trainable

_DIVERGED = "diverged.json"  # beside the run directories: what each said
_COPIES = 12  # of a head: parameters, gradients, Adam's two, and those of newest and best


def sweep(variations: Sequence[Variation], workdir: Path, out: Console) -> list[Ranked]:
    """Trains what is left to train of a sweep.

    Args:
        variations: its runs.
        workdir: where their directories lie; a new one, or that of the same sweep.
        out: the terminal.

    Returns:
        The runs, best first.

    Raises:
        UserError: something that the user can mend.
        Interrupted: a signal asked the sweep to stop.
    """
    check_single_process()
    families = _families(variations)
    with RunDirectory(workdir).locked():
        _begin(workdir, variations)
        results: dict[str, Any] = {}
        for family in families:
            results |= _known(family, workdir)
        out.print(f"{len(variations)} runs in {workdir}, {len(results)} of them complete")
        for family in families:
            results |= _train(family, workdir, results.keys(), out)
        keys = list(dict.fromkeys(key for variation in variations for key in variation.values))
        runs = []
        for variation in variations:
            values = leaves(variation.config) | variation.values
            varied = {key: values.get(key, "") for key in keys}
            runs.append(Ranked(variation.name, varied, results[variation.name]))
        runs = ranked(runs)
        table = workdir / "sweep.csv"
        write_ranking(table, runs)
    best = runs[0]
    if best.result is None:
        raise UserError(f"every run of {workdir} diverged; try lower learning rates")
    out.print(ranking_table(runs, table))
    means = {name: best.result[name] for name in ("accuracy", "loss")}
    out.print(f"best: {workdir / best.name}  {metrics_text(means, 'val_')}")
    return runs


@dataclasses.dataclass(frozen=True)
class _Family:
    """Runs that differ in learning rates, weight decays, label smoothings and seeds alone."""

    variations: list[Variation]
    data: Splits
    network: Network
    trainables: list[Trainable]


def _families(variations: Sequence[Variation]) -> list[_Family]:
    """All runs, by what they have in common; what is wrong with one shows before the first trains.

    Raises:
        UserError: a config does not fit its network, data or devices.
    """
    members: dict[Hashable, list[Variation]] = {}
    for variation in variations:
        members.setdefault(_common(variation.config), []).append(variation)
    splits = functools.cache(open_splits)
    families = []
    for group in members.values():
        config = group[0].config
        try:
            check_batch_size(config.data.batch_size, jax.local_devices())
            data = splits(
                config.data.source, val_fraction=config.data.val_fraction, seed=config.data.seed
            )
            network, trainables = plan_run(config, len(data.train.classes))
        except UserError as error:
            raise UserError(f"variation {group[0].name}: {error}") from error
        families.append(_Family(group, data, network, trainables))
    return families


def _common(config: Config) -> Hashable:
    """The config without what the runs of a family may differ in."""
    free = {"lr": 1.0, "weight_decay": 0.0, "label_smoothing": 0.0}
    phases = tuple(phase.model_copy(update=free) for phase in config.phases)
    # Without weights the seed makes the frozen stages too.
    seed = config.seed if config.model.weights is None else 0
    return config.model_copy(update={"phases": phases, "seed": seed}).model_dump_json()


def _begin(workdir: Path, variations: Sequence[Variation]) -> None:
    """Writes down what the sweep is, or refuses to continue one as something that it is not.

    Raises:
        UserError: the directory holds other files, or another sweep; what differs is named.
    """
    path = workdir / "sweep.json"
    if not path.exists():
        if any(not is_unfinished(file) for file in workdir.iterdir()):
            raise UserError(f"{workdir} holds other files; name a new directory with --workdir")
        write_json(path, {run.name: run.config.model_dump() for run in variations})
        return
    try:
        known = {
            name: Config.model_validate_json(json.dumps(config))
            for name, config in json.loads(path.read_text()).items()
        }
    except (ValueError, pydantic.ValidationError) as error:
        raise UserError(f"{path} is damaged, or of another version of this package") from error
    if what := _other_sweep(known, {run.name: run.config for run in variations}):
        raise UserError(
            f"{workdir} is a sweep of other runs ({what}); name another --workdir, or give the "
            "same command to continue it"
        )


def _other_sweep(known: dict[str, Config], asked: dict[str, Config]) -> str:
    """How two sweeps differ; empty if they do not."""
    if len(known) != len(asked):
        return f"{len(known)} runs, and not {len(asked)}"
    for (name, before), (new_name, after) in zip(known.items(), asked.items(), strict=True):
        if changed := differences(before, after):
            return f"{name}: {'; '.join(changed)}"
        if name != new_name:
            return f"{name} is called {new_name} now"
    return ""


def _known(family: _Family, workdir: Path) -> dict[str, Any]:
    """The results of the runs that are complete, None for those that diverged."""
    results: dict[str, Any] = {}
    diverged = _diverged(workdir)
    for variation in family.variations:
        if variation.name in diverged:
            results[variation.name] = None
            continue
        run = RunDirectory(workdir / variation.name)
        if run.exists() and (result := run.metadata().result):
            run.check_same(variation.config, run_metadata(variation.config, family.data))
            results[variation.name] = result
    return results


def _train(family: _Family, workdir: Path, done: Any, out: Console) -> dict[str, Any]:
    """Trains what is left to train of a family: new runs together where they can be."""
    left = [variation for variation in family.variations if variation.name not in done]
    new = [variation for variation in left if not (workdir / variation.name).exists()]
    results: dict[str, Any] = {}
    most = _most_together(family)
    for first in range(0, len(new), most):
        group = dataclasses.replace(family, variations=new[first : first + most])
        if _together(group, len(group.variations)):
            results |= _train_together(group, workdir, out)
    for variation in left:
        if variation.name in results:
            continue
        out.print(f"\n{variation.name}")
        run = workdir / variation.name
        try:
            results[variation.name] = train(variation.config, family.data, run, out)
        except Diverged as error:
            _note_diverged(workdir, variation.name, error, out)
            results[variation.name] = None
    return results


def _note_diverged(workdir: Path, name: str, error: Diverged, out: Console) -> None:
    """Says that a run diverged, and keeps it: a sweep that is continued does not train it again."""
    out.print(f"{name}: {error}")
    write_json(workdir / _DIVERGED, _diverged(workdir) | {name: str(error)})


def _diverged(workdir: Path) -> dict[str, str]:
    """What each run that diverged said."""
    path = workdir / _DIVERGED
    return json.loads(path.read_text()) if path.exists() else {}


def _most_together(family: _Family) -> int:
    """How many heads, with all that is kept of each on a device, fit in `cache.memory_gb`."""
    shapes = split(family.network)[1]
    head = sum(4 * shapes[path].size for path in _head_paths(family.network))
    return max(1, int(family.variations[0].config.cache.memory_gb * 1e9 // (_COPIES * head)))


def _head_paths(network: Network) -> list[str]:
    return [path for path in split(network)[1] if stage_of(path) == network.stage_names[-1]]


def _together(family: _Family, runs: int) -> bool:
    """Whether so many runs only train a head, on features that are kept in memory."""
    config, stage = family.variations[0].config, family.network.stage_names[-1]
    if runs < 2 or any(trainable.frontier != stage for trainable in family.trainables):
        return False
    row = output_spec(family.network, config.model.image_size, stage)
    plans = feature_plans(config, row, *map(len, family.data), runs=runs)
    return all(planned.cached and planned.resident for planned, _ in plans)


def _train_together(family: _Family, workdir: Path, out: Console) -> dict[str, Any]:
    """Trains all runs of a family in one program; none of them where that is not possible."""
    keys = dict.fromkeys(key for variation in family.variations for key in variation.values)
    out.print(f"\n{len(family.variations)} runs train together: they differ in {', '.join(keys)}")
    configs = {variation.name: variation.config for variation in family.variations}
    by_seed = {config.seed: config for config in configs.values()}
    first, data = family.variations[0].config, family.data
    network, variables, weights = pretrained(first, family.network)
    paths = _head_paths(network)
    heads = {seed: initial_variables(network, seed, paths) for seed in by_seed}
    each = [heads[config.seed] for config in configs.values()]
    group = HeadTraining(
        configs=list(configs.values()),
        network=network,
        trainables=family.trainables,
        variables=variables,
        heads={path: jnp.stack([head[path] for head in each]) for path in paths},
        train_data={
            seed: loader(data.train, config, shuffle=True) for seed, config in by_seed.items()
        },
        val_data=loader(data.val, first, shuffle=False),
        out=out,
        devices=jax.local_devices(),
        store=feature_store(first),
    )
    outcomes = group.run()
    if outcomes is None:
        return {}
    metadata = run_metadata(first, data).model_copy(update={"weights": weights})
    begun = {seed: variables | head for seed, head in heads.items()}
    return _write_runs(configs, outcomes, metadata, begun, workdir, out)


def _write_runs(
    configs: dict[str, Config],
    outcomes: Sequence[Outcome | Diverged],
    metadata: RunMetadata,
    begun: dict[int, Variables],
    workdir: Path,
    out: Console,
) -> dict[str, Any]:
    """Writes the directory of each run, which is complete or not there.

    Only the best run gets a report: 64 reports would take longer than everything before them.
    """
    results: dict[str, Any] = {}
    classes = len(metadata.classes)
    shared: dict[int, RunDirectory] = {}  # files of what runs of a seed began with
    with counter(out, "writing the run directories", len(configs)) as show:
        for (name, config), outcome in zip(configs.items(), outcomes, strict=True):
            results[name] = None
            if isinstance(outcome, Diverged):
                _note_diverged(workdir, name, outcome, out)
                continue
            with replacing(workdir / name) as part:
                initial = shared.get(config.seed) or begun[config.seed]
                write_run(RunDirectory(part), config, metadata, outcome, initial)
            results[name] = outcome.result(classes)
            shared[config.seed] = RunDirectory(workdir / name)
            show(len(results))
    best = ranked([Ranked(name, {}, result) for name, result in results.items()])[0].name
    evaluations = dict(zip(configs, outcomes, strict=True))
    if not isinstance(outcome := evaluations[best], Diverged):
        draw_report(RunDirectory(workdir / best), outcome.evaluation, out)
    return results
