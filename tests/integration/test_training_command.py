"""What `jaxtl.train` prints and leaves behind."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import pytest
from workplace import write_images

from jaxtl.config.config_file import Config, load
from jaxtl.errors import Interrupted
from jaxtl.training import setup

# In this process, where configs can name a network that compiles in no time.
SMALL = (
    *("jaxtl.train", "--cfg", "tiny.py", "--cfg.model.name=small", "--cfg.model.width=1"),
    *(
        "--cfg.model.weights=small.h5",
        "--cfg.phases.head.epochs=1",
        "--cfg.phases.finetune.epochs=1",
    ),
)


NOT_UTF8 = os.fsdecode(b"caf\xe9")


def metadata(run):
    return json.loads((run / "run.json").read_text())


def result_line(ended):
    return ended.out.splitlines()[-1]


def test_a_run_directory_holds_what_a_run_is_and_what_it_measured(whole):
    assert {path.name for path in whole.path.iterdir()} == {
        "config.json",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
        "report.html",
    }


def test_the_config_is_recorded_in_full(whole, workplace):
    recorded = Config.model_validate_json((whole.path / "config.json").read_text())
    assert recorded == load(str(workplace.path / "tiny.py"), {}).with_monitor("accuracy")


def test_the_facts_name_classes_data_versions_and_devices(whole):
    known = metadata(whole.path)
    assert known["classes"] == ["blue", "green", "red"]
    assert known["source"].endswith("/data")
    assert known["data"]["train"]["images"] == 45
    assert known["data"]["val"]["images"] == 18
    prints = [known["data"][part]["sha256"] for part in ("train", "val")]
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in prints)
    assert prints[0] != prints[1]
    assert known["versions"]["jax"] == jax.__version__
    assert len(known["devices"]) == 1
    assert known["devices"][0].startswith("cpu:0")


def test_the_facts_name_the_weights_by_the_sha256_of_their_file(whole, workplace):
    weights = metadata(whole.path)["weights"]
    content = (workplace.path / "weights.h5").read_bytes()
    assert weights["source"] == "weights.h5"
    assert weights["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_metrics_have_two_lines_an_epoch(whole):
    lines = [json.loads(line) for line in (whole.path / "metrics.jsonl").read_text().splitlines()]
    places = [(line["phase"], line["epoch"], line["step"], line["split"]) for line in lines]
    epochs = [("head", 1), ("head", 2)] + [("finetune", epoch) for epoch in range(1, 9)]
    assert places == [
        (phase, epoch, 6 * number, split)
        for number, (phase, epoch) in enumerate(epochs, start=1)
        for split in ("train", "val")
    ]
    for line in lines:
        assert line["loss"] > 0
        images = 45 if line["split"] == "train" else 18
        right = line["accuracy"] * images
        assert right == pytest.approx(round(right))
        assert ("images_per_second" in line) == (line["split"] == "train")


def test_training_learns(whole):
    lines = [json.loads(line) for line in (whole.path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert losses[-1] < 0.6 * losses[0]


def test_the_two_newest_and_the_best_checkpoint_are_kept(whole):
    lines = [json.loads(line) for line in (whole.path / "metrics.jsonl").read_text().splitlines()]
    validated = [line for line in lines if line["split"] == "val"]
    best = max(validated, key=lambda line: (line["accuracy"], -line["loss"]))
    numbers = {int(path.name) for path in (whole.path / "checkpoints" / "steps").iterdir()}
    assert {2 * best["step"] + 1, 2 * 60 + 1} <= numbers
    assert len(numbers) <= 3
    assert metadata(whole.path)["result"]["accuracy"] == best["accuracy"]
    assert metadata(whole.path)["result"]["loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_the_terminal_says_what_was_found_what_trains_and_how_it_went(whole):
    lines = whole.ended.out.splitlines()
    assert lines[0] == "whole: if the run is stopped, the same command continues it"
    assert lines[1] == "Found 45 images belonging to 3 classes."
    assert lines[2] == "Found 18 images belonging to 3 classes."
    assert any("phase head" in line and "phase finetune" in line for line in lines)
    epochs = [line for line in lines if re.match(r"(head|finetune) \d/\d +[\d.]+ s  ", line)]
    assert len(epochs) == 10
    assert "\x1b" not in whole.ended.out
    assert "\r" not in whole.ended.out


def test_the_last_line_is_the_result(whole):
    result = metadata(whole.path)["result"]
    correct = round(result["accuracy"] * 18)
    assert result_line(whole.ended).startswith(
        f"val_loss {result['loss']:.4f} val_accuracy {result['accuracy']:.4f}  "
        f"({correct}/18 correct, 95 % interval "
    )
    assert result_line(whole.ended).endswith("  whole")


def test_the_report_shows_the_result(whole):
    report = (whole.path / "report.html").read_text()
    result = metadata(whole.path)["result"]
    assert f"{result['accuracy']:.2%}" in report
    assert f"{round(result['accuracy'] * 18)} of 18 images" in report
    assert all(f"<td>{name}</td>" in report for name in ("blue", "green", "red"))


def test_tensorboard_has_its_events(whole):
    (events,) = (whole.path / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents")
    assert events.stat().st_size > 1000


@pytest.mark.slow
def test_a_finished_run_started_again_reports_its_result(whole, workplace):
    before = (whole.path / "metrics.jsonl").read_text()
    again = workplace.train("whole")
    assert again.code == 0
    numbers = result_line(whole.ended).partition(" steps ")[0]
    assert result_line(again).partition(" steps ")[0] == numbers
    assert not any(re.match(r"(head|finetune) \d/\d", line) for line in again.out.splitlines())
    assert (whole.path / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_a_report_that_fails_does_not_cost_the_result(whole, workplace):
    run = workplace.path / "no-report"
    shutil.copytree(whole.path, run)
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    without_result = metadata(run)
    result = without_result.pop("result")
    (run / "run.json").write_text(json.dumps(without_result))
    again = workplace.train("no-report")
    assert again.code == 0, again.err
    assert "report.html could not be drawn (IsADirectoryError" in again.out
    assert metadata(run)["result"] == result


def test_a_new_run_that_is_stopped_says_what_continues_it(workplace, monkeypatch):
    def interrupted(*_, **__):
        raise Interrupted

    monkeypatch.setattr(setup, "train", interrupted)
    ended = workplace.here("jaxtl.train", "--cfg", "tiny.py", "--new")
    assert ended.code == 130, ended.err
    flags = re.fullmatch(
        "stopped and saved; to continue: the same command with (.*) in place of --new",
        ended.out.splitlines()[-1],
    )
    assert workplace.here("jaxtl.train", "--cfg", "tiny.py", *flags[1].split()).code == 130


@pytest.mark.slow
def test_an_unfinished_run_is_continued_without_naming_it(workplace, small):
    first = workplace.here(*SMALL)
    assert first.code == 0, first.err
    (run,) = (workplace.path / "runs").iterdir()
    complete = workplace.here(*SMALL, "--new")
    assert len(list((workplace.path / "runs").iterdir())) == 2, complete.err
    unfinished = metadata(run)
    unfinished.pop("result")
    (run / "run.json").write_text(json.dumps(unfinished))
    continued = workplace.here(*SMALL)
    assert continued.code == 0, continued.err
    line = f"runs/{run.name} is an unfinished run of this config and data; --new starts anew"
    assert continued.out.splitlines()[0] == line
    assert metadata(run)["result"]["step"] == 12
    assert len(list((workplace.path / "runs").iterdir())) == 2


@pytest.mark.slow
def test_class_folders_that_are_not_utf8_are_trained_on_to_the_end(workplace, tmp_path, small):
    data, run = tmp_path / "data", tmp_path / "run"
    write_images(data, each=4, seed=1)
    (data / "blue").rename(data / NOT_UTF8)
    ended = workplace.here(*SMALL, "--workdir", run, f"--cfg.data.source={data}")
    assert ended.code == 0, ended.err
    assert "could not be drawn" not in ended.out
    assert metadata(run)["classes"] == ["caf\\xe9", "green", "red"]


@pytest.mark.parametrize(
    "style", ["table", *(pytest.param(style, marks=pytest.mark.slow) for style in ("csv", "json"))]
)
def test_paths_that_are_not_utf8_come_out_as_they_are(whole, workplace, tmp_path, style):
    odd = tmp_path / NOT_UTF8
    odd.mkdir()
    shutil.copy(workplace.path / "data" / "val" / "red" / "00.jpg", odd)
    command = [sys.executable, "-m", "jaxtl.predict", "--run", whole.path, odd, "--format", style]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (b"caf\\udce9" if style == "json" else b"caf\xe9") in done.stdout
