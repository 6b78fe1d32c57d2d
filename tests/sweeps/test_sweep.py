"""Runs that train together come out as those that train one by one."""

import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console
from workplace import wait_until

from jaxtl import convert, load_run, report
from jaxtl.errors import UserError
from jaxtl.models import build, split
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.metrics_log import read_metrics
from jaxtl.sweeps.failure import Failure
from jaxtl.sweeps.heads import HeadRun
from jaxtl.sweeps.ranking import folds_table, ranking_rows
from jaxtl.sweeps.sweep import sweep
from jaxtl.sweeps.variations import grid, load_sweep
from jaxtl.training import parallel, step
from jaxtl.training.setup import open_data, train

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
        {k: v for k, v in line.items() if k not in ("images_per_second", "input_wait")}
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


@pytest.mark.slow
def test_runs_of_several_seeds_on_one_trunk_are_the_runs_alone(swept, tmp_path):
    """Those of a seed share what dropout drops until one of them stops early."""
    others, folder, _ = swept
    run, weights = folder / others[0].name, tmp_path / "trunk.h5"
    assert convert.main(["--from", str(run), "--to", str(weights)]) == 0
    runs = [(1, 3.0), (0, 1e-2), (1, 1e-2), (0, 3e-2), (1, 1e-3), (1, 3e-3)]
    each = [{"seed": seed, "phases.head.lr": lr} for seed, lr in runs]
    (tmp_path / "swept.py").write_text(CONFIG.format(sweep=f"return {each}"))
    brought = {"model.weights": f"('keras', '{weights}')", "phases.head.epochs": "4"}
    brought |= {"phases.head.ema": "0.8", "phases.head.lr_scaling": "sqrt"}
    brought |= {"phases.head.class_weights": "auto", "phases.head.focal": "1"}
    brought |= {"data.balanced": "True"}
    variations = load_sweep(str(tmp_path / "swept.py"), brought)
    out = Console(file=io.StringIO(), width=200)
    found = sweep(variations, tmp_path / "all", out)
    assert "6 runs train together" in out.file.getvalue()
    for variation in variations:
        alone, config = tmp_path / "alone" / variation.name, variation.config
        expected = train(config, open_data(config), alone, QUIET)
        assert found[variation.name] == pytest.approx(expected, rel=2e-4), variation.name


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 4, 11])
def test_a_run_of_a_group_is_the_run_alone(swept, tmp_path, number):
    """Of runs that learn: in others, which stay at chance, rounding chooses the best epoch."""
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
        saved[run] = checkpoints.variables(newest.best_number, like)  # the result
        checkpoints.close()
    for at in ("phase", "epoch", "batch", "step", "stale", "best_step", "best_epoch"):
        assert getattr(reached[together], at) == getattr(reached[alone], at)
    for path, value in saved[alone].items():
        found = saved[together][path]
        np.testing.assert_allclose(found, value, rtol=1e-3, atol=1e-4, err_msg=path)
    expected, found = (
        json.loads((run / "run.json").read_text())["result"] for run in (alone, together)
    )
    assert found == pytest.approx(expected, rel=2e-4)


@pytest.mark.slow
def test_the_ranking_is_by_accuracy_then_loss_and_the_csv_has_all_of_it(swept):
    variations, folder, ranking = swept
    results = [(-result["accuracy"], result["loss"]) for result in ranking.values()]
    assert results == sorted(results)
    with (folder / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(variations) == 16
    assert [row["run"] for row in rows] == list(ranking)
    assert {row["phases.head.lr"] for row in rows} == {"0.01", "3.0"}
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)


@pytest.mark.slow
def test_the_best_run_has_a_page_and_the_others_get_theirs_on_demand(swept):
    _, folder, ranking = swept
    best, second, *_ = ranking
    drawn = (folder / best / "report.html").read_text()
    assert f"{ranking[best]['accuracy']:.2%}" in drawn
    assert report.main([str(folder / best)]) == 0
    again = (folder / best / "report.html").read_text()
    assert classes(again) == classes(drawn)  # recall and precision, from its predictions
    page = folder / second / "report.html"
    assert not page.exists()
    assert report.main([str(page.parent)]) == 0
    text = page.read_text()
    assert f"{ranking[second]['accuracy']:.2%}" in text
    assert f"<b>{ranking[second]['loss']:.4f}</b>" in text


