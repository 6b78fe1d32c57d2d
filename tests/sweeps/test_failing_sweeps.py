"""A run that fails is named with its reason, and the other runs of its sweep train."""

import contextlib
import csv
import dataclasses
import io
import json
import logging
import signal

import pytest
from flax import nnx
from full_disk import files_no_longer_than
from jaxtyping import Array
from rich.console import Console
from small_network import SMALL, small, small_network
from small_run import watched
from workplace import Workplace, finish, wait_until, write_images, write_weights

from jaxtl import sweep as command
from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, Context, Network
from jaxtl.models.chain import Spec
from jaxtl.sweeps.failure import Failure
from jaxtl.sweeps.ranking import failure_lines, ranked
from jaxtl.sweeps.sweep import sweep
from jaxtl.sweeps.variations import load_sweep

CONFIG = """
from jaxtl.config import Config, Data, Model, Phase
from jaxtl.sweeps.variations import grid

def get_config() -> Config:
    return Config(
        model=Model(MODEL),
        data=Data(source="data", batch_size=8, retry_seconds=0),
        phases=(Phase(name="head", train={"head/.*": 1.0}, epochs=2, lr=1e-2),),
    )

def sweep():
    return grid(AXES)
"""
SMALL_MODEL = "name='small', width=1, image_size=32, weights=None"
TOO_LARGE = 8 * 10**13  # images in a batch: their numbers alone need more than any address
LRS = {"phases.head.lr": (1e-2, 1e-3)}


