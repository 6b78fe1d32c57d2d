"""At every moment a whole checkpoint is on disk, with the best epoch that it may return to."""

import contextlib
import dataclasses
import os
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtl.config import Phase
from jaxtl.errors import UserError
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.progress import Progress

VARIABLES = {"head/kernel": jnp.ones((2, 2)), "stem/kernel": jnp.zeros(3)}
STATE = optax.adam(1e-3).init({"head/kernel": jnp.ones((2, 2))})
PHASE = Phase(name="p", train={"head/.*": 1.0}, epochs=9)


@pytest.fixture
def folder(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save_initial(VARIABLES)
    return tmp_path / "checkpoints"


def save(checkpoints, progress):
    checkpoints.save(progress, {"head/kernel": jnp.full((2, 2), float(progress.step))}, STATE)


def validated(*accuracies):
    """The progress after each epoch of a phase, one step long."""
    progress = Progress()
    for accuracy in accuracies:
        progress = dataclasses.replace(progress, step=progress.step + 1)
        progress = progress.after_epoch(accuracy, 1.0, accuracy)
        yield progress


def trained_until(checkpoints, number):
    """The step at which the head of a checkpoint was saved."""
    head = np.asarray(checkpoints.variables(number, VARIABLES)["head/kernel"])
    assert (head == head[0, 0]).all()
    return int(head[0, 0])


def test_the_checkpoint_before_a_damaged_one_still_has_its_best(folder):
    """The newest is a new best, and the one before it is after an older best."""
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        for progress in validated(0.5, 0.9, 0.6, 0.7, 0.95):
            save(checkpoints, progress)
    assert {path.name for path in (folder / "steps").iterdir()} == {"5", "9", "11"}
    (folder / "steps" / "11" / "progress" / "metadata").write_text("{")
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        newest = checkpoints.newest()
        assert (newest.step, newest.result_number(PHASE)) == (4, 5)
        assert trained_until(checkpoints, 5) == 2
        save(checkpoints, dataclasses.replace(newest, step=5).after_epoch(0.8, 1.0, 0.8))
    assert {path.name for path in (folder / "steps").iterdir()} == {"5", "9", "11"}


def test_a_checkpoint_is_not_removed_for_a_halved_learning_rate(folder):
    """The run went back to it, and stopped before its first step."""
    progress = dataclasses.replace(Progress(), step=3, batch=3)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        save(checkpoints, progress)
    before = {path: path.stat().st_ino for path in (folder / "steps").rglob("*")}
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        assert checkpoints.newest() == progress
        save(checkpoints, dataclasses.replace(progress, lr_factor=0.5, halvings=1))
    assert {path: path.stat().st_ino for path in (folder / "steps").rglob("*")} == before
    assert Checkpoints(folder, read_only=True).newest() == progress


@pytest.mark.parametrize(
    "lost",
    [
        "_CHECKPOINT_METADATA",
        "progress/metadata",
        "variables/_METADATA",
        "variables/manifest.ocdbt",
        "optimizer/d",
    ],
)
def test_what_is_left_of_a_removed_checkpoint_is_no_checkpoint(folder, caplog, lost):
    """A process was killed while it removed one, which Orbax does file by file."""
    states, aside = [*validated(0.5, 0.6, 0.7, 0.8)], folder / "aside"
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        for progress in states[:3]:
            save(checkpoints, progress)
            checkpoints.newest()  # waits for it
            if progress is states[0]:
                shutil.copytree(folder / "steps" / "3", aside / "3")
    assert {path.name for path in (folder / "steps").iterdir()} == {"5", "7"}
    left = aside / "3" / lost
    shutil.rmtree(left) if left.is_dir() else left.unlink()
    shutil.copytree(aside / "3", folder / "steps" / "3")
    shutil.copytree(folder / "steps", aside, dirs_exist_ok=True)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        assert checkpoints.newest() == states[2]
        save(checkpoints, states[3])
    assert {path.name for path in (folder / "steps").iterdir()} == {"7", "9"}
    assert not caplog.text
    shutil.rmtree(folder / "steps")
    aside.rename(folder / "steps")
    for newer in ("5", "7"):
        (folder / "steps" / newer / "progress" / "metadata").write_text("{")
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        if lost == "_CHECKPOINT_METADATA":  # which nothing needs
            assert checkpoints.newest() == states[0]
            assert trained_until(checkpoints, 3) == 1
        else:
            with pytest.raises(UserError, match="no checkpoint that is whole"):
                checkpoints.newest()


def test_a_checkpoint_is_flushed_before_it_gets_its_name(folder, monkeypatch):
    """As the kernel is asked: each file and folder, as it is in the end. What Orbax writes
    afterwards may be lost."""
    flushed, named, fsync, listening = {}, {}, os.fsync, [True]

    def recorded(handle):
        flushed[os.readlink(f"/proc/self/fd/{handle}")] = os.fstat(handle).st_mtime_ns
        fsync(handle)

    def hook(event, arguments):
        if event == "os.rename" and listening:
            named[os.fspath(arguments[1])] = os.fspath(arguments[0]), dict(flushed)

    sys.addaudithook(hook)
    monkeypatch.setattr(os, "fsync", recorded)
    progress = Progress(step=1)
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        save(checkpoints, progress)
    listening.clear()
    steps, place = folder / "steps", folder / "steps" / "3"
    unfinished, before = named[str(place)]
    late = [place / "_CHECKPOINT_METADATA", place / "commit_success.txt"]
    for path in {*place.rglob("*")} - {*late}:
        assert before[str(path).replace(str(place), unfinished)] == path.stat().st_mtime_ns
    assert unfinished in before  # which has the names of all others
    assert flushed[str(steps)] == steps.stat().st_mtime_ns
    for lose in (lambda file: file.write_bytes(b""), Path.unlink):
        for file in late:
            lose(file)
        with contextlib.closing(Checkpoints(folder)) as checkpoints:
            assert checkpoints.newest() == progress
            assert trained_until(checkpoints, 3) == 1
            checkpoints.optimizer(3, STATE)
