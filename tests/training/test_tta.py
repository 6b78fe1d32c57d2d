"""Test-time augmentation: the mean over the mirror images that training made."""

import csv
import io
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from small_network import small_network
from small_run import MODEL, settings
from step_setup import lively

import jaxtl
from jaxtl import evaluate, predict
from jaxtl.data.sources import open_all
from jaxtl.errors import UserError
from jaxtl.models import merge, split
from jaxtl.training.setup import open_data, train
from jaxtl.weights.write import write_weights

FLIPS = {
    "horizontal": ({"horizontal_flip": True}, [np.s_[:, :], np.s_[:, ::-1]]),
    "vertical": ({"vertical_flip": True}, [np.s_[:, :], np.s_[::-1, :]]),
    "both": (
        {"horizontal_flip": True, "vertical_flip": True},
        [np.s_[:, :], np.s_[:, ::-1], np.s_[::-1, :], np.s_[::-1, ::-1]],
    ),
    "none": ({}, []),
}
PIXELS = open_all("digits").pixels[:40, ..., None].repeat(3, axis=3)


@pytest.fixture(scope="module", params=FLIPS)
def trained(request, small, tmp_path_factory):
    """A head on a random trunk that lets the signal through, and the mirror images it saw."""
    folder = tmp_path_factory.mktemp("flipped")
    graph, variables = split(small_network(num_classes=None))
    write_weights(merge(graph, lively(variables)), folder / "trunk.h5")
    augment, flips = FLIPS[request.param]
    config = settings(
        {"train": {"head/.*": 1.0}, "lr": 0.05},
        model=MODEL | {"weights": str(folder / "trunk.h5")},
        augment=augment,
    )
    train(config, open_data(config), folder / "run", Console(file=io.StringIO()))
    return folder / "run", flips


def by_hand(run, pixels, flips):
    """The mean of the probabilities of images that were mirrored before."""
    predictor = jaxtl.load_run(run)
    return np.mean([predictor.predict(pixels[:, *flip]) for flip in flips], axis=0)


def test_probabilities_are_means_over_mirror_images(trained):
    run, flips = trained
    if not flips:
        with pytest.raises(UserError, match=r"trained without flips.*leave --tta out"):
            jaxtl.load_run(run, tta=True)
        return
    averaged = jaxtl.load_run(run, tta=True).predict(PIXELS)
    np.testing.assert_allclose(averaged, by_hand(run, PIXELS, flips), atol=1e-5)
    assert np.abs(averaged - jaxtl.load_run(run).predict(PIXELS)).max() > 1e-2


def test_the_commands_average_too(trained, tmp_path, capsys):
    run, flips = trained
    Image.fromarray(PIXELS[7]).save(tmp_path / "7.png")
    commands = (
        (predict, ["--format", "csv", "--top", "10", str(tmp_path / "7.png")]),
        (evaluate, []),
    )
    for command, arguments in commands:
        given = ["--run", str(run), "--tta", *arguments]
        if not flips:
            with pytest.raises(UserError, match="leave --tta out"):
                command.main(given)
            continue
        assert command.main(given) == 0
    if not flips:
        return
    said = capsys.readouterr().out
    rows = csv.DictReader(io.StringIO(said.partition("Found")[0]))
    (expected,) = by_hand(run, PIXELS[7:8], flips)
    shown = {row["class"]: float(row["probability"]) for row in rows}
    assert shown == pytest.approx({str(i): p for i, p in enumerate(expected)}, abs=1e-3)
    val = jaxtl.load_run(run).images("val")
    pixels = np.stack([val[i] for i in range(len(val))])[..., None].repeat(3, axis=3)
    right = int((by_hand(run, pixels, flips).argmax(axis=1) == val.labels).sum())
    assert int(re.search(r"\((\d+)/359 correct", said)[1]) == pytest.approx(right, abs=1)
