"""Runs in Weights & Biases (offline) and MLflow, by the real packages, and trackers that fail."""

import json
import logging
import signal
import struct
import sys

import pytest
from rich.console import Console
from small_run import metrics, settings, watched

from jaxtl import cli
from jaxtl import train as command
from jaxtl.config.config_file import leaves
from jaxtl.errors import Interrupted, UserError, check_installed
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.metrics_log import read_metrics
from jaxtl.runs.trackers import TRACKERS, Trackers
from jaxtl.training.setup import open_data, train

pytestmark = pytest.mark.usefixtures("small")

QUIET = Console(quiet=True)
CONFIG = settings(
    {"train": {"head/.*": 1.0}, "epochs": 3, "lr": 1e-2},
    data={"source": "digits", "batch_size": 512},
)

SHORT = settings({"train": {"head/.*": 1.0}}, data={"source": "digits", "batch_size": 1024})


def trained(folder, *trackers, out=QUIET):
    return train(CONFIG, open_data(CONFIG), folder, out, trackers=trackers)


def trained_in_two_parts(folder, tracker):
    out = watched("p0 2/3", lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        trained(folder, tracker, out=out)
    return trained(folder, tracker)


def logged(folder):
    """The lines of a run's log as trackers name them, by step."""
    found = {}
    for line in read_metrics(RunDirectory(folder).metrics):
        named = {k: v for k, v in line.items() if k not in ("phase", "step", "split")}
        split, step = line["split"], line["step"]
        found.setdefault(step, {}).update({f"{split}/{k}": v for k, v in named.items()})
    return found


def wandb_records(file):
    """The records of a file of W&B: blocks of LevelDB's log after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(b"".join(parts))
            parts = []


@pytest.mark.peers
@pytest.mark.slow
def test_weights_and_biases_has_the_log_of_a_run_and_goes_on_with_it(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    result = trained_in_two_parts(tmp_path / "run", "wandb")
    ids = json.loads((tmp_path / "run" / "trackers" / "ids.json").read_text())
    files = sorted((tmp_path / "run" / "trackers" / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{ids['wandb']}.wandb"] * 2
    found, given = {}, {}
    for record in (record for file in files for record in wandb_records(file)):
        items = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        if items:
            found.setdefault(items["step"], {}).update(
                {key: value for key, value in items.items() if "/" in key}
            )
        given |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
    last = found[result["step"]]
    assert {key: last.pop(f"result/{key}") for key in result} == result
    assert found == logged(tmp_path / "run")
    assert len(found) == 3
    assert given["data.batch_size"] == 512
    assert leaves(CONFIG).keys() <= given.keys()


def only_run(mlflow):
    """A client of MLflow, and the one run that its store has."""
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("Default").experiment_id])
    return client, run


@pytest.mark.peers
@pytest.mark.slow
def test_mlflow_has_the_log_of_a_run_and_goes_on_with_it(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    result = trained_in_two_parts(tmp_path / "run", "mlflow")
    client, run = only_run(mlflow)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["data.batch_size"] == "512"
    assert run.data.params.keys() == leaves(CONFIG).keys()
    found = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            found.setdefault(metric.step, {})[name] = metric.value
    last = found[result["step"]]
    assert {key: last.pop(f"result/{key}") for key in result} == result
    assert found == logged(tmp_path / "run")


@pytest.mark.peers
@pytest.mark.slow
def test_a_key_is_asked_for_before_training(tmp_path, monkeypatch):
    pytest.importorskip("wandb").teardown()  # forgets the settings of other tests
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # of .netrc
    with pytest.raises(UserError, match="needs a key: wandb login, or set WANDB_MODE=offline"):
        trained(tmp_path / "run", "wandb")
    assert not RunDirectory(tmp_path / "run").metrics.exists()


@pytest.mark.peers
@pytest.mark.slow
def test_mlflow_does_not_take_a_run_that_it_lost_for_a_complete_one(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def lost(*_, **__):
        raise RuntimeError("lost")

    monkeypatch.setattr(mlflow, "log_metrics", lost)
    trained(tmp_path / "run", "mlflow")
    assert only_run(mlflow)[1].info.status == "FAILED"


@pytest.mark.peers
@pytest.mark.slow
def test_a_run_goes_on_without_a_server(tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trained(tmp_path / "run", "mlflow")
    (said,) = warnings(caplog)
    assert said.startswith("mlflow gets no more of this run, which goes on: ")
    assert "\n" not in said


def warnings(caplog):
    return [r.message for r in caplog.records if r.levelno == logging.WARNING and r.name == "jaxtl"]


class Noted:
    """A tracker that notes what it gets and fails at some call."""

    def __init__(self, fails_at):
        self.fails_at, self.calls, self.ids = fails_at, [], []

    def begin(self, id, name, settings, folder):
        self.id = id or "new"
        self.ids.append(id)
        return self._note("begin", self)

    def write(self, step, metrics):
        self._note("write")

    def end(self, error):
        self._note("end")

    def _note(self, what, value=None):
        self.calls.append(what)
        if len(self.calls) == self.fails_at:
            raise RuntimeError("the disk of the server\nis full")
        return value


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    return train(SHORT, open_data(SHORT), folder, QUIET), metrics(folder), folder


@pytest.mark.parametrize("fails_at", range(1, 6))
def test_a_tracker_that_fails_is_told_of_once_and_changes_nothing(
    fails_at, alone, tmp_path, monkeypatch, caplog
):
    noted, other = Noted(fails_at), Noted(None)
    monkeypatch.setitem(TRACKERS, "noted", noted.begin)
    monkeypatch.setitem(TRACKERS, "other", other.begin)
    result = train(SHORT, open_data(SHORT), tmp_path, QUIET, trackers=("noted", "other"))
    calls = ["begin", "write", "write", "write", "end"]  # training, validation, the result
    assert other.calls == calls
    ended = ["end"] if 1 < fails_at < len(calls) else []  # so that it takes no part for a whole
    assert noted.calls == calls[:fails_at] + ended
    reason = "RuntimeError: the disk of the server"
    assert warnings(caplog) == [f"noted gets no more of this run, which goes on: {reason}"]
    assert (result, metrics(tmp_path)) == alone[:2]


@pytest.mark.parametrize("damaged", ["{", "[1]"])
def test_damaged_names_begin_a_new_run_and_a_tracker_named_twice_is_one(
    damaged, alone, tmp_path, monkeypatch, caplog
):
    noted = Noted(None)
    monkeypatch.setitem(TRACKERS, "noted", noted.begin)
    ids = tmp_path / "trackers" / "ids.json"
    ids.parent.mkdir()
    ids.write_text(damaged)
    run = RunDirectory(tmp_path)
    run.begin(SHORT, RunDirectory(alone[2]).metadata())
    with Trackers(["noted", "noted"], run):
        assert noted.ids == [None]
    (said,) = warnings(caplog)
    assert said.startswith(f"{ids} is damaged")
    assert json.loads(ids.read_text()) == {"noted": "new"}


def test_the_trackers_of_the_command_are_those_there_are():
    assert set(cli._TRACKERS) == set(TRACKERS)


def test_a_package_that_is_not_there_is_named_before_anything_begins(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--track needs wandb: pip install 'jaxtl\[wandb\]'"):
        command.main(["--cfg", "no-config.py", "--track", "wandb"])


def test_a_folder_with_the_name_of_a_package_is_none(tmp_path, monkeypatch):
    (tmp_path / "wandbox").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="it needs wandbox: get it"):
        check_installed("it", ["wandbox"], "get it")
