"""Runs of several labels an image: pairs of digits, with what scikit-learn says of them."""

import csv
import io
import json
import os
import re
import runpy
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from rich.console import Console
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
)
from small_network import small_network
from small_run import MODEL, bits, metrics, settings, watched
from step_setup import BATCH, CLASSES, MIDDLE, SmallSetup, lively, make_batch

import jaxtl
from jaxtl import evaluate, predict
from jaxtl.config import Config
from jaxtl.config.config_file import vary
from jaxtl.data.sources import Subset
from jaxtl.data.splits import Splits
from jaxtl.errors import Interrupted, UserError
from jaxtl.exporting import onnx as onnx_files
from jaxtl.exporting.card import model_card
from jaxtl.exporting.export import export_run
from jaxtl.models import merge, split
from jaxtl.runs.directory import RunDirectory
from jaxtl.sweeps.sweep import sweep
from jaxtl.sweeps.variations import Variation
from jaxtl.tasks import MULTI_LABEL
from jaxtl.training.checks import check_monitors, check_plan
from jaxtl.training.inference import make_predict_step
from jaxtl.training.parallel import shard
from jaxtl.training.setup import open_data, train
from jaxtl.weights.write import write_weights

WRITE_PAIRS = Path(__file__).parents[2] / "scripts" / "write_digit_pairs.py"
HEAD = {"train": {"head/.*": 1.0}, "lr": 0.03, "epochs": 3}


class Ended(NamedTuple):
    """A run: its config, its images, its directory and what it said."""

    config: Config
    data: Splits
    path: Path
    said: str

    @property
    def record(self):
        return json.loads((self.path / "run.json").read_text())


@pytest.fixture(scope="module")
def place(small, tmp_path_factory):
    """A folder with 200 pairs of digits and a random trunk that lets the signal through."""
    folder = tmp_path_factory.mktemp("pairs")
    runpy.run_path(str(WRITE_PAIRS))["write_pairs"](folder / "images", 200, side=32)
    graph, variables = split(small_network(num_classes=None))
    write_weights(merge(graph, lively(variables)), folder / "trunk.h5")
    return folder


@pytest.fixture(scope="module")
def config_of(place):
    """A function that makes a config of some phases."""

    def config_of(*phases, **sections):
        model = MODEL | {"weights": str(place / "trunk.h5"), "dropout": 0.0}
        data = {"source": f"csv:{place}/images/pairs.csv", "batch_size": 64}
        return settings(*phases, **{"model": model, "data": data, "views": 1} | sections)

    return config_of


def ended(config, path):
    out, data = io.StringIO(), open_data(config)
    train(config, data, path, Console(file=out, width=300), show_test=True)
    return Ended(config, data, path, out.getvalue())


@pytest.fixture(scope="module")
def run(config_of, place):
    """A head on cached activations."""
    return ended(config_of(HEAD), place / "run")


def paths(source):
    return [source.describe(i) for i in range(len(source))]


def test_the_result_is_that_of_scikit_learn_on_the_predictions_of_the_run(run):
    predictor, record = jaxtl.load_run(run.path), run.record
    assert record["task"] == "multi-label"
    thresholds = [record["thresholds"][name] for name in run.data.train.classes]
    assert predictor.thresholds.tolist() == thresholds
    for prefix, source in (("", run.data.val), ("test_", run.data.test)):
        labels, p = source.labels, predictor.predict(paths(source))
        assert p.dtype == np.float32
        given = p >= thresholds
        expected = {
            "loss": np.mean([log_loss(labels[:, c], p[:, c], labels=[0, 1]) for c in range(10)]),
            "accuracy": accuracy_score(labels, p >= 0.5),
            "mAP": average_precision_score(labels, p, average="macro"),
            "macro_f1": f1_score(labels, given, average="macro"),
        }
        measured = {name: record["result"][f"{prefix}{name}"] for name in expected}
        assert measured == pytest.approx(expected, rel=1e-5)
        told = [tuple(np.array(predictor.classes)[row]) for row in given]
        assert predictor.labels_of(p) == told
    assert f"test_mAP {record['result']['test_mAP']:.4f}" in run.said.splitlines()[-1]


def test_thresholds_have_the_best_f1_on_the_validation_images(run):
    p = jaxtl.load_run(run.path).predict(paths(run.data.val))
    for index, threshold in enumerate(run.record["thresholds"].values()):
        labels, own = run.data.val.labels[:, index], p[:, index]
        best = max(f1_score(labels, own >= at) for at in np.unique(own))
        assert f1_score(labels, own >= threshold) == best


