"""Measures a trained run: `python -m jaxtl.evaluate --run DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtl import cli
from jaxtl.errors import UserError

if TYPE_CHECKING:
    from jaxtl.metrics import Proportion

_HELP = """Measures a trained run: loss, accuracy, and how each class fares.

Without --data it measures the images that the run was validated on, or those of its test with
--split test. Intervals are of 95 %: Wilson's, and of F1 the bootstrap's, which has
none where no image is wrong."""

_INTERVAL = "95 % interval"


def main(arguments: Sequence[str]) -> int:
    """Reads the flags and measures; returns the exit code."""
    flags = cli.parser("jaxtl.evaluate", _HELP)
    flags.add_argument("--run", required=True, metavar="DIR", help="the run directory")
    flags.add_argument("--data", metavar="SOURCE", help="other images with the same classes")
    which = "which images of the run [val]"
    flags.add_argument("--split", choices=("train", "val", "test"), help=which)
    cli.add_tta(flags)
    given = flags.parse_args(arguments)
    if given.split and given.data:
        raise UserError("--split is one of the run's own images: leave it out, or leave out --data")

    from rich.table import Table

    from jaxtl.console import console, correct_text, interval_text, metrics_text
    from jaxtl.data.sources import found_line, open_all
    from jaxtl.metrics import class_results, confusion, proportion
    from jaxtl.reports.bootstrap import f1_intervals
    from jaxtl.training.cluster import warn_if_several
    from jaxtl.training.predictor import load_run

    warn_if_several("jaxtl.evaluate")
    out = console()
    predictor = load_run(given.run, tta=given.tta)
    if given.data is None:
        source = predictor.images(given.split or "val")
    else:
        patience = predictor.config.data.retry_seconds
        source = open_all(given.data, classes=predictor.classes, retry_seconds=patience)
    out.print(found_line(source))
    evaluation = predictor.evaluate(source)

    counts = confusion(evaluation.labels, evaluation.predicted, len(predictor.classes))
    table = Table("class")
    for column in ("images", "correct", "recall", _INTERVAL, "precision", "F1", _INTERVAL):
        table.add_column(column, justify="right")
    f1s = f1_intervals(counts)
    results = zip(predictor.classes, class_results(counts), f1s.classes, strict=True)
    for name, found, f1 in results:
        recall, precision = ("-" if f is None else f"{f:.4f}" for f in found[2:])
        interval = "-"
        if found.images:
            interval = interval_text(*proportion(found.correct, found.images)[1:])
        cells = str(found.images), str(found.correct), recall, interval, precision
        table.add_row(name, *cells, *_f1_cells(f1))
    out.print(table)
    out.print("macro_f1 {}  (95 % interval {})".format(*_f1_cells(f1s.macro)))
    sums = evaluation.sums
    text = metrics_text(sums.means(len(predictor.classes)))
    out.print(f"{text}  {correct_text(int(sums.top1), int(sums.images))}")
    return 0


def _f1_cells(f1: Proportion | None) -> tuple[str, str]:
    from jaxtl.console import interval_text

    if f1 is None:
        return "-", "-"
    return f"{f1.value:.4f}", interval_text(f1.low, f1.high) if f1.low < f1.high else "-"


if __name__ == "__main__":
    cli.run(main)
