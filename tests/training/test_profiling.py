"""Traces of steps, and what the log says of waits and of devices."""

import time
from types import SimpleNamespace

import jax
import pytest
from jax.profiler import ProfileData
from rich.console import Console
from small_run import run, settings
from step_setup import HEAD_ONLY

from jaxtl.errors import UserError
from jaxtl.runs.metrics_log import read_metrics
from jaxtl.training.loop import Training
from jaxtl.training.profiling import InputWait, Trace, check_planned, device_use, steps_to_trace
from jaxtl.training.setup import open_data, train


@pytest.mark.parametrize("text", ["", "3", "5:5", "7:3", "-1:2", "a:b", "1:2:3", "1.0:2"])
def test_what_is_no_range_of_steps_is_refused(text):
    with pytest.raises(UserError, match=r"--profile .*: give two steps"):
        steps_to_trace(text)


def test_a_range_of_steps_is_read():
    assert steps_to_trace("10:20") == range(10, 20)


def test_steps_that_are_done_or_never_come_are_refused(tmp_path):
    with pytest.raises(UserError, match="has done 4 steps"):
        Trace(tmp_path, range(3, 5), done=4)
    with pytest.raises(UserError, match="has 8 steps"):
        check_planned(range(6, 9), 8)
    check_planned(range(6, 8), 8)


@pytest.mark.usefixtures("small")
def test_a_run_traces_its_steps_and_logs_its_waits(tmp_path):
    config = settings({"train": HEAD_ONLY, "epochs": 2}, views=0)
    train(config, open_data(config), tmp_path / "run", Console(quiet=True), range(2, 4))
    (file,) = (tmp_path / "run" / "profile").rglob("*.xplane.pb")
    lines = [line for plane in ProfileData.from_file(str(file)).planes for line in plane.lines]
    assert sum(1 for line in lines for _ in line.events) > 10
    waits = [line.get("input_wait") for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert [wait is None for wait in waits] == [False, True] * 2
    assert all(0 <= wait <= 1 for wait in waits[::2])


def test_only_waits_of_idle_devices_count():
    def slow():
        for number in range(3):
            time.sleep(0.05)
            yield number

    starved, busy = InputWait(), InputWait()
    assert list(starved.timed(slow(), lambda: True)) == [0, 1, 2]
    assert 0.5 < starved.fraction <= 1
    assert list(busy.timed(slow(), lambda: False)) == [0, 1, 2]
    assert busy.fraction == 0


def test_utilisation_is_of_the_published_peak_of_all_devices():
    def device(kind, peak):
        return SimpleNamespace(device_kind=kind, memory_stats=lambda: {"peak_bytes_in_use": peak})

    two = [device("TPU v4", 3e9), device("TPU v4", 5e9)]
    used = device_use(two, 8, lambda: 11e9, 5000.0)
    assert used == pytest.approx({"memory_gb": 5.0, "mfu": 2 * 11e9 * 5000 / (8 * 275e12)})
    unknown = [device("TPU v99", 3e9)]
    assert device_use(unknown, 1, lambda: 1 / 0, 5000.0) == {"memory_gb": 3.0}


def test_a_cpu_says_neither():
    assert device_use(jax.devices(), 8, lambda: 1 / 0, 5000.0) == {}


@pytest.mark.usefixtures("small")
def test_the_multiplications_of_a_head_are_counted(tmp_path, monkeypatch):
    """Logits and the gradient of the kernel: twice features times classes."""
    counted, epoch = [], Training._epoch

    def counting(training, phase, stop):
        epoch(training, phase, stop)
        counted.append(phase.macs_per_image)

    monkeypatch.setattr(Training, "_epoch", counting)
    run(settings({"train": HEAD_ONLY}, views=1), tmp_path / "run")
    assert counted == [2 * 64 * 10]
