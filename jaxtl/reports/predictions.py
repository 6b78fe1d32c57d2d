"""What a run says of images, for the terminal and for scripts."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from jaxtl.console import console


class Guess(NamedTuple):
    """A class, how likely it is, 0..1, and whether the image is said to be of it."""

    name: str
    probability: float
    chosen: bool


Prediction = tuple[Path, Sequence[Guess]]
"""An image and its classes, the likeliest first."""


def print_table(predictions: Iterable[Prediction], *, several: bool) -> None:
    """Prints a row for each image; `several` labels are in one cell."""
    columns = ("labels",) if several else ("class", "probability")
    table = Table("image", *columns, "others")
    for path, guesses in predictions:
        own, others = ([g for g in guesses if g.chosen is chosen] for chosen in (True, False))
        cells = (_text(own) or "-",) if several else (own[0].name, f"{own[0].probability:.3f}")
        table.add_row(str(path), *cells, _text(others))
    console().print(table)


def print_csv(predictions: Iterable[Prediction], *, several: bool) -> None:
    """Prints a line for each image and class; of `several` labels a column says which it has."""
    writer = csv.writer(sys.stdout)
    writer.writerow(["path", "rank", "class", "probability", *(["label"] if several else [])])
    for path, guesses in predictions:
        for rank, (name, probability, chosen) in enumerate(guesses, start=1):
            has = [int(chosen)] if several else []
            writer.writerow([path, rank, name, f"{probability:.6f}", *has])


def print_json(predictions: Iterable[Prediction], *, several: bool) -> None:
    """Prints a list of images with their classes and, of `several`, the labels they have."""
    result = [
        {"path": str(path)}
        | ({"labels": [guess.name for guess in guesses if guess.chosen]} if several else {})
        | {"classes": [{"class": g.name, "probability": g.probability} for g in guesses]}
        for path, guesses in predictions
    ]
    json.dump(result, sys.stdout, indent=2)
    print()


def _text(guesses: Sequence[Guess]) -> str:
    return ", ".join(f"{guess.name} {guess.probability:.3f}" for guess in guesses)
