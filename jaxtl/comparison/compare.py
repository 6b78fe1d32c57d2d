"""Measures networks on the user's own images: `python -m jaxtl.compare --data SOURCE`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from jaxtl.comparison.advice import advice, characters
from jaxtl.comparison.candidates import start
from jaxtl.comparison.linear_probe import FOLDS, folds_for
from jaxtl.comparison.measuring import (
    Comparison,
    Work,
    check_run,
    fine_tuned,
    measured_row,
)
from jaxtl.comparison.plot import write_plot
from jaxtl.comparison.results import (
    Failure,
    Row,
    Unmeasured,
    accuracy_text,
    measured,
    number,
    write_comparison,
)
from jaxtl.comparison.table import comparison_table
from jaxtl.config.config_file import Data
from jaxtl.data.sources import found_line, open_splits
from jaxtl.errors import UserError
from jaxtl.training.loop import Interrupted
from jaxtl.training.step import on_cpu


def compare(comparison: Comparison, out: Console) -> list[Row | Unmeasured]:
    """Measures networks, writes `compare.csv` and `compare.png`, and says what they come to.

    All weights are read before anything is measured, and each network is in the file before it is
    fine-tuned.

    Args:
        comparison: what to measure.
        out: the terminal.

    Returns:
        What was measured, in the order of the candidates.

    Raises:
        UserError: something that the user can mend.
        Interrupted: a signal asked to stop; what was measured is shown.
    """
    work = _open(comparison, out)
    classes, count = len(work.data.train.classes), len(comparison.candidates)
    says = [
        _say(out, f"[{place}/{count}] {one.label}, {one.image_size} px: ")
        for place, one in enumerate(comparison.candidates, 1)
    ]
    starts = []
    for one, say in zip(comparison.candidates, says, strict=True):
        say("weights")
        starts.append(start(one, classes, comparison.weights, say))
    for one, beginning in zip(comparison.candidates, starts, strict=True):
        check_run(one, beginning, work)

    comparison.folder.mkdir(parents=True, exist_ok=True)
    table, device = comparison.folder / "compare.csv", _device_name()
    rows: list[Row | Unmeasured] = []
    try:
        for one, say in zip(comparison.candidates, says, strict=True):
            beginning = starts.pop(0)  # so that its parameters do not outlast their use
            rows.append(measured_row(one, beginning, work, say))
            write_comparison(table, rows, work.sample, device)
            rows[-1] = fine_tuned(rows[-1], one, beginning, work, say)
            write_comparison(table, rows, work.sample, device)
            say(_result(rows[-1]))
    except (KeyboardInterrupt, Interrupted) as error:
        if rows:
            out.print(comparison_table(rows, work.sample, device, width=out.width, rest=table))
            out.print(f"\n{table}")
        raise Interrupted from error
    _report(rows, work, table, device)
    return rows


def _open(comparison: Comparison, out: Console) -> Work:
    """The images, if the comparison can be made with them."""
    folder, devices = comparison.folder, len(jax.local_devices())
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: name a folder for the results")
    data = open_splits(comparison.source, val_fraction=Data().val_fraction, seed=Data().seed)
    for part in data:
        out.print(found_line(part))
    if comparison.epochs and comparison.batch_size % devices:
        raise UserError(
            f"--batch-size {comparison.batch_size} does not divide by the {devices} devices that "
            f"--finetune trains on; give a multiple of {devices}"
        )
    labels = np.concatenate([part.labels for part in data])
    folds = folds_for(labels, data.train.classes)
    if folds < FOLDS:
        out.print(f"{folds} folds and not {FOLDS}: the rarest class has {folds} images")
    return Work(comparison, data, labels, folds, out)


def _say(out: Console, title: str) -> Callable[[str], None]:
    return lambda what: out.print(f"{title}{what}")


def _report(rows: Sequence[Row | Unmeasured], work: Work, table: Path, device: str) -> None:
    """All that a whole comparison comes to."""
    out, known, files = work.out, measured(rows), [str(table)]
    out.print(comparison_table(rows, work.sample, device, width=out.width, rest=table))
    alike: dict[str, list[str]] = {}
    for row in rows:
        if why := _what_is_wrong(row):
            alike.setdefault(why, []).append(row.model)
    for why, models in alike.items():
        out.print(f"{', '.join(models)}{why}")
    if known:
        image = table.with_suffix(".png")
        write_plot(image, rows, sample=work.sample, device=device)
        files.append(str(image))
        out.print("\n" + "\n".join(characters(known)))
        out.print("\n" + "\n".join(advice(known, work.comparison.budgets)))
    out.print("\n" + "  ".join(files))


def _what_is_wrong(row: Row | Unmeasured) -> str:
    """Why something of a network is not known."""
    failure = row.failure if isinstance(row, Unmeasured) else row.tuned
    if isinstance(failure, Failure):
        return f": {failure}"
    if isinstance(row, Row) and row.probe is None:
        return f": no weights: {row.tried or 'none were asked for'}"
    return ""


def _result(row: Row | Unmeasured) -> str:
    if isinstance(row, Unmeasured):
        return str(row.failure)
    return f"{accuracy_text(row)}, {number(row.milliseconds)} ms an image"


def _device_name() -> str:
    device = jax.local_devices()[0]
    return f"a CPU of {os.cpu_count()} cores" if on_cpu([device]) else f"one {device.device_kind}"
