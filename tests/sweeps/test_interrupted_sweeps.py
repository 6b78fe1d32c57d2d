"""Sweeps that were stopped or killed lose no finished work, and end as if nothing had happened."""

import io
import itertools
import json
import signal

import pytest
from rich.console import Console
from workplace import measurements, write_images

from jaxtl.errors import Interrupted, UserError
from jaxtl.sweeps import heads, together
from jaxtl.sweeps.sweep import sweep
from jaxtl.sweeps.variations import load_sweep
from jaxtl.training import loop
from jaxtl.training.setup import open_data, train

pytestmark = pytest.mark.slow

CONFIG = """
from jaxtl.config import Config, Data, Model, Phase
from jaxtl.sweeps.variations import grid

def get_config() -> Config:
    return Config(
        model=Model(width=0.35, image_size=32, weights=None, dropout=0.0),
        data=Data(source="data", batch_size=8),
        phases=(
            Phase(name="head", train={"head/.*": 1.0}, epochs=3, lr=1e-2),
            Phase(name="bias", train={"head/bias": 1.0}, epochs=1),
        ),
    )

def sweep():
    return grid(AXES)
"""
LRS = {"phases.head.lr": (1e-2, 1e-3)}
BATCH_SIZES = {"data.batch_size": (8, 16)}
SEEDS = {"seed": (0, 1)}  # without weights, each has frozen stages of its own
TOO_HIGH = {"phases.head.lr": (3e38, 2e38)}
QUIET = Console(quiet=True)


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """Reads a sweep over some axes in a folder with images."""
    write_images(tmp_path / "data" / "train", each=8, seed=1)
    write_images(tmp_path / "data" / "val", each=4, seed=2)
    monkeypatch.chdir(tmp_path)

    def read(axes):
        (tmp_path / "swept.py").write_text(CONFIG.replace("AXES", repr(axes)))
        return load_sweep("swept.py", {})

    return read


def ctrl_c(monkeypatch, owner, name, call=1):
    """Ctrl-C comes just before the n-th call of a function."""
    original, calls = getattr(owner, name), itertools.count(1)

    def interrupted(*arguments, **options):
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


def names(folder):
    """The run directories in a sweep."""
    return sorted(path.parent.name for path in folder.glob("*/run.json"))


def results(folder):
    return {name: json.loads((folder / name / "run.json").read_text()) for name in names(folder)}


def test_heads_that_are_stopped_begin_again_and_end_the_same(swept, tmp_path, monkeypatch):
    variations = swept(LRS)
    with monkeypatch.context() as patch:
        ctrl_c(patch, heads, "_on_host", 3)  # at the end of the second epoch's training
        with pytest.raises(Interrupted):
            sweep(variations, tmp_path / "stopped", QUIET)
    assert names(tmp_path / "stopped") == []
    left = tmp_path / "stopped" / "sweep.json.1234abcd.part"
    left.write_text("[")  # of a process that was killed
    other = tmp_path / "stopped" / "heads" / "1234abcd"  # of runs that were moved away
    (other / "stacked").mkdir(parents=True)
    sweep(variations, tmp_path / "stopped", QUIET)
    sweep(variations, tmp_path / "whole", QUIET)
    assert not left.exists()
    assert other.exists()
    assert results(tmp_path / "stopped") == results(tmp_path / "whole")
    for name in names(tmp_path / "whole"):
        assert measurements(tmp_path / "stopped" / name) == measurements(tmp_path / "whole" / name)


