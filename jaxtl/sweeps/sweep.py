"""Trains the variations of a config, one run directory each."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console

from jaxtl.config.config_file import Config, differences
from jaxtl.data.splits import OpenOnce, Splits
from jaxtl.errors import UserError
from jaxtl.files import is_unfinished, write_json
from jaxtl.runs.directory import RunDirectory
from jaxtl.sweeps.failure import Failure, Outcome, failed, logged
from jaxtl.sweeps.heads import HeadRun
from jaxtl.sweeps.outcomes import Outcomes
from jaxtl.sweeps.ranking import best_lines, failure_lines, folds_table, ranking_table
from jaxtl.sweeps.together import GROUPS, Family, common, groups, train_together
from jaxtl.sweeps.variations import Variation
from jaxtl.tasks import task_of
from jaxtl.training.checks import check_plan
from jaxtl.training.memory import forget_programs
from jaxtl.training.parallel import check_single_process
from jaxtl.training.setup import plan_run, run_metadata, train

_LISTED = 3  # changes in a message


def sweep(
    variations: Sequence[Variation], workdir: Path, out: Console, images: OpenOnce | None = None
) -> dict[str, Outcome]:
    """Trains what is left to train of a sweep; a run that fails does not keep others from training.

    Args:
        variations: the runs of the sweep.
        workdir: the folder of their directories; a new one, or that of the same sweep.
        out: the terminal.
        images: opens their images; None where none of them is open yet.

    Returns:
        The results of the runs, or why they failed, by name, best first.

    Raises:
        UserError: something that the user can fix, in all runs: every one diverged, for example.
        Interrupted: a signal asked the sweep to stop.
    """
    check_single_process()
    families, without_data = _families(variations, images or OpenOnce())
    with RunDirectory(workdir).locked():
        _begin(workdir, variations)
        _remove_unfinished(workdir, variations)
        outcomes = Outcomes(workdir, variations)
        for family in families:
            outcomes.add(_complete(family.variations, workdir, family.data))
        for variation, error in without_data:
            failure = {variation.name: logged(error, [variation.name], workdir)}
            outcomes.add(failure | _complete([variation], workdir, None))
        again = f", {n} failed and train again" if (n := len(outcomes.to_retry)) else ""
        out.print(f"{len(variations)} runs in {workdir}, {len(outcomes)} of them complete{again}")
        for family in families:
            _train_groups(family, outcomes, out)
            for variation in family.variations:
                if variation.name not in outcomes:
                    _train_alone(variation, family, outcomes, out)
                    forget_programs()
    _show(outcomes, out)
    return outcomes.ranked


def _show(outcomes: Outcomes, out: Console) -> None:
    """Shows the table of a whole sweep, the best run, and what failed.

    Raises:
        UserError: every run diverged.
    """
    ranked, workdir = outcomes.ranked, outcomes.workdir
    best, result = next(iter(ranked.items()))
    if isinstance(result, Failure) and not any(map(failed, ranked.values())):
        raise UserError(f"every run of {workdir} diverged; try lower learning rates")
    rows = outcomes.rows
    out.print(ranking_table(rows, outcomes.table))
    if (over_folds := folds_table(rows)) is not None:
        out.print(over_folds)
    if not isinstance(result, Failure):
        for line in best_lines(RunDirectory(workdir / best)):
            out.print(line)
    again = f"the same command with --workdir {workdir} tries again"
    for line in failure_lines(ranked, again, outcomes.table):
        out.print(line)


def _families(
    variations: Sequence[Variation], images: OpenOnce
) -> tuple[list[Family], list[tuple[Variation, UserError]]]:
    """All runs, by what they have in common; what is wrong with one shows before the first trains.

    Returns:
        The runs whose data can be opened, and the other ones, each with the reason.

    Raises:
        UserError: a config does not fit its network, data or devices, or no data can be opened.
    """
    members: dict[str, list[Variation]] = {}
    for variation in variations:
        members.setdefault(common(variation.config), []).append(variation)
    families: list[Family] = []
    without_data: list[tuple[Variation, UserError]] = []
    for group in members.values():
        config = group[0].config
        try:
            try:
                data = images(config.data)
            except UserError as error:
                without_data += [(variation, error) for variation in group]
                continue
            monitor = task_of(data.train.labels).monitors[0]
            group = [
                dataclasses.replace(each, config=each.config.with_monitor(monitor))
                for each in group
            ]
            check_plan(config, data.train, jax.local_devices())
            network, trainables = plan_run(config, len(data.train.classes))
        except UserError as error:
            raise UserError(f"variation {group[0].name}: {error}") from error
        families.append(Family(group, data, network, trainables))
    if not families:
        variation, cause = without_data[0]
        raise UserError(f"variation {variation.name}: {cause}") from cause
    return families, without_data


def _begin(workdir: Path, variations: Sequence[Variation]) -> None:
    """Writes the configs of a new sweep, or checks that an old one had the same.

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
        stored = json.loads(path.read_bytes()).items()
        known = {name: Config.model_validate(tree, strict=False) for name, tree in stored}
    except (ValueError, AttributeError, UserError) as error:
        raise UserError(f"{path} is damaged, or of another version of this package") from error
    pairs = zip(known.items(), variations, strict=False)
    changed = [
        f"{name}: {change}"
        for (name, config), run in pairs
        for change in differences(config, run.config)
    ][:_LISTED]
    if changed or list(known) != [run.name for run in variations]:
        what = "; ".join(changed) or f"{len(known)} runs, not {len(variations)}, or other names"
        raise UserError(
            f"{workdir} is a sweep of other runs ({what}); name another --workdir, or give the "
            "same command to continue it"
        )


