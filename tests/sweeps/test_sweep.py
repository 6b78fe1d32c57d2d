"""Runs that train together come out as those that train one by one."""

import csv
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from jaxtl import evaluate, load_run
from jaxtl.errors import UserError
from jaxtl.models import build, split
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.metrics_log import read_metrics
from jaxtl.sweeps.sweep import sweep
from jaxtl.sweeps.variations import grid, load_sweep
from jaxtl.training.setup import open_data, train

pytestmark = pytest.mark.slow

CONFIG = """
from jaxtl.config import Config, Data, Model, Phase
from jaxtl.sweeps.variations import grid

def get_config() -> Config:
    return Config(
        model=Model(width=0.35, image_size=32, weights=None, dropout=0.3),
        data=Data(source="digits", batch_size=256),
        phases=(
            Phase(name="head", train={{"head/.*": 1.0}}, epochs=6, lr=1e-2, patience=2),
            Phase(name="bias", train={{"head/bias": 1.0}}, epochs=2, optimizer="sgd"),
        ),
    )

def sweep():
    {sweep}
"""
LINES = ("loss", "accuracy", "top5")
VARIED = """yield from grid({
        "phases.head.lr": (1e-2, 3.0),
        "phases.head.weight_decay": (0.0, 0.3),
        "phases.head.label_smoothing": (0.0, 0.2),
        "seed": (0, 1),
    })"""
QUIET = Console(quiet=True)


def written(folder, text):
    path = folder / "swept.py"
    path.write_text(CONFIG.format(sweep=text))
    return load_sweep(str(path), {})


def lines(run):
    """The measurements of a run without those of speed."""
    return [
        {k: v for k, v in line.items() if k != "images_per_second"}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def classes(page):
    """The table of a page that has a row for each class."""
    return page.partition("<h2>Classes</h2>")[2].partition("<h2>")[0]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    variations = written(folder, VARIED)
    return variations, folder / "all", sweep(variations, folder / "all", QUIET)


def names(runs):
    return [run.name for run in runs]


@pytest.mark.parametrize("number", [0, 5, 11])
def test_a_run_of_a_group_is_the_run_alone(swept, tmp_path, number):
    variations, folder, _ = swept
    alone, together = tmp_path / "alone", folder / variations[number].name
    train(variations[number].config, open_data(variations[number].config), alone, QUIET)
    expected, found = lines(alone), lines(together)
    assert len(found) == len(expected)
    for one, other in zip(expected, found, strict=True):
        close = {key: pytest.approx(one[key], rel=2e-4) for key in LINES if key in one}
        assert other == one | close
    like = split(build("mobilenet_v2", num_classes=10, width=0.35))[1]
    reached, saved = {}, {}
    for run in (alone, together):
        checkpoints = Checkpoints(RunDirectory(run).checkpoints, read_only=True)
        reached[run] = newest = checkpoints.newest()
        saved[run] = [checkpoints.variables(at, like) for at in (newest.step, newest.best_step)]
        checkpoints.close()
    assert reached[alone].step == reached[together].step
    assert reached[alone].best_step == reached[together].best_step
    for expected, found in zip(saved[alone], saved[together], strict=True):
        for path, value in expected.items():
            np.testing.assert_allclose(found[path], value, rtol=1e-3, atol=1e-4, err_msg=path)
    expected, found = (
        json.loads((run / "run.json").read_text())["result"] for run in (alone, together)
    )
    assert found == pytest.approx(expected, rel=2e-4)


def test_the_ranking_is_by_accuracy_then_loss_and_the_csv_has_all_of_it(swept):
    variations, folder, ranking = swept
    results = [(-run.result["accuracy"], run.result["loss"]) for run in ranking]
    assert results == sorted(results)
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(variations) == 16
    assert {row["phases.head.lr"] for row in rows} == {"0.01", "3.0"}
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)