@pytest.mark.parametrize("during", ["result_of", "_total"])
def test_heads_that_are_stopped_at_their_end_are_kept_and_nothing_else_begins(
    swept, tmp_path, monkeypatch, during
):
    variations, folder = swept(LRS | SEEDS), tmp_path / "all"
    with monkeypatch.context() as patch:
        # `_total` sums up each epoch of two runs twice: the last one is that of the second phase.
        ctrl_c(patch, heads, during, 1 if during == "result_of" else 2 * 2 * 4)
        with pytest.raises(Interrupted):
            sweep(variations, folder, QUIET)
    first = sorted(run.name for run in variations if run.config.seed == 0)
    assert names(folder) == first
    assert all(run["result"] for run in results(folder).values())
    before = {name: (folder / name / "run.json").stat().st_mtime_ns for name in first}
    sweep(variations, folder, QUIET)
    assert names(folder) == sorted(run.name for run in variations)
    assert {name: (folder / name / "run.json").stat().st_mtime_ns for name in first} == before


def test_runs_that_diverged_are_known_once_their_group_is_trained(swept, tmp_path, monkeypatch):
    axes = {"phases.head.lr": (1e-2, 3e38, 1e-3, 3e-3)}
    variations, folder = swept(axes), tmp_path / "all"
    lost = [run.name for run in variations if "3e+38" in run.name]
    head = (1280 + 1) * 3 * 4  # bytes
    two = {"memory_gb": 2.5 * together._COPIES * head / 1e9}
    for number, run in enumerate(variations):
        config = run.config.model_copy(
            update={"cache": run.config.cache.model_copy(update=two), "views": 1}
        )
        variations[number] = type(run)(run.name, run.values, config)
    with monkeypatch.context() as patch:
        ctrl_c(patch, together.setup, "pretrained", 2)
        with pytest.raises(KeyboardInterrupt):
            sweep(variations, folder, QUIET)
    assert len(names(folder)) == 1
    assert list(json.loads((folder / "failed.json").read_text())) == lost
    out = Console(file=io.StringIO(), width=300)
    sweep(variations, folder, out)
    assert "4 runs in" in out.file.getvalue()
    assert "2 of them complete" in out.file.getvalue()


def test_single_runs_that_are_stopped_are_continued(swept, tmp_path, monkeypatch):
    variations, folder = swept(BATCH_SIZES), tmp_path / "all"
    first, second = (folder / run.name for run in variations)
    with monkeypatch.context() as patch:
        ctrl_c(patch, loop.Training, "_save", 2 * (4 + 2))  # of the second run's second epoch
        with pytest.raises(Interrupted):
            sweep(variations, folder, QUIET)
    assert results(folder)[first.name]["result"]
    assert not results(folder)[second.name]["result"]
    written = (first / "run.json").stat().st_mtime_ns
    sweep(variations, folder, QUIET)
    assert (first / "run.json").stat().st_mtime_ns == written
    config = variations[1].config
    alone = train(config, open_data(config), tmp_path / "alone", QUIET)
    assert results(folder)[second.name]["result"] == alone
    assert measurements(second) == measurements(tmp_path / "alone")


def test_a_phase_does_not_begin_where_all_runs_diverged(swept, tmp_path):
    out = Console(file=io.StringIO(), width=300)
    with pytest.raises(UserError, match=r"every run of .* diverged"):
        sweep(swept(TOO_HIGH), tmp_path / "all", out)
    said = out.file.getvalue()
    assert "head: 2 runs in " in said
    assert "all diverged" in said
    assert "-1.0000" not in said
    assert "bias: 2 runs in" not in said


def test_a_group_is_told_by_what_its_own_runs_differ_in(swept, tmp_path):
    out = Console(file=io.StringIO(), width=300)
    variations, folder = swept(LRS | BATCH_SIZES), tmp_path / "all"
    sweep(variations, folder, out)
    told = [line for line in out.file.getvalue().splitlines() if "train together" in line]
    assert told == ["2 runs train together: they differ in phases.head.lr"] * 2

    other = swept({"phases.head.lr": (1e-2, 3e-3)} | BATCH_SIZES)
    changed = "02-.*: phases.head.lr: 0.001 -> 0.003"
    with pytest.raises(UserError, match=f"sweep of other runs .*{changed}"):
        sweep(other, folder, QUIET)