@pytest.mark.slow
def test_a_run_of_a_group_can_be_used_like_any_other(swept):
    _, folder, ranking = swept
    predicted = load_run(folder / next(iter(ranking))).predict(np.zeros((3, 8, 8, 3), np.uint8))
    np.testing.assert_allclose(predicted.sum(axis=1), 1, rtol=1e-5)


def group_of(run):
    """The folder of the checkpoint that a run shares with others."""
    place = json.loads((run / "checkpoints" / "group.json").read_text())
    return (run / place["folder"]).resolve()


@pytest.mark.slow
def test_a_run_of_a_group_has_its_slice_of_the_variables_bit_for_bit(swept):
    variations, folder, _ = swept
    for number in (0, 7, 14):
        group = group_of(folder / variations[number].name)
        with ocp.StandardCheckpointer() as reader:
            stacked, shared = (reader.restore(group / part) for part in ("stacked", "shared"))
        assert {len(value) for value in stacked.values()} == {8}
        chex.assert_tree_all_finite((stacked, shared))
        assert len({np.asarray(kernel).tobytes() for kernel in stacked["head/kernel"]}) == 8
        found = split(load_run(folder / variations[number].name).network)[1]
        assert found.keys() == stacked.keys() | shared.keys()
        for path, value in found.items():
            # Of two seeds, whose random trunks differ, each has a group; the seed varies fastest.
            expected = stacked[path][number // 2, ...] if path in stacked else shared[path]
            assert np.asarray(value).tobytes() == np.asarray(expected).tobytes(), path


@pytest.mark.slow
def test_the_variables_of_a_group_are_written_once(swept):
    variations, folder, _ = swept
    inside = {"checkpoints", "config.json", "metrics.jsonl", "run.json", "tensorboard"}
    for variation in variations:
        run = folder / variation.name
        assert {path.name for path in run.iterdir()} - {"report.html"} == inside
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["group.json"]
    assert len({group_of(folder / variation.name) for variation in variations}) == 2


@pytest.mark.slow
def test_a_run_without_the_checkpoint_of_its_group_is_refused_in_one_line(swept, tmp_path):
    variations, folder, ranking = swept
    moved = tmp_path / "moved"
    shutil.copytree(folder / variations[0].name, moved)
    with pytest.raises(UserError, match=r"moved.*which is not there; move the run back") as error:
        load_run(moved)
    assert "\n" not in str(error.value)
    # A sweep that moves as a whole keeps its bits; another sweep has no variables for its runs.
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    name = next(iter(ranking))
    before, after = (split(load_run(at / name).network)[1] for at in (folder, whole))
    chex.assert_trees_all_equal(before, after)
    group = group_of(whole / name)
    shutil.rmtree(group / "stacked" / "d")
    with pytest.raises(UserError, match="stacked is damaged or incomplete"):
        load_run(whole / name)
    shutil.rmtree(group)
    with pytest.raises(UserError, match=f"{group}, .*which is not there"):
        load_run(whole / name)


@pytest.mark.slow
def test_a_run_of_a_group_can_be_converted_and_trained_to_its_end_once_more(swept, tmp_path):
    variations, folder, _ = swept
    run = folder / variations[2].name
    assert convert.main(["--from", str(run), "--to", str(tmp_path / "run.h5")]) == 0
    assert (tmp_path / "run.h5").exists()
    before = json.loads((run / "run.json").read_text())["result"]
    lines_before = lines(run)
    copy = tmp_path / "all" / run.name
    shutil.copytree(run, copy)
    shutil.copytree(folder / "heads", copy.parent / "heads")
    config = variations[2].config
    assert train(config, open_data(config), copy, QUIET) == pytest.approx(before, rel=2e-4)
    assert lines(copy) == lines_before


@pytest.mark.slow
def test_a_run_that_diverged_is_last_and_is_not_trained_again(tmp_path):
    lrs = "yield from grid({'phases.head.lr': (1e-2, 3e38), 'seed': (0, 1)})"
    variations = written(tmp_path, lrs)
    ranking = sweep(variations, tmp_path / "all", QUIET)
    lost = [variation.name for variation in variations if "3e+38" in variation.name]
    diverged = [name for name in ranking if isinstance(ranking[name], Failure)]
    assert diverged == lost == list(ranking)[2:]
    said = json.loads((tmp_path / "all" / "failed.json").read_text())
    assert {name: failure["kind"] for name, failure in said.items()} == dict.fromkeys(
        lost, "diverged"
    )
    assert all("training loss is" in failure["reason"] for failure in said.values())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "all").rglob("*.json")}
    again = sweep(variations, tmp_path / "all", QUIET)
    assert list(again) == list(ranking)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow
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
    for name, result in found.items():
        assert result == pytest.approx(ranking[name], rel=2e-4)


