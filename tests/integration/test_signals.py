"""SIGINT and SIGTERM at any moment of a run: it ends with their code, and loses no bit."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest
from same_bits import assert_same_bits
from terminal import shown_until_the_end, start_on_a_terminal
from workplace import STEPS, finish, measurements, wait_until, write_images

from jaxtl.data import splits
from jaxtl.errors import Interrupted
from jaxtl.runs.checkpoints import Checkpoints

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
each_signal = pytest.mark.parametrize("number", CODES)
TINY = ("jaxtl.train", "--cfg", "tiny.py", "--cfg.checkpoint.every_minutes=1e-9", "--workdir")


def newest(run):
    return Checkpoints(run / "checkpoints", read_only=True).newest()


def sent(number, process):
    """How a process ends that gets a signal now."""
    process.send_signal(number)
    ended = finish(process)
    assert ended.code == CODES[number], ended.err
    assert "Traceback" not in ended.err
    return ended


@each_signal
def test_a_signal_before_the_images_are_known_ends_the_process(workplace, number):
    config = "import time\nprint('reading', flush=True)\ntime.sleep(600)\n"
    (workplace.path / "slow.py").write_text(config)
    process = workplace.start("jaxtl.train", "--cfg", "slow.py")
    assert process.stdout.readline() == "reading\n"
    ended = sent(number, process)
    assert (ended.out, ended.err) == ("", "stopped\n")


def test_a_signal_while_images_are_looked_at_says_nothing_of_a_run(workplace, monkeypatch):
    def stopped(data):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(splits, "open_splits", stopped)
    ended = workplace.here("jaxtl.train", "--cfg", "tiny.py")
    assert (ended.code, ended.out, ended.err) == (143, "", "stopped\n")


LOST = """
import gc, os, sys, time
from jaxtl import cli

def callback(phase, information):
    gc.callbacks.remove(callback)
    os.kill(os.getpid(), int(sys.argv[1]))
    for _ in range(1000):  # Python calls the handler here, and ignores what it raises
        pass

def command(arguments):
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(30)
    return 0

cli.run(command)
"""


@each_signal
def test_a_signal_while_garbage_is_collected_ends_the_process(number):
    ended = subprocess.run(
        [sys.executable, "-c", LOST, str(int(number))],
        env=os.environ | {"JAXTL_LARGE_PAGES": "0"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (CODES[number], "stopped\n")


@each_signal
def test_a_signal_before_training_ends_the_process(workplace, number):
    name = f"before-{number}"
    process = workplace.start("jaxtl.train", "--cfg", "tiny.py", "--workdir", name)
    assert "the same command continues it" in process.stdout.readline()
    ended = sent(number, process)
    assert "head 1/2" not in ended.out
    assert f"to continue: the same command with --workdir {name}" in ended.out.splitlines()[-1]


@pytest.mark.slow
@each_signal
def test_a_signal_while_a_checkpoint_is_written_waits_for_it(workplace, whole, number):
    path = workplace.path / f"saving-{number}"
    process = workplace.start(*TINY, path.name)
    steps = path / "checkpoints" / "steps"
    wait_until(lambda: measurements(path) and any(steps.glob("*.orbax-checkpoint-tmp*")), process)
    sent(number, process)
    assert not any(steps.glob("*.orbax-checkpoint-tmp*"))
    continued = workplace.run(*TINY, path.name)
    assert continued.code == 0, continued.err
    assert_same_bits(path, whole.path)


def in_the_second_phase(run):
    """Whether the newest checkpoint on disk lies within an epoch of it."""
    for file in (run / "checkpoints" / "steps").glob("*/progress/metadata"):
        try:
            progress = json.loads(file.read_text())["progress"]
        except (OSError, ValueError):  # a newer one came meanwhile
            continue
        if progress["phase"] == 1 and 1 < progress["batch"] < STEPS - 1:
            return True
    return False


@pytest.mark.slow
def test_a_run_that_is_killed_within_an_epoch_goes_on_from_there(workplace, whole):
    path = workplace.path / "within"
    process = workplace.start(*TINY, path.name)
    wait_until(lambda: in_the_second_phase(path), process)
    process.kill()
    finish(process)
    assert newest(path).phase == 1
    assert newest(path).batch > 0
    continued = workplace.run(*TINY, path.name)
    assert continued.code == 0, continued.err
    assert_same_bits(path, whole.path)


# Validation takes seconds.
LONG = (
    *("jaxtl.train", "--cfg", "tiny.py", "--cfg.data.source=many", "--cfg.model.image_size=160"),
    *("--cfg.views=0", "--cfg.cache.disk_gb=0"),
    *("--cfg.phases.head.epochs=1", "--cfg.phases.finetune.epochs=1", "--workdir"),
)


@pytest.fixture(scope="module")
def long(workplace):
    """A whole run with long validations."""
    write_images(workplace.path / "many" / "train", each=5, seed=1)
    write_images(workplace.path / "many" / "val", each=250, seed=2)
    ended = workplace.run(*LONG, "long")
    assert ended.code == 0, ended.err
    return workplace.path / "long"


def stopped_at(pattern, number, workplace, name):
    """The code and the last line of a run that got a signal half a second after it showed this."""
    process, terminal = start_on_a_terminal(partial(workplace.start, *LONG, name))
    stop = threading.Timer(0.5, process.send_signal, (number,))

    def watch(shown):
        if re.search(pattern, shown) and stop.ident is None:
            stop.start()

    shown, err = shown_until_the_end(watch, process, terminal)
    assert "Traceback" not in err
    return process.returncode, shown.splitlines()[-1]


@pytest.mark.slow
def test_a_signal_during_a_validation_keeps_what_was_trained(workplace, long):
    path = workplace.path / "stopped-long"
    saved = "stopped and saved; to continue: the same command with --workdir stopped-long"

    assert stopped_at("validating", signal.SIGTERM, workplace, path.name) == (143, saved)
    assert (newest(path).epoch, newest(path).batch) == (0, 2)
    assert measurements(path) == []

    result = "finetune 1/1 .*val_loss"
    assert stopped_at(result, signal.SIGINT, workplace, path.name) == (130, saved)
    assert measurements(path) == measurements(long)
    assert "result" not in (path / "run.json").read_text().replace('"result": null', "")

    process = workplace.start(*LONG, path.name)
    wait_until(lambda: '"accuracy"' in (path / "run.json").read_text(), process)
    sent(signal.SIGTERM, process)  # while the report is drawn
    ended = workplace.run(*LONG, path.name)
    assert ended.code == 0, ended.err
    assert (path / "report.html").exists()
    assert_same_bits(path, long)
