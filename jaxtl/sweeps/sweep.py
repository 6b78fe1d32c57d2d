"""Trains the variations of a config, one run directory each."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import jax
import pydantic
from rich.console import Console

from jaxtl.config.config_file import Config, differences, leaves
from jaxtl.console import metrics_text
from jaxtl.data.sources import open_splits
from jaxtl.errors import UserError
from jaxtl.files import is_unfinished, write_json
from jaxtl.runs.directory import RunDirectory
from jaxtl.sweeps.ranking import Ranked, ranked, ranking_table, write_ranking
from jaxtl.sweeps.together import GROUPS, Family, train_together
from jaxtl.sweeps.variations import Variation
from jaxtl.training.loop import Diverged
from jaxtl.training.parallel import check_batch_size, check_single_process
from jaxtl.training.setup import plan_run, run_metadata, train

_DIVERGED = "diverged.json"  # beside the run directories: what each said
_CONFIGS = pydantic.TypeAdapter(dict[str, Config])
_LISTED = 3  # changes in a message


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
        _remove_unfinished(workdir, variations)
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


def _families(variations: Sequence[Variation]) -> list[Family]:
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
        families.append(Family(group, data, network, trainables))
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
        known = _CONFIGS.validate_json(path.read_bytes())
    except pydantic.ValidationError as error:
        raise UserError(f"{path} is damaged, or of another version of this package") from error
    asked = [run.config for run in variations]
    pairs = zip(known.values(), asked, strict=False)
    changed = [change for pair in pairs for change in differences(*pair)][:_LISTED]
    if changed or list(known) != [run.name for run in variations]:
        what = "; ".join(changed) or f"{len(known)} runs, and not {len(asked)}, or other names"
        raise UserError(
            f"{workdir} is a sweep of other runs ({what}); name another --workdir, or give the "
            "same command to continue it"
        )


def _remove_unfinished(workdir: Path, variations: Sequence[Variation]) -> None:
    """Removes what was being written when the sweep was killed."""
    runs = {variation.name for variation in variations}
    for path in [*workdir.iterdir(), *workdir.glob(f"{GROUPS}/*")]:
        if is_unfinished(path) and path.name not in runs:
            shutil.rmtree(path)


def _known(family: Family, workdir: Path) -> dict[str, Any]:
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


def _train(family: Family, workdir: Path, done: Any, out: Console) -> dict[str, Any]:
    """Trains what is left to train of a family: new runs together where they can be."""
    left = [variation for variation in family.variations if variation.name not in done]
    new = [variation for variation in left if not (workdir / variation.name).exists()]
    results: dict[str, Any] = {}
    for run in train_together(dataclasses.replace(family, variations=new), workdir, out):
        results[run.variation.name] = run.result
        if run.result is None:
            _note_diverged(workdir, run.variation.name, run.diverged, out)
    for variation in left:
        if variation.name in results:
            continue
        out.print(f"\n{variation.name}")
        try:
            run_directory = workdir / variation.name
            results[variation.name] = train(variation.config, family.data, run_directory, out)
        except Diverged as error:
            results[variation.name] = None
            _note_diverged(workdir, variation.name, error, out)
    return results


def _note_diverged(workdir: Path, name: str, why: Diverged | None, out: Console) -> None:
    """Says that a run diverged, and keeps it: a sweep that is continued does not train it again."""
    out.print(f"{name}: {why}")
    write_json(workdir / _DIVERGED, _diverged(workdir) | {name: str(why)})


def _diverged(workdir: Path) -> dict[str, str]:
    """What each run that diverged said."""
    path = workdir / _DIVERGED
    return json.loads(path.read_text()) if path.exists() else {}