@pytest.mark.slow
def test_heads_train_one_by_one_where_the_disk_cannot_hold_all_activations_together(
    swept, tmp_path
):
    folder = swept[1]
    train, val = 1437 * 1280 * 4, 360 * 1280 * 4  # bytes
    disk = {"cache.disk_gb": str((train + val / 2) / 1e9), "phases.head.epochs": "1"}
    variations = load_sweep(str(folder.parent / "swept.py"), disk)[:4:2]  # of one seed
    out = Console(file=io.StringIO(), width=200)
    sweep(variations, tmp_path / "all", out)
    assert "train together" not in out.file.getvalue()


@pytest.mark.slow
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
    assert again.keys() == ranking.keys()


SLOW_TO_WRITE = """
import time
from jaxtl import cli, sweep
from jaxtl.runs.metrics_log import MetricsLog
close = MetricsLog.close
MetricsLog.close = lambda log: (time.sleep(0.5), close(log))
cli.run(sweep.main)
"""


def rows(table):
    with table.open() as file:
        return {row["run"]: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_a_sweep_that_is_killed_while_it_writes_its_runs_ends_with_the_same_table(swept, tmp_path):
    _, reference, _ = swept
    arguments = ["--cfg", str(reference.parent / "swept.py"), "--workdir", str(tmp_path / "all")]
    process = subprocess.Popen([sys.executable, "-c", SLOW_TO_WRITE, *arguments])

    def complete():
        return [path for path in (tmp_path / "all").glob("*-*") if path.suffix != ".part"]

    wait_until(lambda: len(complete()) >= 3, process)
    wait_until(lambda: list(tmp_path.glob("all/*.part/metrics.jsonl")), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    runs = complete()
    assert 3 <= len(runs) < 16
    assert all(json.loads((run / "run.json").read_text())["result"] for run in runs)
    assert list(tmp_path.glob("all/*.part"))  # the runs that were being written
    left = {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("*")}
    command = [sys.executable, "-m", "jaxtl.sweep", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{len(runs)} of them complete" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert not list(tmp_path.glob("all/**/*.part"))
    expected, found = rows(reference / "sweep.csv"), rows(tmp_path / "all" / "sweep.csv")
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        close = {key: pytest.approx(float(row[key]), rel=2e-4) for key in row if "val_" in key}
        assert found[name] | {key: float(found[name][key]) for key in close} == row | close


@pytest.mark.slow
def test_the_heads_of_a_group_are_traced_once_a_phase(tmp_path, monkeypatch):
    traced = []

    def at_most_once(function, *arguments, **options):
        if function.__name__ == "train_steps":
            chex.clear_trace_counter()  # which counts by the place of the call
            traced.append(function)
            function = chex.assert_max_traces(function, n=1)
        return parallel.data_parallel(function, *arguments, **options)

    monkeypatch.setattr(step, "data_parallel", at_most_once)
    variations = written(tmp_path, "yield from grid({'phases.head.lr': (1e-2, 3e-3, 1e-3)})")
    ranking = sweep(variations, tmp_path / "all", QUIET)
    assert [len(lines(tmp_path / "all" / name)) > 8 for name in ranking] == [True] * 3
    assert len(traced) == 2


@pytest.mark.slow
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


def test_values_may_be_numbers_of_numpy(tmp_path):
    """And an array without axes is a number."""
    (run,) = written(
        tmp_path, "import numpy as np; yield {'seed': np.int64(3), 'views': np.array(2)}"
    )
    assert run.name == "00-seed=3,views=2"
    assert (run.config.seed, run.config.views) == (3, 2)
    assert {type(value) for value in run.values.values()} == {int}


def test_a_grid_is_the_cross_product_with_the_last_key_fastest():
    found = list(grid({"a": (1, 2), "b": (3, 4)}))
    assert found == [{"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4}]


@pytest.mark.parametrize(("monitor", "best"), [("accuracy", 2), ("loss", 3)])
def test_a_head_among_others_has_its_best_epoch_by_what_is_monitored(tmp_path, monitor, best):
    (variation, *_) = written(tmp_path, VARIED)
    phase = variation.config.phases[0].model_copy(update={"monitor": monitor})
    run, train = HeadRun(variation), np.ones((4, 2))
    results = [(0.5, 4), (0.6, 7), (0.3, 5), (0.4, 6)]  # loss, and how many of 10 are correct
    said = [
        run.after_epoch(phase, train, np.array([[10 * loss], [top1], [9.0], [10.0]]), 10, 1.0)
        for loss, top1 in results
    ]
    assert run.progress.best_epoch == best
    assert max(number for number, better in enumerate(said, start=1) if better) == best
    assert run.progress.stale == 4 - best


@pytest.mark.slow
def test_heads_that_train_together_are_tested_as_each_of_them_alone(tmp_path):
    text = 'yield from grid({"phases.head.lr": (0.1, 0.2), "data.test_fraction": (0.2,)})'
    out = Console(file=io.StringIO(), width=200)
    found = sweep(written(tmp_path, text), tmp_path / "all", out)
    assert "2 runs train together" in out.file.getvalue()
    for name, result in found.items():
        run = load_run(tmp_path / "all" / name)
        alone = run.evaluate(run.images("test")).metrics(10)
        assert {key: result[f"test_{key}"] for key in alone} == pytest.approx(alone, rel=1e-4)
    best = next(iter(found.values()))
    assert f"its test: test_accuracy {best['test_accuracy']:.4f}" in out.file.getvalue()


@pytest.mark.slow
def test_heads_train_one_by_one_where_sums_do_not_tell_what_is_monitored(tmp_path):
    text = 'yield from grid({"phases.head.lr": (0.1, 0.2), "phases.head.monitor": ("macro_f1",)})'
    out = Console(file=io.StringIO(), width=200)
    found = sweep(written(tmp_path, text), tmp_path / "all", out)
    assert "2 runs train one by one, because of the macro_f1 of each" in out.file.getvalue()
    for name, result in found.items():
        logged = [line for line in lines(tmp_path / "all" / name) if "macro_f1" in line]
        assert result["step"] == logged[-1]["step"] + 2 * 6  # the second phase has two epochs


FOLDED = """from jaxtl.sweeps.variations import folds
    for values in grid({"phases.head.lr": (0.1, 0.2)}):
        yield from (values | fold for fold in folds(3))"""


def test_folds_are_variations_that_differ_in_the_fold(tmp_path):
    found = [
        (v.config.phases[0].lr, v.config.data.folds, v.config.data.fold)
        for v in written(tmp_path, FOLDED)
    ]
    assert found == [(lr, 3, fold) for lr in (0.1, 0.2) for fold in range(3)]


def test_a_config_without_a_sweep_varies_the_fold(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(CONFIG.format(sweep="").partition("def sweep")[0])
    found = load_sweep(str(path), {"data.folds": "3"})
    assert [(v.config.data.folds, v.config.data.fold) for v in found] == [(3, 0), (3, 1), (3, 2)]
    with pytest.raises(UserError, match=r"--cfg\.data\.fold: the sweep trains every fold; leave"):
        load_sweep(str(path), {"data.folds": "3", "data.fold": "1"})
    with pytest.raises(UserError, match=r"no sweep\(\).* over folds with --cfg\.data\.folds=5"):
        load_sweep(str(path), {})


@pytest.mark.slow
def test_a_sweep_of_single_runs_shows_the_test_of_the_best_one_alone(tmp_path):
    text = 'yield from grid({"seed": (0, 1), "data.test_fraction": (0.2,)})'
    out = Console(file=io.StringIO(), width=200)
    found = sweep(written(tmp_path, text), tmp_path / "all", out)
    assert "train together" not in out.file.getvalue()
    assert all("test_accuracy" in result for result in found.values())
    assert out.file.getvalue().count("test_accuracy") == 1


def test_the_folds_of_what_else_is_equal_have_a_mean_and_a_spread(tmp_path):
    accuracies = {0.1: (0.5, 0.7, 0.6), 0.2: (0.9, 0.6, None)}
    variations = written(tmp_path, FOLDED)
    outcomes, images = {}, {}
    for variation in variations:
        lr, fold = variation.config.phases[0].lr, variation.config.data.fold
        accuracy = accuracies[lr][fold]
        outcomes[variation.name] = Failure("error", "no disk")
        if accuracy is not None:
            outcomes[variation.name] = {"accuracy": accuracy, "loss": 1 - accuracy, "step": 3}
            images[variation.name] = 10 * (fold + 1)
    out = Console(file=io.StringIO(), width=200)
    out.print(folds_table(ranking_rows(outcomes, variations, images)))
    lines = [re.split(r"\s*[│┃]\s*", line)[1:-1] for line in out.file.getvalue().splitlines()]
    said = {line[0]: line[1:] for line in lines if line and line[0] in ("0.1", "0.2")}
    assert list(said) == ["0.2", "0.1"]  # the better one first
    assert said["0.1"][:3] == ["3", "3 of 3", "0.6000 ± 0.1000"]
    z, p, n = 1.959963984540054, 37 / 60, 60  # 5, 14 and 18 of 10, 20 and 30 images
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    assert said["0.1"][3:] == [f"{centre - half:.4f} to {centre + half:.4f}", "0.4000 ± 0.1000"]
    assert said["0.2"][1:3] == ["2 of 3", f"0.7500 ± {0.3 / 2**0.5:.4f}"]
    others = written(tmp_path, VARIED)
    equal = {"accuracy": 0.5, "loss": 0.5, "step": 3}
    rows = ranking_rows({v.name: equal for v in others}, others, {v.name: 10 for v in others})
    assert folds_table(rows) is None


@pytest.mark.slow
def test_a_sweep_trains_each_fold_on_the_images_of_the_others(tmp_path):
    out = Console(file=io.StringIO(), width=200)
    variations = written(tmp_path, FOLDED.replace("(0.1, 0.2)", "(0.1,)"))
    found = sweep(variations, tmp_path / "all", out)
    accuracies = [result["accuracy"] for result in found.values()]
    spread = f"{np.mean(accuracies):.4f} ± {np.std(accuracies, ddof=1):.4f}"
    assert spread in out.file.getvalue().partition("over the folds")[2]
    data = [RunDirectory(tmp_path / "all" / name).metadata().data for name in found]
    assert [part.val.images for part in data] == [599] * 3
    assert len({part.val.sha256 for part in data}) == 3


@pytest.mark.slow
def test_a_run_that_finds_its_learning_rate_trains_alone(tmp_path):
    variations = written(tmp_path, 'yield from grid({"phases.head.lr": (1e-2, "auto", 3e-2)})')
    out = io.StringIO()
    sweep(variations, tmp_path / "sweep", Console(file=out, width=300))
    assert "2 runs train together: they differ in phases.head.lr" in out.getvalue()
    (run,) = (tmp_path / "sweep").glob("*auto*")
    (found,) = RunDirectory(run).metadata().learning_rates.values()
    assert f"head: the loss falls fastest at learning rate {found:.2g}" in out.getvalue()
