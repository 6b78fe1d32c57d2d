"""Trains the variations of a config, one run directory each."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Container, Sequence
from pathlib import Path

import jax
from rich.console import Console

from jaxtl.config.config_file import Config, differences
from jaxtl.console import metrics_text
from jaxtl.data.sources import open_splits
from jaxtl.errors import UserError
from jaxtl.files import is_unfinished, write_json
from jaxtl.runs.directory import RunDirectory
from jaxtl.sweeps.ranking import Result, ranked, ranking_rows, ranking_table, write_ranking
from jaxtl.sweeps.together import GROUPS, Family, train_together
from jaxtl.sweeps.variations import Variation
from jaxtl.training.loop import Diverged
from jaxtl.training.parallel import check_batch_size, check_single_process
from jaxtl.training.setup import plan_run, run_metadata, train

_DIVERGED = "diverged.json"  # beside the run directories: why each run diverged
_LISTED = 3  # changes in a message


def sweep(variations: Sequence[Variation], workdir: Path, out: Console) -> dict[str, Result]:
    """Trains what is left to train of a sweep.

    Args:
        variations: the runs of the sweep.
        workdir: the folder of their directories; a new one, or that of the same sweep.
        out: the terminal.

    Returns:
        The results of the runs, by name, best first.

    Raises:
        UserError: something that the user can fix.
        Interrupted: a signal asked the sweep to stop.
    """
    check_single_process()
    families = _families(variations)
    with RunDirectory(workdir).locked():
        _begin(workdir, variations)
        _remove_unfinished(workdir, variations)
        results: dict[str, Result] = {}
        for family in families:
            results |= _known(family, workdir)
        out.print(f"{len(variations)} runs in {workdir}, {len(results)} of them complete")
        for family in families:
            results |= _train(family, workdir, results.keys(), out)
        results = ranked({variation.name: results[variation.name] for variation in variations})
        rows, table = ranking_rows(results, variations), workdir / "sweep.csv"
        write_ranking(table, rows)
    best, result = next(iter(results.items()))
    if result is None:
        raise UserError(f"every run of {workdir} diverged; try lower learning rates")
    out.print(ranking_table(rows, table))
    means = {name: result[name] for name in ("accuracy", "loss")}
    out.print(f"best: {workdir / best}  {metrics_text(means, 'val_')}")
    return results


def _families(variations: Sequence[Variation]) -> list[Family]:
    """All runs, by what they have in common; what is wrong with one shows before the first trains.

    Raises:
        UserError: a config does not fit its network, data or devices.
    """
    members: dict[str, list[Variation]] = {}
    for variation in variations:
        members.setdefault(_common(variation.config), []).append(variation)
    splits = functools.cache(open_splits)
    families = []
    for group in members.values():
        config = group[0].config
        try:
            check_batch_size(config.data.batch_size, jax.local_devices())
            data = splits(
                config.data.source,
                val_fraction=config.data.val_fraction,
                seed=config.data.seed,
                on_bad_image=config.data.on_bad_image,
                retry_seconds=config.data.retry_seconds,
            )
            network, trainables = plan_run(config, len(data.train.classes))
        except UserError as error:
            raise UserError(f"variation {group[0].name}: {error}") from error
        families.append(Family(group, data, network, trainables))
    return families


def _common(config: Config) -> str:
    """The config without what the runs of a family may differ in."""
    free = {"lr": 1.0, "weight_decay": 0.0, "label_smoothing": 0.0}
    phases = tuple(phase.model_copy(update=free) for phase in config.phases)
    # Without weights the seed makes the frozen stages too.
    seed = config.seed if config.model.weights is None else 0
    common = config.model_copy(update={"phases": phases, "seed": seed})
    return json.dumps(common.model_dump())  # pydantic's JSON knows no names that are not UTF-8


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


def _known(family: Family, workdir: Path) -> dict[str, Result]:
    """The results of the runs that are complete, None for those that diverged."""
    results: dict[str, Result] = {}
    diverged = _diverged(workdir)
    for variation in family.variations:
        run = RunDirectory(workdir / variation.name)
        if variation.name in diverged:
            results[variation.name] = None
        elif run.exists() and (result := run.metadata().result):
            run.check_same(variation.config, run_metadata(variation.config, family.data))
            results[variation.name] = result
    return results


def _train(family: Family, workdir: Path, done: Container[str], out: Console) -> dict[str, Result]:
    """Trains what is left to train of a family: new runs together where they can be."""
    left = [variation for variation in family.variations if variation.name not in done]
    new = [variation for variation in left if not (workdir / variation.name).exists()]
    results: dict[str, Result] = {}
    for group in train_together(family._replace(variations=new), workdir, out):
        for run in group:
            results[run.variation.name] = run.result
            if run.diverged is not None:
                _note_diverged(workdir, run.variation.name, run.diverged, out)
    for variation in left:
        if variation.name in results:
            continue
        out.print(f"\n{variation.name}")
        try:
            directory = workdir / variation.name
            results[variation.name] = train(variation.config, family.data, directory, out)
        except Diverged as error:
            results[variation.name] = None
            _note_diverged(workdir, variation.name, error, out)
    return results


def _note_diverged(workdir: Path, name: str, why: Diverged, out: Console) -> None:
    """Says that a run diverged, and keeps it: a sweep that is continued does not train it again."""
    out.print(f"{name}: {why}")
    write_json(workdir / _DIVERGED, _diverged(workdir) | {name: str(why)})


def _diverged(workdir: Path) -> dict[str, str]:
    """Why each run that diverged did so, by name."""
    path = workdir / _DIVERGED
    return json.loads(path.read_text()) if path.exists() else {}
