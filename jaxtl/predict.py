"""Classifies images with a trained run: `python -m jaxtl.predict --run DIR PATH...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.errors import UserError

_HELP = """Classifies images with a trained run.

A PATH is an image or a folder, which is searched to any depth. Of a run of several labels an image
has those whose probability reaches the threshold of the run."""


def main(arguments: Sequence[str]) -> int:
    """Reads the flags and classifies; returns the exit code."""
    flags = cli.parser("jaxtl.predict", _HELP)
    flags.add_argument("--run", required=True, metavar="DIR", help="the run directory")
    flags.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="an image or a folder")
    flags.add_argument("--format", choices=("table", "csv", "json"), default="table")
    flags.add_argument("--top", type=int, default=5, metavar="K", help="classes to show [5]")
    cli.add_tta(flags)
    given = flags.parse_args(arguments)
    if given.top < 1:
        raise UserError(f"--top is at least 1, not {given.top}")

    import numpy as np

    from jaxtl.data.folders import image_files
    from jaxtl.reports.predictions import Guess, print_csv, print_json, print_table
    from jaxtl.training.cluster import warn_if_several
    from jaxtl.training.predictor import load_run

    warn_if_several("jaxtl.predict")
    paths = image_files(given.paths)
    run = load_run(given.run, tta=given.tta)
    probabilities = run.predict(paths)
    labels = run.labels_of(probabilities)
    predictions = []
    for path, row, own in zip(paths, probabilities, labels, strict=True):
        ranked = [
            Guess(run.classes[i], float(row[i]), run.classes[i] in own) for i in np.argsort(-row)
        ]
        shown = [guess for rank, guess in enumerate(ranked) if rank < given.top or guess.chosen]
        predictions.append((path, shown))
    write = {"table": print_table, "csv": print_csv, "json": print_json}[given.format]
    write(predictions, several=run.thresholds is not None)
    return 0


if __name__ == "__main__":
    cli.run(main)
