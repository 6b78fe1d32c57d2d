"""Measures a trained run: `python -m jaxtl.evaluate --run DIR`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtl import cli
from jaxtl.errors import UserError

_HELP = """Measures a trained run: loss, accuracy, and how each class fares.

Without --data it measures the images that the run was validated on, or those of its test with
--split test. Intervals are of 95 %: Wilson's, and of F1 the bootstrap's, which has
none where no image is wrong."""


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

    for line in class_lines(predictor.classes, evaluation):
        out.print(line)
    sums = evaluation.sums
    text = metrics_text(sums.means(len(predictor.classes)))
    out.print(f"{text}  {correct_text(int(sums.top1), int(sums.images))}")
    return 0


if __name__ == "__main__":
    cli.run(main)
