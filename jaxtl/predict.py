"""Classifies images with a trained run: `python -m jaxtl.predict --run DIR PATH...`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.errors import UserError

_HELP = """Classifies images with a trained run.

A PATH is an image or a folder, which is searched to any depth."""

Guess = tuple[str, float]


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
    from jaxtl.training.cluster import warn_if_several
    from jaxtl.training.predictor import load_run

    warn_if_several("jaxtl.predict")
    paths = image_files(given.paths)
    predictor = load_run(given.run, tta=given.tta)
    probabilities = predictor.predict(paths)
    guesses = [
        [(predictor.classes[index], float(row[index])) for index in np.argsort(-row)[: given.top]]
        for row in probabilities
    ]
    {"table": _table, "csv": _csv, "json": _json}[given.format](paths, guesses)
    return 0


def _table(paths: Sequence[Path], guesses: Sequence[Sequence[Guess]]) -> None:
    from rich.table import Table

    from jaxtl.console import console

    table = Table("image", "class", "probability", "others")
    for path, ((best, probability), *others) in zip(paths, guesses, strict=True):
        rest = ", ".join(f"{name} {p:.3f}" for name, p in others)
        table.add_row(str(path), best, f"{probability:.3f}", rest)
    console().print(table)


def _csv(paths: Sequence[Path], guesses: Sequence[Sequence[Guess]]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow(["path", "rank", "class", "probability"])
    for path, ranked in zip(paths, guesses, strict=True):
        for rank, (name, probability) in enumerate(ranked, start=1):
            writer.writerow([path, rank, name, f"{probability:.6f}"])


def _json(paths: Sequence[Path], guesses: Sequence[Sequence[Guess]]) -> None:
    result = [
        {"path": str(path), "classes": [{"class": n, "probability": p} for n, p in ranked]}
        for path, ranked in zip(paths, guesses, strict=True)
    ]
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    cli.run(main)
