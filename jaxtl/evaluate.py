"""Measures a trained run: `python -m jaxtl.evaluate --run DIR`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtl import cli
from jaxtl.errors import UserError

_HELP = """Measures a trained run: loss, accuracy, and how each class fares; of several labels mean
average precision, and precision, recall and F1 at the thresholds of the run.

Without --data it measures the images that the run was validated on, or those of its test with
--split test. Intervals are of 95 %: Wilson's, and of F1 the bootstrap's; there
is none where all images of a class are right, or all wrong."""


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

    from jaxtl.console import console, correct_text, metrics_text
    from jaxtl.data.sources import found_line, open_all
    from jaxtl.reports.class_table import class_lines
    from jaxtl.tasks import MULTI_LABEL
    from jaxtl.training.cluster import warn_if_several
    from jaxtl.training.predictor import load_run

    warn_if_several("jaxtl.evaluate")
    out = console()
    predictor = load_run(given.run, tta=given.tta)
    if given.data is None:
        source = predictor.images(given.split or "val")
    else:
        patience = predictor.config.data.retry_seconds
        source = open_all(
            given.data,
            classes=predictor.classes,
            multi_label=predictor.task is MULTI_LABEL,
            retry_seconds=patience,
        )
    out.print(found_line(source))
    evaluation = predictor.evaluate(source)
    for line in class_lines(predictor.classes, evaluation, predictor.thresholds):
        out.print(line)
    sums, task = evaluation.sums, predictor.task
    metrics = task.metrics(
        evaluation, len(predictor.classes), task.monitors[0], predictor.thresholds
    )
    correct = correct_text(int(sums.top1), int(sums.images))
    out.print(f"{metrics_text(metrics)}  {correct}")
    return 0


if __name__ == "__main__":
    cli.run(main)
