"""Networks are compared on a folder of pictures, from the command line."""

import csv
import os
import re
import signal

import pytest
from PIL import Image
from workplace import finish, wait_until, write_pictures

from jaxtl.compare import main
from jaxtl.errors import UserError

pytestmark = pytest.mark.slow

BOTH = ("--data", "data", "--models", "mobilenet_v2@0.35,mobilenet_v1@0.25", "--weights")
EVERY_NETWORK = ("--data", "data", "--weights", "none", "--image-size", "smallest")
SMALL = ("--image-size", "32", "--batch-size", "4")


@pytest.fixture(scope="module")
def compared(workplace):
    """A comparison of a network with weights and one that they do not fit, with fine-tuning."""
    ended = workplace.run(
        "jaxtl.compare",
        *(*BOTH, "lost.h5,weights.h5", *SMALL, "--finetune", "1", "--out", "compared"),
        *("--budget", "ms=1000", "--budget", "mb=0.001"),
    )
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture(scope="module")
def lines(compared, workplace):
    """The lines of `compare.csv`, by network."""
    with (workplace.path / "compared" / "compare.csv").open() as file:
        return {line["model"]: line for line in csv.DictReader(file)}


def test_a_network_with_weights_has_an_accuracy_and_a_cost(lines):
    line = lines["mobilenet_v2@0.35"]
    assert line["weights"].startswith("weights.h5 sha256:")
    assert 50 < float(line["accuracy"]) <= 100  # a guess is right in 33 %
    assert line["folds"] == "5"
    assert 0 <= float(line["finetuned_accuracy"]) <= 100
    assert float(line["latency_ms"]) > 0


def test_a_network_without_weights_has_a_cost_and_a_reason_and_no_accuracy(lines, compared):
    line = lines["mobilenet_v1@0.25"]
    assert (line["weights"], line["accuracy"], line["finetuned_accuracy"]) == ("none", "", "")
    reason = line["no_weights_because"]
    assert reason.startswith("lost.h5 does not exist; weights.h5 does not fit mobilenet_v1")
    assert float(line["latency_ms"]) > 0
    assert float(line["finetuning_memory_mb"]) > 0
    assert f"mobilenet_v1@0.25 has no weights: {reason[:300]}" in compared.out


def test_the_terminal_says_what_is_being_done_and_what_to_take(compared):
    said = compared.out
    assert "[1/2] mobilenet_v2@0.35, 32 px: linear probe of 1,280 features" in said
    assert "[2/2] mobilenet_v1@0.25, 32 px: fine-tuning on 4" in said
    assert "no weights" in said
    assert re.search(r"under 1000 ms a picture: mobilenet_v2@0.35, [\d.]+ % fine-tuned", said)
    assert re.search(r"under 0.001 MB of weights: none; mobilenet_v1@0.25 comes nearest", said)


def test_there_is_a_picture(compared, workplace):
    with Image.open(workplace.path / "compared" / "compare.png") as picture:
        assert picture.width > 1000


def test_the_same_comparison_again_uses_what_it_made(compared, lines, workplace):
    ended = workplace.run(
        "jaxtl.compare",
        *("--data", "data", "--models", "mobilenet_v2@0.35", "--weights", "weights.h5", *SMALL),
        *("--finetune", "1", "--out", "compared"),
    )
    assert ended.code == 0, ended.err
    assert "continuing compared/mobilenet_v2@0.35" in ended.out
    with (workplace.path / "compared" / "compare.csv").open() as file:
        (line,) = csv.DictReader(file)
    for key in ("accuracy", "accuracy_std", "finetuned_accuracy", "macs", "parameters"):
        assert line[key] == lines["mobilenet_v2@0.35"][key]


def test_ctrl_c_ends_it_quietly(workplace):
    with (workplace.path / "stopped.txt").open("w") as out:
        process = workplace.start("jaxtl.compare", *EVERY_NETWORK, "--out", "stopped", stdout=out)
        wait_until(lambda: "px: weights" in (workplace.path / "stopped.txt").read_text(), process)
        os.kill(process.pid, signal.SIGINT)
        ended = finish(process)
    assert ended.code == 130
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--models", "mobilnet_v2"), ["'mobilnet_v2'", "did you mean 'mobilenet_v2'"]),
        (("--models", "mobilenet_v2@0.3"), ["mobilenet_v2@0.3", "mobilenet_v2@0.35"]),
        (
            ("--models", "mobilenet_v2,inception_v3", "--image-size", "64"),
            ["--image-size 64", "inception_v3", "75 pixels"],
        ),
        (("--image-size", "tiny"), ["--image-size tiny"]),
        (("--budget", "seconds=3"), ["--budget seconds=3", "ms=20"]),
        (("--batch-size", "0"), ["--batch-size 0", "at least 1"]),
        (("--batch-size", "12", "--finetune", "1"), ["--batch-size 12", "the 8 devices"]),
        (("--data", "alone"), ["'red' has a single picture"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    arguments, words, workplace, monkeypatch
):
    monkeypatch.chdir(workplace.path)
    if not (workplace.path / "alone").exists():
        write_pictures(workplace.path / "alone", each=2, seed=0)
        (workplace.path / "alone" / "red" / "00.jpg").unlink()
    with pytest.raises(UserError) as refused:
        main(["--data", "data", *arguments, "--out", "refused"])
    assert all(word in str(refused.value) for word in words)
    assert not (workplace.path / "refused").exists()