def _remove_unfinished(workdir: Path, variations: Sequence[Variation]) -> None:
    """Removes what was being written when the sweep was killed."""
    runs = {variation.name for variation in variations}
    for path in [*workdir.iterdir(), *workdir.glob(f"{GROUPS}/*")]:
        if is_unfinished(path) and path.name not in runs:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _complete(
    variations: Sequence[Variation], workdir: Path, data: Splits | None
) -> dict[str, Outcome]:
    """The results of the runs that are complete; `data` is None if they cannot be opened now.

    Raises:
        UserError: the data changed since then.
    """
    results: dict[str, Outcome] = {}
    for variation in variations:
        run = RunDirectory(workdir / variation.name)
        with contextlib.suppress(UserError):  # a damaged run fails by itself
            run.config()
            if result := run.metadata().result:
                results[variation.name] = result
        if variation.name in results and data is not None:
            run.check_same(variation.config, run_metadata(variation.config, data))
    return results


def _train_groups(family: Family, outcomes: Outcomes, out: Console) -> None:
    """Trains new runs together where they can be, in smaller groups where memory requires it."""

    def done(runs: Sequence[HeadRun]) -> None:
        over: dict[str, Outcome] = {}
        for run in runs:
            name = run.variation.name
            if run.result is not None:
                over[name] = run.result
            elif run.diverged is not None:
                over[name] = failure = Failure.of(run.diverged)
                out.print(f"{name}: {failure.reason}")
        outcomes.add(over)

    workdir = outcomes.workdir
    new = [
        variation
        for variation in family.variations
        if variation.name not in outcomes and not (workdir / variation.name).exists()
    ]
    waiting = groups(family._replace(variations=new))
    while waiting:
        group = waiting.pop(0)
        failure = None
        try:
            train_together(group, workdir, out, done)
        except Exception as error:  # the other runs have to train
            failure = logged(error, [run.name for run in group.variations], workdir)
            # The frozen stages, which no number of heads makes smaller, say so by a `UserError`.
            smaller = failure.kind == "out of memory" and not isinstance(error, UserError)
        forget_programs()
        if failure is None:
            continue
        written = _complete(group.variations, workdir, group.data)
        outcomes.add(written)
        left = [run for run in group.variations if run.name not in outcomes]
        if not left:
            out.print(f"all {len(group.variations)} runs are complete, and then: {failure.reason}")
            continue
        out.print(f"{len(left)} of {len(group.variations)} runs together failed: {failure.reason}")
        if smaller:
            middle = -(-len(left) // 2)
            halves = [part for part in (left[:middle], left[middle:]) if part]
            waiting[:0] = [group._replace(variations=part) for part in halves]
        else:
            outcomes.add({run.name: failure for run in left})


def _train_alone(variation: Variation, family: Family, outcomes: Outcomes, out: Console) -> None:
    """Trains a single run, or continues it."""
    name = variation.name
    out.print(f"\n{name}")
    outcome: Outcome
    try:
        outcome = train(variation.config, family.data, outcomes.workdir / name, out)
    except Exception as error:  # the other runs have to train
        outcome = failure = logged(error, [name], outcomes.workdir)
        out.print(f"{name}: {failure.reason}")
    outcomes.add({name: outcome})
