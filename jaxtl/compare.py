"""Measures networks on the user's own pictures: `python -m jaxtl.compare --data SOURCE`."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from jaxtl import cli
from jaxtl.candidates import AUTO, NARROW, candidates, sources, start
from jaxtl.config import Data
from jaxtl.data.sources import found_line, open_splits
from jaxtl.errors import UserError
from jaxtl.loop import Interrupted
from jaxtl.measuring import HEAD_EPOCHS, Comparison, Work, check_run, fine_tuned, measured_row
from jaxtl.probe import FOLDS, folds_for
from jaxtl.report.advice import Budget, advice, characters
from jaxtl.report.comparison import (
    Failure,
    Row,
    Unmeasured,
    accuracy_text,
    measured,
    number,
    write_comparison,
)
from jaxtl.report.scatter import write_picture
from jaxtl.report.table import comparison_table
from jaxtl.report.terminal import console
from jaxtl.steps import on_cpu

_HELP = f"""Measures networks on your own pictures: how accurate they are, and what they cost.

Accuracy is that of a linear probe: logistic regression on the features of the network with the
weights that a line names, cross-validated over all pictures. A network whose weights cannot be had
is measured for its cost alone.

With --finetune, a new head trains for {HEAD_EPOCHS} epochs, and then every parameter for as many
as you give; networks are ranked by their accuracy on the validation pictures in the best of
these."""

_MOST = 10**12  # pictures in a batch, of which no memory holds as many


def main(arguments: Sequence[str]) -> int:
    """The command."""
    given = _flags().parse_args(arguments)
    for flag, least in (("batch_size", 1), ("finetune", 0)):
        if getattr(given, flag) < least:
            name = flag.replace("_", "-")
            raise UserError(f"--{name} {getattr(given, flag)}: give a number of at least {least}")
    if given.batch_size > _MOST:
        raise UserError(f"--batch-size {given.batch_size}: give a number that fits in memory")
    comparison = Comparison(
        source=given.data,
        candidates=candidates(given.models, given.image_size),
        weights=sources(given.weights),
        batch_size=given.batch_size,
        epochs=given.finetune,
        budgets=[Budget.parse(text) for text in given.budget],
        folder=given.out or Path(time.strftime("compare-%Y%m%d-%H%M%S")),
    )
    try:
        compare(comparison, console())
    except (KeyboardInterrupt, Interrupted):
        print(
            f"stopped; to continue: the same command with --out {comparison.folder}, which "
            "measures times anew and goes on with fine-tuning"
        )
        return 130
    return 0


def _flags() -> argparse.ArgumentParser:
    flags = cli.parser("jaxtl.compare", _HELP)
    flags.add_argument("--data", required=True, metavar="SOURCE", help="the labelled pictures")
    flags.add_argument(
        "--models",
        metavar="NAME[@WIDTH],...",
        help=f"the networks [all, and {' and '.join(NARROW)}]",
    )
    flags.add_argument(
        "--weights",
        default="auto",
        metavar="SOURCE,...",
        help="where weights come from, each network from the first that holds it, or none for cost "
        f"alone [auto: {','.join(AUTO)}]",
    )
    flags.add_argument(
        "--image-size",
        default="native",
        metavar="N",
        help="pixels a side, or smallest: what each network takes at least [native: 224, or 299]",
    )
    flags.add_argument("--batch-size", type=int, default=32, metavar="N", help="[32]")
    flags.add_argument(
        "--finetune",
        type=int,
        default=0,
        metavar="EPOCHS",
        help=f"fine-tune too, {HEAD_EPOCHS} epochs of the head and so many of every parameter, "
        "and rank by that [0: rank by the linear probe]",
    )
    flags.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="KEY=MOST",
        help="ms=20 a picture, mb=10 of weights, or macs=300 million; may be given again",
    )
    flags.add_argument(
        "--out", type=Path, metavar="DIR", help="where the results go [compare-DATE-TIME]"
    )
    return flags


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
    """The pictures, if the comparison can be made with them."""
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
        out.print(f"{folds} folds and not {FOLDS}: the rarest class has {folds} pictures")
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
        picture = table.with_suffix(".png")
        write_picture(picture, rows, sample=work.sample, device=device)
        files.append(str(picture))
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
    return f"{accuracy_text(row)}, {number(row.milliseconds)} ms a picture"


def _device_name() -> str:
    device = jax.local_devices()[0]
    return f"a CPU of {os.cpu_count()} cores" if on_cpu([device]) else f"one {device.device_kind}"


if __name__ == "__main__":
    cli.run(main)