def test_the_best_epoch_is_that_of_the_best_map(run):
    lines = [line for line in metrics(run.path) if line["split"] == "val"]
    scores = [(line["mAP"], -line["loss"]) for line in lines]
    assert run.record["result"]["best_epoch"] == scores.index(max(scores)) + 1
    assert len(set(scores)) == 3
    assert RunDirectory(run.path).config().phases[0].monitor == "mAP"
    assert all("top5" not in line for line in metrics(run.path))


@pytest.mark.slow
def test_the_command_that_continues_a_run_need_not_name_what_it_monitors(run, config_of):
    data = open_data(run.config)
    assert train(run.config, data, run.path, Console(quiet=True)) == run.record["result"]
    named = config_of(HEAD | {"monitor": "mAP"})
    assert train(named, data, run.path, Console(quiet=True)) == run.record["result"]
    with pytest.raises(UserError, match=r"p0\.monitor: mAP -> accuracy"):
        train(config_of(HEAD | {"monitor": "accuracy"}), data, run.path, Console(quiet=True))


@pytest.mark.slow
def test_a_run_that_is_continued_ends_with_the_same_bits(run, config_of, tmp_path):
    stop = watched("p0 2/3", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        train(run.config, open_data(run.config), tmp_path / "run", stop)
    again = ended(run.config, tmp_path / "run")
    assert "continuing" in again.said
    assert again.record["result"] == run.record["result"]
    assert again.record["thresholds"] == run.record["thresholds"]
    assert bits(again.path) == bits(run.path)
    assert metrics(again.path) == metrics(run.path)


@pytest.mark.slow
def test_activations_from_the_cache_give_the_same_run_as_images(run, config_of, tmp_path):
    assert "the frozen stages run once" in run.said
    uncached = config_of(HEAD, cache={"disk_gb": 0.0})
    other = ended(uncached, tmp_path / "run")
    assert "the frozen stages run in every step" in other.said or "not cached" in other.said
    for name, value in run.record["result"].items():
        assert other.record["result"][name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.slow
def test_evaluate_says_what_scikit_learn_says(run, capsys):
    assert evaluate.main(["--run", str(run.path), "--split", "test"]) == 0
    out = capsys.readouterr().out
    result, source = run.record["result"], run.data.test
    given = jaxtl.load_run(run.path).predict(paths(source)) >= list(
        run.record["thresholds"].values()
    )
    rows = [list(map(str.strip, line.split("│")[1:-1])) for line in out.splitlines() if "│" in line]
    expected = zip(
        recall_score(source.labels, given, average=None),
        precision_score(source.labels, given, average=None),
        f1_score(source.labels, given, average=None),
        strict=True,
    )
    assert [tuple(row[i] for i in (3, 5, 6)) for row in rows] == [
        tuple(f"{value:.4f}" for value in values) for values in expected
    ]
    assert f"mAP {result['test_mAP']:.4f} macro_f1 {result['test_macro_f1']:.4f}" in out


@pytest.mark.slow
def test_predict_names_the_labels_above_their_thresholds(run, capsys):
    predictor, some = jaxtl.load_run(run.path), paths(run.data.test)[:5]
    expected = predictor.labels_of(predictor.predict(some))
    assert predict.main(["--run", str(run.path), *some, "--format", "json", "--top", "1"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [tuple(sorted(entry["labels"])) for entry in entries] == expected
    assert all(len(entry["classes"]) >= max(1, len(entry["labels"])) for entry in entries)
    assert predict.main(["--run", str(run.path), *some, "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for path, own in zip(some, expected, strict=True):
        named = [line["class"] for line in lines if line["path"] == path and line["label"] == "1"]
        assert tuple(sorted(named)) == own


def test_the_page_and_the_card_show_labels_and_not_confusions(run):
    page = (run.path / "report.html").read_text()
    result = run.record["result"]
    for name in ("mAP", "macro_f1", "test_mAP", "test_macro_f1"):
        assert f"<b>{result[name]:.2%}</b>" in page
    assert page.count("average precision") >= 2
    assert "Confusions" not in page
    assert "could not be drawn" not in run.said
    predictor, has = jaxtl.load_run(run.path), run.data.val.labels
    p = predictor.predict(paths(run.data.val))
    wrong = (p >= predictor.thresholds) != has
    assert len(re.findall("(?:wrongly given|missed), probability", page)) == min(wrong.sum(), 12)
    true, mean = calibration_curve(has.ravel(), p.ravel(), n_bins=15)
    sizes = np.histogram(p, np.linspace(0, 1, 16))[0]
    error = np.average(abs(true - mean), weights=sizes[sizes > 0])
    (shown,) = re.findall(r"<div>calibration error<b>([\d.]+)%", page)
    assert float(shown) / 100 == pytest.approx(error, abs=1e-4)
    pytest.importorskip("huggingface_hub")
    card = model_card(predictor, predictor.evaluate(run.data.val))
    assert f"precision is {result['mAP']:.4f}" in card
    assert "chose the thresholds too" in card


@pytest.fixture
def unfinished(run, tmp_path):
    """The run as it was before it ended, when no thresholds were chosen yet."""
    shutil.copytree(run.path, tmp_path / "run")
    record = run.record | {"result": None, "thresholds": {}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    return jaxtl.load_run(tmp_path / "run")


def test_the_card_of_a_run_that_has_not_ended_names_no_thresholds_as_chosen(run, unfinished):
    pytest.importorskip("huggingface_hub")
    card = model_card(unfinished, unfinished.evaluate(run.data.val))
    assert "\n- The thresholds are 0.5 until the run has ended.\n- The run has not ended" in card
    assert "chose the thresholds" not in card


@pytest.mark.slow
def test_the_json_beside_a_file_has_the_thresholds_that_were_chosen(run, unfinished, tmp_path):
    named = {}
    for name, predictor in (("ended", jaxtl.load_run(run.path)), ("unfinished", unfinished)):
        about = export_run(predictor, tmp_path / f"{name}.onnx").about
        named[name] = json.loads(about.read_text()).get("thresholds")
    assert named == {"ended": run.record["thresholds"], "unfinished": None}


@pytest.mark.slow
def test_an_exported_file_gives_a_sigmoid(run, tmp_path):
    predictor, some = jaxtl.load_run(run.path), paths(run.data.test)[:3]
    onnx_files.write(predictor.network, tmp_path / "a.onnx", 32, predictor.task.activation)
    images = next(predictor.loader(run.data.test).epoch(0)).inputs[:3]
    found = onnx_files.load(tmp_path / "a.onnx")(images)
    np.testing.assert_allclose(found, predictor.predict(some), atol=1e-5)


def binary(place, name="binary"):
    """The same images, with one label: whether one of the two digits is a 3."""
    with (place / "images" / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["labels"] = "three" if "3" in row["labels"].split(";") else ""
    with (place / "images" / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return f"csv:{place}/images/{name}.csv"


@pytest.mark.slow
def test_one_label_is_a_head_of_one_output(config_of, place):
    data = {"source": binary(place), "batch_size": 64}
    run = ended(config_of(HEAD | {"class_weights": "auto"}, data=data), place / "one")
    predictor = jaxtl.load_run(run.path)
    assert (predictor.classes, predictor.network.num_classes) == (("three",), 1)
    p, labels = predictor.predict(paths(run.data.val)), run.data.val.labels
    assert p.shape == (len(labels), 1)
    result = run.record["result"]
    assert result["mAP"] == pytest.approx(average_precision_score(labels[:, 0], p[:, 0]))
    assert result["accuracy"] == accuracy_score(labels[:, 0], p[:, 0] >= 0.5)
    assert set(predictor.labels_of(np.array([[0.0], [1.0]], np.float32))) == {(), ("three",)}


@pytest.mark.slow
def test_a_short_last_batch_on_eight_devices_counts_each_image_once(config_of, tmp_path):
    phase = HEAD | {"mixup": 0.2, "label_smoothing": 0.1, "focal": 2.0, "epochs": 2}
    data = config_of(HEAD).data.model_dump() | {"batch_size": 48}
    run = ended(config_of(phase, data=data, views=0), tmp_path / "run")
    p = jaxtl.load_run(run.path).predict(paths(run.data.val))
    expected = average_precision_score(run.data.val.labels, p, average="macro")
    assert run.record["result"]["mAP"] == pytest.approx(expected, abs=1e-6)
    assert all(np.isfinite(line["loss"]) for line in metrics(run.path))


@pytest.mark.slow
def test_probabilities_of_mirror_images_are_averaged_label_by_label():
    setup, batch = SmallSetup(MIDDLE, 1), make_batch()
    given = setup.variables, None, shard(batch.inputs, setup.devices)
    graph = split(setup.network)[0]

    def probabilities(*flips):
        options = {"devices": setup.devices, "flips": flips, "task": MULTI_LABEL}
        return np.exp(np.asarray(make_predict_step(graph, **options)(*given)))

    each = [probabilities((False, columns)) for columns in (False, True)]
    both = probabilities((False, False), (False, True))
    assert not np.allclose(*each, rtol=1e-3)
    np.testing.assert_allclose(both, np.mean(each, axis=0), rtol=1e-5)


@pytest.mark.slow
def test_one_device_and_eight_take_the_same_steps():
    """With images that only pad the batch, whose labels count nowhere."""
    rows = np.random.default_rng(0).integers(0, 2, (2, BATCH, CLASSES)).astype(np.int32)
    batches = [
        make_batch(seed, images=13)._replace(labels=labels) for seed, labels in enumerate(rows)
    ]
    others = [
        batch._replace(labels=np.where(batch.valid[:, None], batch.labels, 1 - batch.labels))
        for batch in batches
    ]
    ended = []
    for devices, images in ((1, batches), (8, batches), (8, others)):
        setup = SmallSetup(MIDDLE, devices, lr=0.01, mixup=0.4, focal=2.0)
        sums = setup.run(images)
        assert [int(done.images) for done in sums] == [13, 13]
        ended.append(({p: np.asarray(v) for p, v in setup.state.variables.items()}, sums))
    for variables, sums in ended[1:]:
        np.testing.assert_allclose(sums, ended[0][1], rtol=1e-4)
        for path, value in variables.items():
            np.testing.assert_allclose(value, ended[0][0][path], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_sweep_ranks_runs_by_map(run, tmp_path):
    rates = (0.03, 1e-5, 0.01)
    runs = [
        Variation(f"lr{lr}", {"phases.p0.lr": lr}, vary(run.config, {"phases.p0.lr": lr}))
        for lr in rates
    ]
    out = io.StringIO()
    ranked = sweep(runs, tmp_path / "sweep", Console(file=out, width=300))
    scores = {name: result["mAP"] for name, result in ranked.items()}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert list(scores)[-1] == "lr1e-05"
    assert scores["lr0.03"] == run.record["result"]["mAP"]
    assert "3 runs train one by one, because of the mAP of each" in out.getvalue()
    assert f"val_mAP {max(scores.values()):.4f}" in out.getvalue()
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_mAP"]) for row in rows] == list(scores.values())
    assert sweep(runs, tmp_path / "sweep", Console(quiet=True)) == ranked  # nothing is left


def test_labels_that_a_split_lacks_are_named(run):
    val = run.data.val
    without = np.flatnonzero(val.labels[:, 3] == 0)
    lacking = Subset(val, without, val.labels[without], val.classes)
    out = io.StringIO()
    check_monitors(run.config, Splits(run.data.train, lacking), Console(file=out, width=300))
    assert out.getvalue() == (
        "no image of the split val has the label 3: it is not in mAP and macro_f1, and its "
        "threshold is 0.5\n"
    )
    nothing = Subset(val, without[:2], np.zeros((2, 10), np.int32), val.classes)
    with pytest.raises(UserError, match="no image of the split val has a label"):
        check_monitors(run.config, Splits(run.data.train, nothing), Console(quiet=True))


def test_what_is_not_for_several_labels_is_refused(run):
    for key, value, message in (
        ("data.balanced", True, r"data\.balanced draws .*class_weights=auto"),
        ("phases.p0.monitor", "auroc", r"auroc is no metric of multi-label images: take one of"),
    ):
        with pytest.raises(UserError, match=message):
            check_plan(vary(run.config, {key: value}), run.data.train, jax.devices()[:1])
    digits = vary(run.config, {"phases.p0.monitor": "mAP", "data.source": "digits"})
    images = open_data(digits).train
    with pytest.raises(UserError, match="mAP is no metric of single-label images"):
        check_plan(digits, images, jax.devices()[:1])


@pytest.mark.slow
def test_a_network_learns_which_digits_overlap(small, tmp_path):
    """Three times as well as the prior, whose mAP is the mean fraction of images with a label."""
    pairs = runpy.run_path(str(WRITE_PAIRS))["write_pairs"]
    table = pairs(tmp_path / "images", 1000, side=32, overlay=True)
    config = settings(
        {
            "train": {"from_stage": None, "decay": 1.0},
            "epochs": 12,
            "lr": 3e-3,
            "batch_norm": "train",
            "schedule": "cosine",
        },
        data={"source": f"csv:{table}", "batch_size": 64},
    )
    run = ended(config, tmp_path / "run")
    prior = run.data.test.labels.mean(axis=0).mean()
    constant = np.full(run.data.test.labels.shape, 0.5)
    assert average_precision_score(run.data.test.labels, constant) == pytest.approx(prior)
    assert run.record["result"]["test_mAP"] > 3 * prior
