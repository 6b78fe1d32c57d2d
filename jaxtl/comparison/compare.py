"""Measures networks side by side, and says which to take."""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from jaxtl.comparison.advice import Budget, advice, characters
from jaxtl.comparison.candidates import load
from jaxtl.comparison.linear_probe import FOLDS, folds_for
from jaxtl.comparison.measuring import Comparison, Contender
from jaxtl.comparison.plot import write_plot
from jaxtl.comparison.results import (
    Conditions,
    Row,
    Unmeasured,
    measured,
    write_comparison,
)
from jaxtl.comparison.table import comparison_table
from jaxtl.config.config_file import Data
from jaxtl.data.sources import found_line
from jaxtl.data.splits import Splits, open_splits
from jaxtl.errors import EXPECTED, UserError, one_line
from jaxtl.labels import is_multi_label
from jaxtl.training.memory import forget_programs
from jaxtl.training.parallel import on_cpu

_log = logging.getLogger("jaxtl")


def compare(comparison: Comparison, out: Console) -> list[Row | Unmeasured]:
    """Measures networks, writes `compare.csv` and `compare.png`, and says which to take.

    All weights are read before anything is measured, and each network is in the file before it is
    fine-tuned. Where fine-tuning fails, the other networks are measured all the same.

    Returns:
        What was measured, in the order of the candidates.

    Raises:
        UserError: something that the user can fix; at the end, where only fine-tuning failed.
        Interrupted: a signal asked to stop; what was measured is shown.
    """
    data, conditions = _open(comparison, out)
    contenders = []
    for place, candidate in enumerate(comparison.candidates, 1):
        name = f"{candidate.label}, {candidate.image_size} px"
        announce = functools.partial(out.print, f"[{place}/{len(comparison.candidates)}] {name}:")
        announce("weights")
        loaded = load(candidate, conditions.classes, comparison.weights, announce)
        given = (comparison, candidate, loaded, data, conditions.folds)
        contenders.append(Contender(*given, out, announce))
    for contender in contenders:
        contender.check_run()

    comparison.folder.mkdir(parents=True, exist_ok=True)
    table, rows = comparison.folder / "compare.csv", list[Row | Unmeasured]()
    failed: list[str] = []
    try:
        while contenders:
            contender = contenders.pop(0)  # its parameters are freed after it is measured
            rows.append(contender.measured())
            write_comparison(table, rows, conditions)
            try:
                rows[-1] = row = contender.fine_tuned(rows[-1])
                contender.announce(row.summary if isinstance(row, Row) else row.problem)
            except Exception as error:  # the other networks have to be measured
                reason = one_line(error)
                if not isinstance(error, EXPECTED):
                    _log.error("%s", contender.candidate.label, exc_info=error)
                failed.append(f"{contender.candidate.label}: {reason}")
                contender.announce(f"not fine-tuned: {reason}")
            write_comparison(table, rows, conditions)
            forget_programs()
    except KeyboardInterrupt:
        if rows:
            out.print(comparison_table(rows, conditions, width=out.width, rest=table))
            out.print(f"\n{table}")
        raise
    _report(rows, comparison.budgets, conditions, table, out)
    if failed:
        raise UserError(f"{len(failed)} of {len(rows)} networks not fine-tuned: {failed[0]}")
    return rows


def _open(comparison: Comparison, out: Console) -> tuple[Splits, Conditions]:
    """The images, if the comparison can be made with them."""
    folder, devices = comparison.folder, jax.local_devices()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: name a folder for the results")
    data = open_splits(Data(source=comparison.source))
    if is_multi_label(data.train.labels):
        raise UserError(
            f"{comparison.source} has several labels an image, and networks are compared by the "
            "accuracy of one class: train one with each --cfg.model.name, and compare those by "
            "jaxtl report RUN RUN --to FILE"
        )
    if data.test is not None:
        out.print(f"{len(data.test):,} test images are left for the network that you choose")
        data = data._replace(test=None)
    parts = data.named.values()
    for part in parts:
        out.print(found_line(part))
    if comparison.epochs and comparison.batch_size % len(devices):
        raise UserError(
            f"--batch-size {comparison.batch_size} does not divide by the {len(devices)} devices "
            f"that --finetune trains on; give a multiple of {len(devices)}"
        )
    labels = np.concatenate([part.labels for part in parts])
    folds = folds_for(labels, data.train.classes)
    if folds < FOLDS:
        out.print(f"{folds} folds and not {FOLDS}: the rarest class has {folds} images")
    ranking = data.val.labels if comparison.epochs else labels
    largest = 100 * max(Counter(ranking.tolist()).values()) / len(ranking)
    cpu = f"a CPU of {os.cpu_count()} cores"
    device = cpu if on_cpu(devices) else f"one {devices[0].device_kind}"
    counts, tuned = (len(labels), len(data.train.classes)), comparison.epochs > 0
    return data, Conditions(*counts, largest, folds, device, tuned)


def _report(
    rows: Sequence[Row | Unmeasured],
    budgets: Sequence[Budget],
    conditions: Conditions,
    table: Path,
    out: Console,
) -> None:
    """Shows a whole comparison."""
    known, files = measured(rows), [str(table)]
    out.print(comparison_table(rows, conditions, width=out.width, rest=table))
    alike: dict[str, list[str]] = {}
    for row in rows:
        if row.problem:
            alike.setdefault(row.problem, []).append(row.model)
    for why, models in alike.items():
        out.print(f"{', '.join(models)}: {why}")
    if known:
        plot = table.with_suffix(".png")
        write_plot(plot, rows, conditions)
        files.append(str(plot))
        out.print("\n" + "\n".join(characters(known)))
        out.print("\n" + "\n".join(advice(known, budgets)))
    out.print("\n" + "  ".join(files))
