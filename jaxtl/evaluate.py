"""Measures a trained run: `python -m jaxtl.evaluate --run DIR`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtl import cli

_HELP = """Measures a trained run: loss, accuracy, and how each class fares.

Without --data it measures the images that the run was validated on."""


def main(arguments: Sequence[str]) -> int:
    """Reads the flags and measures; returns the exit code."""
    flags = cli.parser("jaxtl.evaluate", _HELP)
    flags.add_argument("--run", required=True, metavar="DIR", help="the run directory")
    flags.add_argument("--data", metavar="SOURCE", help="other images with the same classes")
    cli.add_tta(flags)
    given = flags.parse_args(arguments)

    from rich.table import Table

    from jaxtl.console import console, metrics_text
    from jaxtl.data.sources import found_line, open_all
    from jaxtl.metrics import class_results, confusion
    from jaxtl.training.cluster import warn_if_several
    from jaxtl.training.predictor import load_run

    warn_if_several("jaxtl.evaluate")
    out = console()
    predictor = load_run(given.run, tta=given.tta)
    if given.data is None:
        source = predictor.images("val")
    else:
        patience = predictor.config.data.retry_seconds
        source = open_all(given.data, classes=predictor.classes, retry_seconds=patience)
    out.print(found_line(source))
    evaluation = predictor.evaluate(source)

    counts = confusion(evaluation.labels, evaluation.predicted, len(predictor.classes))
    table = Table("class")
    for column in ("images", "correct", "recall", "precision"):
        table.add_column(column, justify="right")
    for name, (images, correct, *fractions) in zip(
        predictor.classes, class_results(counts), strict=True
    ):
        shown = ("-" if fraction is None else f"{fraction:.4f}" for fraction in fractions)
        table.add_row(name, str(images), str(correct), *shown)
    out.print(table)
    means = evaluation.sums.means(len(predictor.classes))
    out.print(f"{metrics_text(means)}  ({evaluation.sums.top1}/{evaluation.sums.images} correct)")
    return 0


if __name__ == "__main__":
    cli.run(main)