def test_the_best_run_has_a_page_and_the_others_get_theirs_on_demand(swept):
    _, folder, (best, second, *_) = swept
    drawn = (folder / best.name / "report.html").read_text()
    assert f"{best.result['accuracy']:.2%}" in drawn
    assert evaluate.main(["--run", str(folder / best.name), "--report"]) == 0
    again = (folder / best.name / "report.html").read_text()
    assert classes(again) == classes(drawn)  # recall and precision, from its predictions
    page = folder / second.name / "report.html"
    assert not page.exists()
    assert evaluate.main(["--run", str(page.parent), "--report"]) == 0
    text = page.read_text()
    assert f"{second.result['accuracy']:.2%}" in text
    assert f"loss {second.result['loss']:.4f}" in text


def test_a_run_of_a_group_can_be_used_like_any_other(swept):
    _, folder, ranking = swept
    predicted = load_run(folder / ranking[0].name).predict(np.zeros((3, 8, 8, 3), np.uint8))
    np.testing.assert_allclose(predicted.sum(axis=1), 1, rtol=1e-5)


def test_a_run_that_diverged_is_last_and_is_not_trained_again(tmp_path):
    lrs = "yield from grid({'phases.head.lr': (1e-2, 3e38), 'seed': (0, 1)})"
    variations = written(tmp_path, lrs)
    ranking = sweep(variations, tmp_path / "all", QUIET)
    lost = [variation.name for variation in variations if "3e+38" in variation.name]
    assert [run.name for run in ranking if run.result is None] == lost == names(ranking[2:])
    said = json.loads((tmp_path / "all" / "diverged.json").read_text())
    assert [name for name in said if "training loss is" in said[name]] == lost
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").rglob("*.json")}
    again = sweep(variations, tmp_path / "all", QUIET)
    assert names(again) == names(ranking)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_more_heads_than_fit_in_memory_train_in_several_groups(swept, tmp_path):
    everything, folder, ranking = swept
    features, head = 1437 * 1280 * 4, (1280 + 1) * 10 * 4  # bytes
    memory = {"cache.memory_gb": str(1.1 * features / 1e9)}
    variations = load_sweep(str(folder.parent / "swept.py"), memory)
    out = Console(file=io.StringIO(), width=200)
    found = sweep(variations, tmp_path / "all", out)
    groups = [int(n) for n in re.findall(r"(\d+) runs train together", out.file.getvalue())]
    assert sum(groups) == len(everything)
    assert max(groups) * head * 3 < 1.1 * features  # with what Adam keeps
    expected = {run.name: run.result for run in ranking}
    for run in found:
        assert run.result == pytest.approx(expected[run.name], rel=2e-4)


def test_a_sweep_that_is_continued_trains_only_what_is_missing(swept):
    variations, folder, ranking = swept
    missing = folder / variations[3].name
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("*/run.json") if p.parent != missing}
    before = json.loads((missing / "run.json").read_text())["result"]
    for path in sorted(missing.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    missing.rmdir()
    again = sweep(variations, folder, QUIET)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    after = json.loads((missing / "run.json").read_text())["result"]
    assert after["accuracy"] == before["accuracy"]
    assert after["loss"] == pytest.approx(before["loss"], rel=2e-4)
    assert {run.name for run in again} == {run.name for run in ranking}


def test_another_sweep_is_not_continued_in_the_same_place(swept, tmp_path):
    _, folder, _ = swept
    other = written(tmp_path, VARIED.replace("3.0", "2.0"))
    with pytest.raises(UserError, match=r"sweep of other runs .*phases\.head\.lr: 3\.0 -> 2\.0"):
        sweep(other, folder, QUIET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("return []", "yields nothing"),
        ("yield {'phases.head.rate': 1.0}", "'phases.head.rate' is not known"),
        ("yield {'seed': 1}; yield {'seed': 1}", "are the same run"),
        ("yield 3", "and not a dict"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        written(tmp_path, text)


def test_a_grid_is_the_cross_product_with_the_last_key_fastest():
    found = list(grid({"a": (1, 2), "b": (3, 4)}))
    assert found == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]
