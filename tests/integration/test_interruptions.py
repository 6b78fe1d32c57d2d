"""A run that was killed or stopped, and continued, equals one that nothing interrupted."""

import json
import re
import shutil
import signal
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from same_bits import assert_same_bits
from terminal import shown_until_the_end, start_on_a_terminal
from workplace import STEPS, finish, measurements, saved_steps, wait_until


def result(ended):
    """The line of the result, up to the time it took."""
    return ended.out.splitlines()[-1].partition(" steps ")[0]


def begin(workplace, name, **options):
    return workplace.start("jaxtl.train", "--cfg", "tiny.py", "--workdir", name, **options)


@pytest.fixture(scope="module")
def killed(workplace):
    """A run that was killed between epochs of its second phase that had checkpoints, and whose
    activations are gone since."""
    path, home = workplace.path / "killed", workplace.path / "home-of-killed"
    process = begin(workplace, "killed", home=home, saving_often=True)
    wait_until(lambda: len(measurements(path)) >= 10, process)
    process.kill()
    ended = finish(process)
    assert ended.code == -signal.SIGKILL
    assert len(measurements(path)) < 20  # there was something left to do
    assert len(caches(home)) == 3  # of validation in both phases, and of training in the second
    shutil.rmtree(home)
    return path


def caches(home, whole=True):
    """The activations that are complete, or those that are not."""
    files = (home / "jaxtl" / "activations").glob("*/about.json")
    read = {file.parent.name: json.loads(file.read_text()) for file in files}
    return {name for name, about in read.items() if (about["done"] == about["shape"][0]) == whole}


@dataclass(frozen=True)
class Stopped:
    """A run that was asked to stop: its exit code, what its terminal showed, and its errors."""

    path: Path
    code: int
    shown: str
    err: str


@pytest.fixture(scope="module")
def stopped(workplace):
    """A run on a terminal that was asked to stop within the first epoch of its second phase.

    The signal comes just after the epoch's bar appears, while the phase's first step is compiled,
    which takes a second at least.
    """
    path = workplace.path / "stopped"
    for _ in range(3):  # on a busy machine the signal may come late, after the epoch
        shutil.rmtree(path, ignore_errors=True)
        process, terminal = start_on_a_terminal(partial(begin, workplace, "stopped"))
        stop = threading.Timer(0.2, process.terminate)

        def watch(shown, stop=stop):
            if "finetune 1/8" in shown and stop.ident is None:
                stop.start()

        shown, err = shown_until_the_end(watch, process, terminal)
        if max(saved_steps(path)) < 3 * STEPS:
            break
    return Stopped(path, process.returncode, shown, err)


@pytest.fixture(scope="module")
def stopped_early(workplace):
    """A run that was killed while the frozen stages ran for its first phase, and then asked to stop
    while they ran for its second."""
    home = workplace.path / "home-of-early"
    process = begin(workplace, "early", home=home)
    wait_until(lambda: caches(home, whole=False), process)
    process.kill()
    finish(process)
    assert (caches(home), len(caches(home, whole=False))) == (set(), 1)
    left = caches(home, whole=False)

    process, terminal = start_on_a_terminal(partial(begin, workplace, "early", home=home))
    asked = []

    def watch(shown):
        if "running the frozen stages up to block_15" in shown and not asked:
            asked.append(process.terminate())

    shown, err = shown_until_the_end(watch, process, terminal)
    assert caches(home) == left  # of validation in the first phase
    assert len(caches(home, whole=False)) == 1
    return Stopped(workplace.path / "early", process.returncode, shown, err)


def test_a_killed_run_goes_on_to_the_same_bits_even_without_its_activations(
    workplace, whole, killed
):
    home = workplace.path / "home-of-killed"
    continued = workplace.train("killed", home=home)
    assert continued.code == 0, continued.err
    assert re.search(r"continuing killed in phase finetune after epoch \d", continued.out)
    assert not any(line.startswith("head ") for line in continued.out.splitlines())
    assert_same_bits(killed, whole.path)
    assert result(continued) == result(whole.ended)
    assert len(caches(home)) == 2


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_while_frozen_stages_run_stops(stopped_early):
    assert stopped_early.code == 143, stopped_early.err
    assert "Traceback" not in stopped_early.err
    assert max(saved_steps(stopped_early.path)) == 2 * STEPS
    last = stopped_early.shown.splitlines()[-1]
    assert last == "stopped and saved; to continue: the same command with --workdir early"
    assert "finetune 1/8" not in stopped_early.shown


@pytest.mark.slow
def test_a_run_that_was_stopped_while_frozen_stages_ran_goes_on_to_the_same_bits(
    workplace, whole, stopped_early
):
    continued = workplace.train("early", home=workplace.path / "home-of-early")
    assert continued.code == 0, continued.err
    assert "continuing early in phase head after epoch 2" in continued.out
    assert "finetune: 3 views an image; the frozen stages run once" in continued.out
    assert_same_bits(stopped_early.path, whole.path)
    assert result(continued) == result(whole.ended)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_in_the_middle_of_an_epoch(stopped):
    assert stopped.code == 143, stopped.err
    assert "Traceback" not in stopped.err
    assert 2 * STEPS < max(saved_steps(stopped.path)) < 3 * STEPS
    assert len(measurements(stopped.path)) == 4  # two whole epochs, two lines each


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_says_how_to_continue_it(stopped):
    message = "stopped and saved; to continue: the same command with --workdir stopped"
    assert stopped.shown.splitlines()[-1] == message


@pytest.mark.slow
def test_a_terminal_shows_a_bar_while_an_epoch_lasts(stopped):
    assert re.search(r"finetune 1/8 0/6 ━{20}", stopped.shown)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(workplace, whole, stopped):
    continued = workplace.train("stopped")
    assert continued.code == 0, continued.err
    assert "continuing stopped in phase finetune after epoch 0" in continued.out
    assert_same_bits(stopped.path, whole.path)
    assert result(continued) == result(whole.ended)
