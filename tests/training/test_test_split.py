"""The test of a run: once, at its end, and of no influence on it."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from rich.console import Console
from sklearn.metrics import accuracy_score, log_loss
from small_network import small_network
from small_run import MODEL, bits, metrics, settings
from step_setup import lively

import jaxtl
from jaxtl import evaluate
from jaxtl.config import Config
from jaxtl.errors import UserError
from jaxtl.exporting.card import model_card
from jaxtl.files import write_json
from jaxtl.models import merge, split
from jaxtl.training.setup import open_data, train
from jaxtl.weights.write import write_weights

DATA = {"source": "digits", "batch_size": 256, "test_fraction": 0.2}
WILSON = r"\((\d+)/(\d+) correct, 95 % interval ([\d.]+) to ([\d.]+)\)"


class Ended(NamedTuple):
    """A run with a test: its config, its directory and what it said."""

    config: Config
    path: Path
    said: str


@pytest.fixture(scope="module")
def tested(small, tmp_path_factory):
    """A head on a random trunk that lets the signal through."""
    folder, out = tmp_path_factory.mktemp("tested"), io.StringIO()
    network = small_network(num_classes=None)
    graph, variables = split(network)
    write_weights(merge(graph, lively(variables)), folder / "trunk.h5")
    model = MODEL | {"weights": str(folder / "trunk.h5")}
    phase = {"train": {"head/.*": 1.0}, "lr": 0.05, "epochs": 2}
    config = settings(phase, data=DATA, model=model, views=1)
    console = Console(file=out, width=300)
    train(config, open_data(config), folder / "run", console, show_test=True)
    return Ended(config, folder / "run", out.getvalue())


def recorded(run):
    return json.loads((run / "run.json").read_text())


def test_the_test_is_that_of_the_result_on_images_that_the_run_did_not_see(tested):
    record, splits = recorded(tested.path), open_data(tested.config)
    assert record["data"]["test"] == {"images": 359, "sha256": splits.test.fingerprint}

    pixels = np.stack([splits.test[i] for i in range(359)])
    probabilities = jaxtl.load_run(tested.path).predict(pixels[..., None].repeat(3, axis=3))
    result, labels = record["result"], splits.test.labels
    assert result["test_accuracy"] == accuracy_score(labels, probabilities.argmax(axis=1))
    exact = probabilities.astype(np.float64)
    expected = log_loss(labels, exact / exact.sum(axis=1, keepdims=True))
    assert result["test_loss"] == pytest.approx(expected, rel=1e-5)
    assert result["test_accuracy"] != result["accuracy"]

    last = tested.said.splitlines()[-1]
    assert last.startswith(f"test_loss {result['test_loss']:.4f} test_accuracy")
    assert re.search(WILSON, last)[1] == str(round(359 * result["test_accuracy"]))
    assert tested.said.count("test_loss") == 1


def test_the_record_of_a_run_without_a_test_says_nothing_of_one(tested, tmp_path):
    """And training is the same, image by image, whatever the test has."""
    without = open_data(tested.config)._replace(test=None)
    train(tested.config, without, tmp_path / "run", Console(quiet=True))
    assert bits(tmp_path / "run") == bits(tested.path)
    assert metrics(tmp_path / "run") == metrics(tested.path)
    record = recorded(tmp_path / "run")
    assert record["data"].keys() == {"train", "val"}
    assert record["result"].keys() == {"step", "best_epoch", "loss", "accuracy", "top5"}


def test_evaluate_measures_the_images_of_the_test(tested, capsys):
    result = recorded(tested.path)["result"]
    assert evaluate.main(["--run", str(tested.path), "--split", "test"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"loss {result['test_loss']:.4f} accuracy {result['test_accuracy']:.4f}")
    assert last.endswith(tested.said.splitlines()[-1].partition("  ")[2])


def test_a_split_that_is_not_there_is_refused_with_what_to_do(tested, tmp_path):
    with pytest.raises(UserError, match="leave out --data"):
        evaluate.main(["--run", str(tested.path), "--split", "test", "--data", "digits"])
    older, record = tmp_path / "run", recorded(tested.path)
    shutil.copytree(tested.path, older)
    del record["data"]["test"]
    write_json(older / "run.json", record)
    with pytest.raises(UserError, match=r"no images for a test: .*test_fraction=0\.2"):
        evaluate.main(["--run", str(older), "--split", "test"])


def test_page_and_card_show_the_test(tested):
    result = recorded(tested.path)["result"]
    correct = round(359 * result["test_accuracy"])
    page = (tested.path / "report.html").read_text()
    assert f"{result['test_accuracy']:.2%}" in page
    assert f"{correct} of 359 images that chose nothing" in page
    run = jaxtl.load_run(tested.path)
    card = model_card(run, run.evaluate(run.images("val")))
    low, high = re.search(WILSON, tested.said.splitlines()[-1]).groups()[2:]
    row = f"| {result['test_accuracy']:.4f} | {low} to {high} | {correct} of 359 |"
    (entry,) = yaml.safe_load(card.split("---\n")[1])["model-index"]
    values = {r["dataset"]["split"]: r["metrics"][0]["value"] for r in entry["results"]}
    assert values == {
        "validation": pytest.approx(result["accuracy"], abs=5e-5),
        "test": pytest.approx(result["test_accuracy"], abs=5e-5),
    }
    before, _, after = card.partition("On the validation images")
    assert row in before
    assert row not in after
