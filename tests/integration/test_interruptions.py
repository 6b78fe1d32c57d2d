"""A run that was killed or stopped, and continued, equals one that nothing interrupted."""

import contextlib
import os
import pty
import re
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from workplace import STEPS, finish, measurements, saved_steps, wait_until

pytestmark = pytest.mark.slow


def arrays(run):
    """Every array of every checkpoint of a run, as Orbax reads them."""
    folders = [run / "checkpoints" / "initial"]
    for step in saved_steps(run):
        saved = run / "checkpoints" / "steps" / str(step)
        folders += [saved / "variables", saved / "optimizer"]
    with ocp.StandardCheckpointer() as reader:
        return {
            (str(folder.relative_to(run)), name): np.asarray(value)
            for folder in folders
            for name, value in reader.restore(folder).items()
        }


def assert_same_bits(run, reference):
    assert measurements(run) == measurements(reference)
    assert saved_steps(run) == saved_steps(reference)
    found, expected = arrays(run), arrays(reference)
    assert found.keys() == expected.keys()
    assert len(expected) > 300
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].tobytes() == value.tobytes(), key


def result(ended):
    """The line of the result, up to the time it took."""
    return ended.out.splitlines()[-1].partition(" steps ")[0]


def begin(workplace, name, **options):
    return workplace.start("jaxtl.train", "--cfg", "tiny.py", "--workdir", name, **options)


@pytest.fixture(scope="module")
def killed(workplace):
    """A run that was killed after the first epoch of its second phase."""
    path = workplace.path / "killed"
    process = begin(workplace, "killed")
    wait_until(lambda: 3 * STEPS in saved_steps(path), process)
    process.kill()
    ended = finish(process)
    assert ended.code == -signal.SIGKILL
    assert len(measurements(path)) < 20  # there was something left to do
    return path


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
    ours, its = pty.openpty()
    process = begin(workplace, "stopped", stdout=its)
    os.close(its)
    shown, stop = "", threading.Timer(0.2, process.terminate)
    with contextlib.suppress(OSError):  # how Linux says that the terminal's other side is closed
        while block := os.read(ours, 65536):
            shown += block.decode()
            if "finetune 1/8" in shown and stop.ident is None:
                stop.start()
    os.close(ours)
    _, err = process.communicate(timeout=60)
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)
    return Stopped(workplace.path / "stopped", process.returncode, plain, err)


def test_a_killed_run_goes_on_to_the_same_bits(workplace, whole, killed):
    continued = workplace.train("killed")
    assert continued.code == 0, continued.err
    assert "continuing killed in phase finetune after epoch " in continued.out
    assert not any(line.startswith("head ") for line in continued.out.splitlines())
    assert_same_bits(killed, whole.path)
    assert result(continued) == result(whole.ended)


def test_a_run_that_is_asked_to_stop_saves_in_the_middle_of_an_epoch(stopped):
    assert stopped.code == 130, stopped.err
    assert "Traceback" not in stopped.err
    assert 2 * STEPS < max(saved_steps(stopped.path)) < 3 * STEPS
    assert len(measurements(stopped.path)) == 4  # two whole epochs, two lines each


def test_a_run_that_is_asked_to_stop_says_how_to_continue_it(stopped):
    message = "stopped and saved; to continue: the same command with --workdir stopped"
    assert stopped.shown.splitlines()[-1] == message


def test_a_terminal_shows_a_bar_while_an_epoch_lasts(stopped):
    assert re.search(r"finetune 1/8 0/6 ━{20}", stopped.shown)


def test_a_stopped_run_goes_on_to_the_same_bits(workplace, whole, stopped):
    continued = workplace.train("stopped")
    assert continued.code == 0, continued.err
    assert "continuing stopped in phase finetune after epoch 0" in continued.out
    assert_same_bits(stopped.path, whole.path)
    assert result(continued) == result(whole.ended)
