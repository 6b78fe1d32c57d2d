"""What chooses the best epoch, against scikit-learn on the predictions of a run."""

import io
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from small_network import small_network
from small_run import MODEL, metrics, opened, settings
from step_setup import lively

import jaxtl
from jaxtl.config import Config
from jaxtl.data.sources import Subset
from jaxtl.data.splits import Splits
from jaxtl.errors import UserError
from jaxtl.files import sealed, unsealed
from jaxtl.models import merge, split
from jaxtl.training.checks import check_monitors
from jaxtl.training.setup import open_data, train
from jaxtl.weights.write import write_weights

BY_SCIKIT_LEARN = {
    "balanced_accuracy": lambda labels, p: balanced_accuracy_score(labels, p.argmax(axis=1)),
    "macro_f1": lambda labels, p: f1_score(labels, p.argmax(axis=1), average="macro"),
    "auroc": lambda labels, p: roc_auc_score(labels, p, multi_class="ovr"),
}


def of_unequal_classes(data):
    """Validation images of which some classes have few."""
    rng, labels = np.random.default_rng(0), data.val.labels
    kept = np.flatnonzero(rng.random(len(labels)) < np.linspace(0.2, 1, 10)[labels])
    return Splits(data.train, Subset(data.val, kept, labels[kept], data.val.classes))


class Ended(NamedTuple):
    """A run: its config, the images it validated on, its directory and what it said."""

    config: Config
    val: Subset
    path: Path
    said: str


@pytest.fixture(scope="module")
def begin(small, tmp_path_factory):
    """A function that trains the head of a random trunk with some monitor."""
    folder = tmp_path_factory.mktemp("monitored")
    graph, variables = split(small_network(num_classes=None))
    write_weights(merge(graph, lively(variables)), folder / "trunk.h5")

    def begin(monitor, name=None, **changes):
        # So high a learning rate that metrics rise and fall, each at other epochs.
        phase = {"train": {"head/.*": 1.0}, "lr": 0.3, "epochs": 6, "monitor": monitor, **changes}
        model = MODEL | {"weights": str(folder / "trunk.h5"), "dropout": 0.0}
        config, out = settings(phase, model=model, views=1), io.StringIO()
        data = of_unequal_classes(open_data(config))
        path = folder / (name or monitor)
        train(config, data, path, Console(file=out, width=300))
        return Ended(config, data.val, path, out.getvalue())

    return begin


@pytest.fixture(scope="module")
def by_auroc(begin):
    return begin("auroc")


def result(run):
    return json.loads((run.path / "run.json").read_text())["result"]


def probabilities(run):
    pixels = np.stack([run.val[i] for i in range(len(run.val))])
    found = jaxtl.load_run(run.path).predict(pixels[..., None].repeat(3, axis=3))
    return found.astype(np.float64) / found.sum(axis=1, keepdims=True, dtype=np.float64)


def is_measured_and_chosen(run, monitor):
    """Asserts that the result has the metric of scikit-learn, and that its epoch is the best by
    what was logged."""
    lines = [line for line in metrics(run.path) if line["split"] == "val"]
    scores = [(line[monitor], -line["loss"]) for line in lines]
    best = scores.index(max(scores)) + 1
    assert result(run)["best_epoch"] == best
    expected = BY_SCIKIT_LEARN[monitor](run.val.labels, probabilities(run))
    assert result(run)[monitor] == pytest.approx(expected, abs=1e-6)
    assert scores[best - 1][0] == pytest.approx(expected, abs=1e-4)  # from cached activations
    assert f"val_{monitor} {result(run)[monitor]:.4f}" in run.said.splitlines()[-1]
    by_accuracy = max(range(6), key=lambda i: (lines[i]["accuracy"], -lines[i]["loss"]))
    return best, by_accuracy + 1


def test_the_epoch_with_the_best_auroc_is_the_result(by_auroc):
    is_measured_and_chosen(by_auroc, "auroc")
    newest = opened(by_auroc.path)[1].newest()
    assert newest.best_score == max(line.get("auroc", 0) for line in metrics(by_auroc.path))


def test_an_evaluation_predicts_the_same_classes_with_and_without_probabilities(by_auroc):
    predictor, expected = jaxtl.load_run(by_auroc.path), probabilities(by_auroc)
    for keep in (False, True):
        found = predictor.evaluate(by_auroc.val, keep_probabilities=keep)
        np.testing.assert_array_equal(found.predicted, expected.argmax(axis=1))
        np.testing.assert_array_equal(found.labels, by_auroc.val.labels)
        assert (found.log_probabilities is not None) == keep


@pytest.mark.slow
@pytest.mark.parametrize("monitor", ["balanced_accuracy", "macro_f1"])
def test_the_epoch_with_the_best_of_another_metric_is_the_result(begin, monitor):
    is_measured_and_chosen(begin(monitor), monitor)


@pytest.mark.slow
def test_the_least_loss_is_another_epoch_than_the_best_accuracy_and_ends_patience(begin):
    run = begin("loss", lr=1.0, epochs=12, patience=2)
    lines = [line for line in metrics(run.path) if line["split"] == "val"]
    losses = [line["loss"] for line in lines]
    best = losses.index(min(losses)) + 1
    assert result(run)["best_epoch"] == best
    assert len(losses) in (best + 2, 12)
    assert result(run)["loss"] == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.slow
def test_the_average_of_the_best_epochs_is_no_worse_by_what_is_monitored(begin):
    run = begin("macro_f1", name="averaged", average_best=3)
    logged = [line["macro_f1"] for line in metrics(run.path) if line["split"] == "val"]
    assert result(run)["macro_f1"] >= max(logged) - 1e-6
    assert "best epochs, val_loss" in run.said


def test_a_run_of_an_older_version_goes_on_by_accuracy(by_auroc, tmp_path):
    """Its checkpoints have no `best_score`."""
    shutil.copytree(by_auroc.path, tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints").rglob("progress/metadata"):
        record = unsealed(json.loads(file.read_text()))
        assert record["progress"].pop("best_score") is not None
        file.write_text(json.dumps(sealed(record)))
    newest = opened(tmp_path / "run")[1].newest()
    assert newest.best_score is None
    assert newest.best_quality == (newest.best_accuracy, -newest.best_loss)


def some(val, labels):
    kept = np.flatnonzero(np.isin(val.labels, labels))
    return Subset(val, kept, val.labels[kept], val.classes)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_classes_that_are_lacking_are_named_and_too_few_are_refused(by_auroc, split):
    def checked(images, out):
        others = {"val": by_auroc.val} | {{"validation": "val", "test": "test"}[split]: images}
        check_monitors(by_auroc.config, Splits(by_auroc.val, **others), out)

    text = io.StringIO()
    out = Console(file=text, width=300)
    checked(by_auroc.val, out)
    assert text.getvalue() == ""
    checked(some(by_auroc.val, [0, 1, 2, 4, 5, 6, 7, 8]), out)
    assert text.getvalue() == (
        f"p0: auroc is the mean over the 8 classes that the {split} images have, without 3, 9\n"
    )
    needs = rf"phases\.p0\.monitor: auroc needs {split} images of two classes"
    with pytest.raises(UserError, match=needs):
        checked(some(by_auroc.val, [4]), out)
