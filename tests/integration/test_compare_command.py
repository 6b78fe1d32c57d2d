"""Networks are compared on a folder of images, from the command line."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import pytest
from PIL import Image
from workplace import finish, wait_until, write_images, write_weights

from jaxtl.compare import main
from jaxtl.comparison.candidates import Candidate, candidates, load, sources
from jaxtl.comparison.measuring import within_memory
from jaxtl.comparison.results import Failure
from jaxtl.errors import UserError

pytestmark = pytest.mark.slow

BOTH = ("--data", "data", "--models", "mobilenet_v2@0.35,mobilenet_v1@0.25", "--weights")
NONE = ("--data", "data", "--models", "mobilenet_v1@0.25,mobilenet_v2@0.35", "--weights", "none")
SMALL = ("--image-size", "32", "--batch-size", "8")


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
    assert line["weights_tried"] == "lost.h5 does not exist"
    assert 50 < float(line["probe_accuracy"]) <= 100  # a guess is correct for 33 %
    assert line["folds"] == "5"
    assert float(line["largest_class_percent"]) == pytest.approx(100 / 3)
    assert float(line["latency_ms"]) > 0


def test_what_fine_tuning_came_to_is_that_of_the_run(lines, workplace):
    line, run = lines["mobilenet_v2@0.35"], workplace.path / "compared" / "mobilenet_v2@0.35"
    result = json.loads((run / "run.json").read_text())["result"]
    correct, images = int(line["finetuned_correct"]), int(line["validation_images"])
    assert (images, correct / images) == (18, result["accuracy"])
    assert line["ranked_by"] == "fine-tuning"
    assert float(line["accuracy"]) == float(line["finetuned_accuracy"]) == 100 * correct / 18
    assert line["best_epoch"] == "1"


def test_a_network_without_weights_has_a_cost_and_a_reason_and_no_accuracy(lines, compared):
    line = lines["mobilenet_v1@0.25"]
    assert (line["weights"], line["accuracy"], line["probe_accuracy"]) == ("none", "", "")
    reason = line["weights_tried"]
    assert reason.startswith("lost.h5 does not exist; weights.h5 does not hold mobilenet_v1")
    assert float(line["latency_ms"]) > 0
    assert float(line["finetuning_memory_mb"]) > 0
    assert f"mobilenet_v1@0.25: no weights: {reason}" in compared.out


def test_the_terminal_says_what_is_being_done_and_what_to_take(compared):
    said = compared.out
    assert "[1/2] mobilenet_v2@0.35, 32 px: linear probe of 1,280 features" in said
    assert "[2/2] mobilenet_v1@0.25, 32 px: fine-tuning on 8" in said
    assert "no weights" in said
    assert "mobilenet_v2@0.35, 32 px: lost.h5 does not exist; using weights.h5" in said
    assert re.search(r"under 1000 ms an image: mobilenet_v2@0.35, \d+/18 = [\d.]+ % fine", said)
    assert re.search(r"under 0.001 MB of weights: none; mobilenet_v1@0.25 comes nearest", said)


def test_there_is_a_plot(compared, workplace):
    with Image.open(workplace.path / "compared" / "compare.png") as image:
        assert image.width > 1000


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
    for key in ("probe_accuracy", "probe_std", "finetuned_correct", "macs", "parameters"):
        assert line[key] == lines["mobilenet_v2@0.35"][key]


def interrupted(workplace, folder, *arguments):
    """A comparison that Ctrl-C reached just after the first network was in the file."""
    table = workplace.path / folder / "compare.csv"
    process = workplace.start("jaxtl.compare", *arguments, "--out", folder)
    wait_until(table.exists, process)
    os.kill(process.pid, signal.SIGINT)
    ended = finish(process)
    assert (ended.code, "Traceback" in ended.err) == (130, False), ended.err
    with table.open() as file:
        return ended.out, list(csv.DictReader(file))


def test_ctrl_c_shows_what_was_measured_and_how_to_go_on(workplace):
    said, lines = interrupted(workplace, "stopped comparing", *NONE, *SMALL)
    assert [line["model"] for line in lines] == ["mobilenet_v1@0.25"]
    assert float(lines[0]["latency_ms"]) > 0
    assert "mobilenet_v1@0.25" in said.partition("params")[2]
    assert said.splitlines()[-2] == "stopped comparing/compare.csv"
    assert "to continue: the same command with --out stopped comparing" in said.splitlines()[-1]


def test_ctrl_c_while_the_first_network_is_fine_tuned_keeps_what_was_measured(workplace):
    flags = (*BOTH, "weights.h5", *SMALL, "--finetune", "50")
    said, lines = interrupted(workplace, "stopped tuning", *flags)
    (line,) = lines
    assert float(line["probe_accuracy"]) > 50
    assert (line["ranked_by"], line["accuracy"]) == ("fine-tuning", "")
    assert "not fine-tuned" in said.partition("params")[2]
    assert "to continue: the same command with --out stopped tuning" in said.splitlines()[-1]


@pytest.mark.parametrize("change", [("--finetune", "2"), ("--data", "data/val")])
def test_another_comparison_in_the_same_folder_is_refused_before_it_is_measured(
    change, compared, workplace, monkeypatch
):
    monkeypatch.chdir(workplace.path)
    table = workplace.path / "compared" / "compare.csv"
    before = table.read_bytes()
    given = ("weights.h5", *SMALL, "--finetune", "1", "--out", "compared")
    with pytest.raises(UserError) as refused:
        main([*BOTH, *given, *change])
    assert "--out" in str(refused.value)
    assert "--workdir" not in str(refused.value)
    assert table.read_bytes() == before


def test_a_damaged_file_is_refused_even_where_another_source_would_do(workplace, monkeypatch):
    monkeypatch.chdir(workplace.path)
    whole = (workplace.path / "weights.h5").read_bytes()
    (workplace.path / "half.h5").write_bytes(whole[: len(whole) // 2])
    given = ("--models", "mobilenet_v1@0.25,mobilenet_v2@0.35", "--weights", "half.h5,weights.h5")
    with pytest.raises(UserError, match=r"half\.h5 is damaged"):
        main(["--data", "data", *given, *SMALL, "--out", "not compared"])
    assert not (workplace.path / "not compared").exists()


def test_each_network_takes_the_file_that_holds_it(workplace, tmp_path):
    other = tmp_path / "wider.h5"
    write_weights(other, width=0.5)
    files, said = sources(f"{workplace.path / 'weights.h5'}, {other}"), []
    for width, own in zip((0.35, 0.5), files, strict=True):
        loaded = load(Candidate("mobilenet_v2", width, 32), 3, files, said.append)
        assert loaded.record is not None
        assert loaded.record.source == own
    (why,) = said
    assert why.startswith(f"{files[0]} holds mobilenet_v2 of width 0.35, and not ")
    assert why.endswith(f"of width 0.5; using {other}")


def change(path, array, value):
    """Sets all of an array in a file of weights."""
    with h5py.File(path, "a") as file:
        names = []
        file.visit(names.append)
        (name,) = [name for name in names if array in name]
        file[name][...] = value


def test_fine_tuning_is_not_continued_with_other_weights(
    compared, workplace, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(workplace.path / "compared", "compared")
    shutil.copy(workplace.path / "weights.h5", "weights.h5")
    change("weights.h5", "Conv_1_bn/beta", 0.5)
    Path("data").symlink_to(workplace.path / "data")
    with pytest.raises(UserError, match="its weights changed since it began") as refused:
        main([*BOTH, "weights.h5", *SMALL, "--finetune", "1", "--out", "compared"])
    assert "name another --out" in str(refused.value)


def test_a_network_whose_features_are_not_finite_does_not_end_the_comparison(
    workplace, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(workplace.path / "weights.h5", "wrong.h5")
    change("wrong.h5", "Conv_1_bn/moving_variance", -1.0)
    given = ("--models", "mobilenet_v2@0.35,mobilenet_v1@0.25", "--weights", "wrong.h5")
    assert main(["--data", str(workplace.path / "data"), *given, *SMALL, "--out", "results"]) == 0
    with Path("results/compare.csv").open() as file:
        wrong, other = csv.DictReader(file)
    assert wrong["failure"].startswith("features not finite with the weights wrong.h5")
    assert float(other["latency_ms"]) > 0
    assert "mobilenet_v2@0.35: features not finite" in capsys.readouterr().out


def test_a_network_that_cannot_be_fine_tuned_does_not_keep_others_from_it(workplace):
    write_weights(workplace.path / "wider.h5", width=0.5)
    own = workplace.path / "faulty" / "mobilenet_v2@0.35"
    own.mkdir(parents=True)
    (own / "tensorboard").touch()  # where a folder has to be
    given = ("--models", "mobilenet_v2@0.35,mobilenet_v2@0.5", "--weights", "weights.h5,wider.h5")
    ended = workplace.run(
        *("jaxtl.compare", "--data", "data", *given, *SMALL, "--finetune", "1", "--out", "faulty")
    )
    assert ended.code == 2
    last = ended.err.splitlines()[-1]
    assert last.startswith("error: 1 of 2 networks not fine-tuned: mobilenet_v2@0.35: File exists")
    with (workplace.path / "faulty" / "compare.csv").open() as file:
        failed, other = csv.DictReader(file)
    assert (failed["finetuned_correct"], failed["ranked_by"]) == ("", "fine-tuning")
    assert float(failed["probe_accuracy"]) > 50
    assert int(other["finetuned_correct"]) > 0


def test_a_batch_that_no_memory_holds_is_said_of_each_network(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace.path)
    given = ("--image-size", "32", "--batch-size", str(10**12), "--out", "full")
    assert main([*BOTH, "none", "--data", "data", *given]) == 0
    with (workplace.path / "full" / "compare.csv").open() as file:
        failures = {line["model"]: line["failure"] for line in csv.DictReader(file)}
    reason = "out of memory with 1,000,000,000,000 images a batch"
    assert failures == dict.fromkeys(["mobilenet_v2@0.35", "mobilenet_v1@0.25"], reason)
    assert f"mobilenet_v1@0.25: {reason}" in capsys.readouterr().out


def test_a_device_that_has_no_memory_left_is_told_from_other_errors():
    with pytest.raises(Failure, match="with 32 images"), within_memory("with 32 images"):
        jax.block_until_ready(jnp.zeros(2**46))  # 256 TiB
    with pytest.raises(TypeError, match="add got"), within_memory("with 32 images"):
        jnp.zeros(2) + jnp.zeros(3)


def test_a_network_that_is_named_twice_is_measured_once():
    named = candidates("mobilenet_v2, mobilenet_v2@1.0,mobilenet_v2@1,vgg16", "32")
    assert [one.label for one in named] == ["mobilenet_v2", "vgg16"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--models", "mobilnet_v2"), ["'mobilnet_v2'", "did you mean 'mobilenet_v2'"]),
        (("--models", "mobilenet_v2@0.3"), ["mobilenet_v2@0.3", "mobilenet_v2@0.35"]),
        (
            ("--models", "mobilenet_v2,inception_v3", "--image-size", "64"),
            ["--image-size 64", "inception_v3", "75 pixels"],
        ),
        (("--image-size", "tiny"), ["--image-size 'tiny'", "native or smallest"]),
        (("--image-size", str(10**10)), [f"--image-size '{10**10}'", "up to 10000"]),
        (("--image-size", "10001"), ["--image-size '10001'", "up to 10000"]),
        (("--models", "mobilenet_v2,,vgg16"), ["--models", "empty"]),
        (("--budget", "ms=inf"), ["--budget ms=inf", "ms=20"]),
        (("--budget", "seconds=3"), ["--budget seconds=3", "ms=20"]),
        (("--batch-size", "0"), ["--batch-size 0", "at least 1"]),
        (("--batch-size", str(10**20)), [f"--batch-size {10**20}", "fits in memory"]),
        (("--batch-size", "12", "--finetune", "1"), ["--batch-size 12", "the 8 devices"]),
        (("--data", "single"), ["'red' has a single image"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    arguments, words, workplace, monkeypatch
):
    monkeypatch.chdir(workplace.path)
    if not (workplace.path / "single").exists():
        write_images(workplace.path / "single", each=2, seed=0)
        (workplace.path / "single" / "red" / "00.jpg").unlink()
    with pytest.raises(UserError) as refused:
        main(["--data", "data", *arguments, "--out", "not compared"])
    assert all(word in str(refused.value) for word in words)
    assert not (workplace.path / "not compared").exists()


def test_results_do_not_go_into_a_file(workplace, monkeypatch):
    monkeypatch.chdir(workplace.path)
    with pytest.raises(UserError, match=r"^--out weights.h5 is a file"):
        main(["--data", "data", "--models", "mobilenet_v2", "--out", "weights.h5"])


@pytest.mark.parametrize(
    ("weights", "paddings"),
    [(("file.pth",), {"torch"}), (("file.h5",), {"keras"}), ((), {"keras"})],
)
def test_a_network_without_weights_is_that_which_they_would_have_made(weights, paddings, tmp_path):
    sources = [str(tmp_path / name) for name in weights]
    loaded = load(Candidate("mobilenet_v2", 1.0, 32), 3, sources, lambda _: None)
    assert loaded.record is None
    assert {loaded.make().spec.convention.name} == paddings