@pytest.fixture
def place(tmp_path, monkeypatch, small):
    """A folder with images, where commands run."""
    write_images(tmp_path / "data" / "train", each=8, seed=1)
    write_images(tmp_path / "data" / "val", each=4, seed=2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(axes, model=SMALL_MODEL):
    """Runs the command in the folder `all`; returns its exit code, what it said, and its table."""
    with open("swept.py", "w") as file:
        file.write(CONFIG.replace("AXES", repr(axes)).replace("MODEL", model))
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtl.console.console", lambda: Console(file=out, width=1000))
        code = command.main(["--cfg", "swept.py", "--workdir", "all"])
    return code, out.getvalue(), rows("all/sweep.csv")


def rows(table):
    with open(table) as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def failures():
    with open("all/failed.json") as file:
        return json.load(file)


def outcomes(table):
    return [table[name]["outcome"] for name in sorted(table)]


def finished(folder):
    """When each run was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/run.json")}


@pytest.mark.slow
def test_a_run_whose_weights_are_damaged_does_not_end_the_sweep_and_trains_when_they_are_mended(
    place,
):
    write_weights(place / "a.h5", network=small_network(num_classes=None))
    whole = (place / "a.h5").read_bytes()
    (place / "b.h5").write_bytes(whole[: len(whole) // 2])
    (place / "c.h5").write_bytes(whole)
    axes = {"model.weights": ("a.h5", "b.h5", "c.h5")}
    code, said, table = run(axes)
    assert (code, outcomes(table)) == (1, ["complete", "failed", "complete"])
    (lost,) = failures()
    assert failures()[lost]["kind"] == "error"
    assert "b.h5" in failures()[lost]["reason"]
    assert table[lost]["reason"] == failures()[lost]["reason"]
    assert table[lost]["val_accuracy"] == "nan"
    assert said.splitlines()[-3:] == [
        "1 of 3 runs failed; the same command with --workdir all tries again:",
        f"  {failures()[lost]['reason']}",
        f"    {lost}",
    ]

    before = finished(place / "all")
    assert len(before) == 2
    (place / "b.h5").write_bytes(whole)
    code, said, table = run(axes)
    assert (code, outcomes(table)) == (0, ["complete"] * 3)
    assert "3 runs in all, 2 of them complete, 1 failed and train again" in said
    assert "runs failed" not in said
    assert failures() == {}
    assert {name: finished(place / "all")[name] for name in before} == before


@pytest.mark.slow
def test_a_group_without_weights_fails_as_a_whole_and_trains_together_later(place):
    write_weights(place / "good.h5", network=small_network(num_classes=None))
    (place / "lost.h5").write_bytes(b"")
    axes = {"model.weights": ("lost.h5", "good.h5")} | LRS
    code, said, table = run(axes)
    assert (code, outcomes(table)) == (1, ["failed", "failed", "complete", "complete"])
    assert said.count("2 runs train together") == 2
    assert {failure["kind"] for failure in failures().values()} == {"error"}
    assert said.splitlines()[-2:] == [f"    {name}" for name in failures()]
    (place / "lost.h5").write_bytes((place / "good.h5").read_bytes())
    code, said, table = run(axes)
    assert (code, outcomes(table)) == (0, ["complete"] * 4)
    assert said.count("2 runs train together") == 1


@pytest.mark.slow
def test_runs_that_no_memory_holds_are_tried_alone_and_named(place):
    code, said, table = run({"data.batch_size": (TOO_LARGE, 8)} | LRS)
    assert (code, outcomes(table)) == (1, ["failed", "failed", "complete", "complete"])
    assert "2 of 2 runs together failed: " in said
    assert [failure["kind"] for failure in failures().values()] == ["out of memory"] * 2
    for name in failures():
        assert f"\n{name}\n" in said  # it trained alone


class BrokenPool(nnx.Module):
    """A stage with a mistake in its code."""

    def __call__(self, x: Array, context: Context) -> Array:
        return x.mean(axis=(1, x.shape[5]))


def broken(spec: Spec) -> Network:
    network = small(spec)
    network.pool = BrokenPool()
    return network


@pytest.mark.slow
def test_an_error_that_nobody_expected_is_logged_and_the_next_run_trains(place, monkeypatch):
    names = {"broken": SMALL.names["small"]}
    monkeypatch.setitem(REGISTRY, "broken", dataclasses.replace(SMALL, names=names, build=broken))
    code, said, table = run({"model.name": ("broken", "small")})
    assert (code, outcomes(table)) == (1, ["failed", "complete"])
    (lost,) = failures()
    assert failures()[lost]["kind"] == "unexpected"
    log = (place / "all" / "failed.log").read_text()
    assert lost in log.splitlines()[0]
    assert "Traceback" in log
    assert failures()[lost]["reason"].partition(" (")[0] in log
    assert "Traceback" not in said
    assert "(the traceback is in all/failed.log)" in said.splitlines()[-2]


@pytest.mark.slow
def test_a_complete_run_that_is_damaged_fails_alone(place):
    axes = {"data.batch_size": (8, 16)}
    assert run(axes)[0] == 0
    first = sorted(finished(place / "all"))[0]
    (place / "all" / first / "run.json").write_text("{")
    code, _, table = run(axes)
    assert (code, outcomes(table)) == (1, ["failed", "complete"])
    assert "run.json is damaged" in table[first]["reason"]


@pytest.mark.slow
def test_a_run_without_data_does_not_keep_others_from_training(place):
    code, said, table = run({"data.source": ("data", "away")})
    assert (code, outcomes(table)) == (1, ["complete", "failed"])
    (lost,) = failures()
    assert "no data source 'away'" in table[lost]["reason"]
    assert lost in said.splitlines()[-1]

    write_images(place / "away" / "train", each=8, seed=3)
    write_images(place / "away" / "val", each=4, seed=4)
    (place / "data").rename(place / "elsewhere")  # of the run that is complete
    code, _, table = run({"data.source": ("data", "away")})
    assert (code, outcomes(table)) == (0, ["complete", "complete"])


@pytest.mark.slow
def test_a_run_that_diverged_is_no_failure(place):
    code, said, table = run({"phases.head.lr": (1e-2, 3e38)})
    assert (code, outcomes(table)) == (0, ["complete", "diverged"])
    (lost,) = failures()
    assert failures()[lost]["kind"] == "diverged"
    heading, reason, name = said.splitlines()[-3:]
    assert heading == "1 of 2 runs diverged, and would again:"
    assert "loss is" in reason
    assert name == f"    {lost}"
    code, said, _ = run({"phases.head.lr": (1e-2, 3e38)})
    assert code == 0
    assert "train together" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_sweep_that_is_stopped_or_killed_leaves_a_table_and_names_no_failure(place, number, code):
    model = "width=0.35, image_size=32, weights=None"
    axes = {"phases.head.epochs": (1, 10_000), "data.batch_size": (8,)}
    text = CONFIG.replace("AXES", repr(axes)).replace("MODEL", model)
    (place / "swept.py").write_text(text)
    folder = place / "all"
    process = Workplace(place).start("jaxtl.sweep", "--cfg", "swept.py", "--workdir", "all")
    wait_until((folder / "sweep.csv").exists, process)
    process.send_signal(number)
    ended = finish(process)
    assert (ended.code, "Traceback" in ended.err) == (code, False), ended.err
    assert outcomes(rows(folder / "sweep.csv")) == ["complete"]
    assert not (folder / "failed.json").exists()
    if number != signal.SIGKILL:
        last = ended.out.splitlines()[-1]
        assert last == "stopped; to continue: the same command with --workdir all"


@pytest.mark.slow
def test_a_signal_ends_a_sweep_whose_run_cannot_be_saved(place, monkeypatch, caplog):
    axes = {"phases.head.epochs": (1000, 1)}
    text = CONFIG.replace("AXES", repr(axes)).replace("MODEL", SMALL_MODEL)
    (place / "swept.py").write_text(text)
    logging.getLogger("jaxtl").addHandler(caplog.handler)
    with contextlib.ExitStack() as until:

        def stop_on_a_full_disk():
            until.enter_context(files_no_longer_than(0))
            signal.raise_signal(signal.SIGTERM)

        out = watched("head 3/1000", stop_on_a_full_disk)
        monkeypatch.setattr("jaxtl.console.console", lambda: out)
        assert command.main(["--cfg", "swept.py", "--workdir", "all"]) == 143
    assert "error: " in caplog.text
    assert "File too large" in caplog.text
    assert out.file.getvalue().splitlines()[-1].startswith("stopped; to continue")
    assert [path.name for path in (place / "all").glob("*/run.json")] == [
        "run.json"
    ]  # of the first
    assert not (place / "all" / "failed.json").exists()


def test_a_damaged_list_of_failures_is_refused(place):
    axes = {"data.batch_size": (8, 16)}
    (place / "swept.py").write_text(
        CONFIG.replace("AXES", repr(axes)).replace("MODEL", SMALL_MODEL)
    )
    variations, out = load_sweep("swept.py", {}), Console(quiet=True)
    (place / "all").mkdir()
    written = {run.name: run.config.model_dump() for run in variations}
    (place / "all" / "sweep.json").write_text(json.dumps(written))
    for text in ("[", "[]", '{"a": {"kind": "bored", "reason": ""}}', "\xff"):
        (place / "all" / "failed.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"failed\.json is damaged; remove it"):
            sweep(variations, place / "all", out)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (UserError("no such thing"), "error", "no such thing"),
        (FileNotFoundError(2, "No such file", "x.h5"), "error", "No such file: x.h5"),
        (OSError("no number"), "error", "no number"),
        (MemoryError(), "out of memory", "this machine has too little memory"),
        (TypeError("one\ntwo"), "unexpected", "TypeError: one"),
    ],
)
def test_an_error_is_a_failure_of_one_line(error, kind, reason):
    assert Failure.of(error) == Failure(kind, reason)


def test_many_failures_are_told_in_a_few_lines(tmp_path):
    result = {"accuracy": 0.5, "loss": 1.0, "step": 3}
    alike = {f"{n:02}": Failure("error", "no weights") for n in range(10, 20)}
    others = {f"{n:02}": Failure("error", f"reason {n}") for n in range(20, 30)}
    known = {"00": Failure("diverged", "loss nan"), "01": result, **alike, **others}
    order = ranked(known)
    assert list(order)[:3] == ["01", "00", "10"]
    *lines, more = failure_lines(order, "again", tmp_path / "csv")
    assert lines[:3] == ["\n1 of 22 runs diverged, and would again:", "  loss nan", "    00"]
    assert lines[3:5] == ["\n20 of 22 runs failed; again:", "  no weights"]
    assert lines[5:9] == ["    10", "    11", "    12", "    and 7 more"]
    others = [(f"  reason {n}", f"    {n}") for n in range(20, 24)]
    assert lines[9:] == [line for pair in others for line in pair]
    assert more == f"  and 6 more reasons in {tmp_path / 'csv'}"
