"""Runs leave no thread and no file behind, however they end."""

import gc
import os
import threading

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from full_disk import files_no_longer_than
from rich.console import Console

from jaxtl.config import Config
from jaxtl.errors import UserError
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.metrics_log import MetricsLog
from jaxtl.runs.progress import Progress
from jaxtl.training.predictor import load_run
from jaxtl.training.setup import open_data, train

pytestmark = pytest.mark.usefixtures("small")

VARIABLES = {"head/kernel": jnp.ones((2, 2))}
STATE = optax.adam(1e-3).init(VARIABLES)


def is_open():
    """The threads of Python, and what the descriptors of this process stand for."""
    gc.collect()
    threads = {thread.name for thread in threading.enumerate()}
    return threads, sorted(os.readlink(f"/proc/self/fd/{n}") for n in _descriptors())


def _descriptors():
    return [n for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]


def assert_nothing_stays_open(work, tmp_path, times=10):
    """What the first two runs open once for all (thread pools of libraries) may stay."""
    for number in range(times):
        work(tmp_path / str(number))
        if number == 1:
            before = is_open()
    after = is_open()
    assert len(after[0]) <= len(before[0]), after[0] - before[0]
    assert len(after[1]) <= len(before[1]), set(after[1]) - set(before[1])


def write(folder):
    checkpoints = Checkpoints(folder / "checkpoints")
    log = MetricsLog(folder / "metrics.jsonl", folder / "tensorboard", until=0)
    try:
        checkpoints.save_initial(VARIABLES)
        for step in (1, 2):
            checkpoints.save(Progress(step=step), VARIABLES, STATE)
            log.write("p", 1, step, "val", {"loss": 1.0, "accuracy": 0.5})
        assert checkpoints.newest() is not None
        checkpoints.variables(5, VARIABLES)
    finally:
        checkpoints.close()
        log.close()


def fill_the_disk(folder):
    checkpoints = Checkpoints(folder / "checkpoints")
    big = {"head/kernel": jnp.asarray(np.random.default_rng(0).normal(size=(300, 300)))}
    with files_no_longer_than(10_000):
        checkpoints.save(Progress(step=1), big, STATE)
        with pytest.raises(UserError, match="cannot be written"):
            checkpoints.close()
    checkpoints.close()


def read_damage(folder):
    with pytest.raises(UserError):
        load_run(folder)
    (folder / "checkpoints" / "steps" / "3" / "progress").mkdir(parents=True)
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    with pytest.raises(UserError, match="no checkpoint that is whole"):
        checkpoints.newest()
    checkpoints.close()


@pytest.mark.parametrize(
    "work", [pytest.param(write, marks=pytest.mark.slow), fill_the_disk, read_damage]
)
def test_ten_of_them_leave_nothing_open(work, tmp_path):
    assert_nothing_stays_open(work, tmp_path)


@pytest.mark.slow
def test_ten_runs_that_end_well_or_not_leave_nothing_open(tmp_path):
    """By turns one that trains, one that diverges, one whose weights cannot be had."""
    phase = {"name": "p", "epochs": 1, "train": {"head/.*": 1.0}}
    settings = [
        ({}, phase),
        ({}, phase | {"train": {".*": 1.0}, "optimizer": "sgd", "lr": 1e30}),
        ({"weights": "no.h5"}, phase),
    ]

    def three(folder):
        for number, (model, one) in enumerate(settings):
            config = Config.model_validate(
                {
                    "model": {"name": "small", "image_size": 32, "weights": None} | model,
                    "data": {"source": "digits", "batch_size": 256},
                    "phases": (one,),
                }
            )
            try:
                train(config, open_data(config), folder / str(number), Console(quiet=True))
            except UserError:
                assert number > 0
        load_run(folder / "0")

    assert_nothing_stays_open(three, tmp_path, times=5)
