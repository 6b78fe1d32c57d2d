"""What several processes agree on, in real processes; and what a single one never waits for."""

import importlib
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtl.errors import UserError
from jaxtl.metrics import Sums
from jaxtl.runs.progress import Progress
from jaxtl.training import cluster, hosts
from jaxtl.training.shared_run import as_progress, progress_as_json


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What two processes found."""
    folder, port = tmp_path_factory.mktemp("hosts"), free_port()
    program = Path(__file__).with_name("host_process.py")
    variables = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    started = [
        subprocess.Popen(
            [sys.executable, program, str(port), "2", str(number), folder],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    return [json.loads(out.rpartition("results ")[2]) for out, _ in ended]


def test_an_error_of_one_host_is_an_error_of_all(results):
    first, second = results
    assert (first["together"], second["together"]) == (0, 1)
    assert first["user"] == ["UserError", "on host 1: bad image", None, True]
    assert second["user"] == ["UserError", "bad image", None, True]
    assert first["system"] == ["OSError", "[Errno 28] on host 1: full", 28, True]
    assert first["signal"] == second["signal"] == ["Interrupted", "", 15, True]


def test_the_error_of_the_first_host_that_failed_counts(results):
    assert results[0]["both"] == ["ZeroDivisionError", "division by zero", None, True]
    text = "on host 0: ZeroDivisionError: division by zero"
    assert results[1]["both"] == ["UserError", text, None, True]


def test_the_first_host_gives_its_result_to_all(results):
    for found in results:
        assert found["first"] == [0, "text", None, 2.5]
        assert found["any"] == [True, False]
    assert results[1]["first fails"] == ["UserError", "on host 0: no", None, True]


def test_what_is_sent_keeps_its_bits(results):
    for found in results:
        assert found["exact"] == [True, [True, True]]


def test_parts_of_a_table_become_the_table_on_every_host(results):
    for found in results:
        assert found["rows"] == [[[i, -i] for i in range(count)] for count in (1, 2, 5)]


def test_hosts_stop_before_the_same_item_whichever_fails(results):
    for found in results:
        assert found["all"] == [[0, 1, 2, 3, 4], None]
        assert found["failing"][0] == found["stopping"][0] == [0, 1]
        assert found["stopping"][1] == ["Interrupted", "", 15, True]
        assert found["paused"] == [0, 1, 2, 3]
        assert found["none"] == [[], None]
    assert results[0]["failing"][1] == ["UserError", "on host 1: gone", None, True]


def test_a_directory_that_hosts_do_not_share_is_refused(results):
    for found in results:
        assert "on storage that they share" in found["apart"][1]
        assert found["shared"] is None


def test_a_single_process_agrees_with_itself():
    assert hosts.together(lambda: 1) == hosts.from_first(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        hosts.together(lambda: 1 / 0)
    assert [item for item, due in hosts.in_step(range(4), lambda: True) if due()] == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [1, 5, 16])
@pytest.mark.parametrize("parts", [1, 3, 16])
def test_a_table_is_split_up_into_parts_that_follow_each_other(count, parts):
    split = [hosts.split_up(count, part, parts) for part in range(parts)]
    assert [i for part in split for i in part] == list(range(count))


@pytest.fixture
def no_cluster(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORDINATOR", "KUBERNETES_", "TPU_")):
            monkeypatch.delenv(name)
    return monkeypatch


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[01-04]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}


@pytest.mark.parametrize(
    ("variables", "size"), [(SLURM, "SLURM_NTASKS"), (OPEN_MPI, "OMPI_COMM_WORLD_SIZE")]
)
def test_a_cluster_that_jax_detects_is_joined_where_it_has_several_processes(
    no_cluster, variables, size
):
    assert not cluster._is_one_of_several(None, None, None)
    for name, value in variables.items():
        no_cluster.setenv(name, value)
    no_cluster.setenv(size, "4")
    assert cluster._is_one_of_several(None, None, None)
    assert not cluster._is_one_of_several(None, 1, None)
    no_cluster.setenv(size, "1")
    assert not cluster._is_one_of_several(None, None, None)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("evaluate", ["--run", "none"]),
        ("report", ["none"]),
        ("predict", ["--run", "none", "none.png"]),
        ("export", ["--run", "none", "--to", "none.onnx"]),
    ],
)
def test_commands_of_one_process_say_so_before_anything_else(
    no_cluster, caplog, monkeypatch, command, flags
):
    monkeypatch.setattr(logging.getLogger("jaxtl"), "propagate", True)
    for name, value in (SLURM | {"SLURM_NTASKS": "4"}).items():
        no_cluster.setenv(name, value)
    with pytest.raises(UserError, match="none"):
        importlib.import_module(f"jaxtl.{command}").main(flags)
    (message,) = caplog.messages
    assert f"4 processes of a cluster, and jaxtl.{command} uses one" in message


@pytest.mark.parametrize(("tasks", "said"), [("1", 0), ("4", 1)])
def test_a_command_of_one_process_says_so_in_a_cluster_of_several(
    no_cluster, caplog, monkeypatch, tasks, said
):
    monkeypatch.setattr(logging.getLogger("jaxtl"), "propagate", True)
    cluster.warn_if_several("jaxtl.evaluate")
    for name, value in SLURM.items():
        no_cluster.setenv(name, value)
    no_cluster.setenv("SLURM_NTASKS", tasks)
    cluster.warn_if_several("jaxtl.evaluate")
    assert len(caplog.messages) == said
    assert all("one of 4 processes" in text and "\n" not in text for text in caplog.messages)


@pytest.mark.parametrize(
    "progress",
    [None, Progress(), Progress(phase=1, batch=3, step=9, sums=Sums(0.1, 1, 2, 3))],
)
def test_where_a_run_stands_is_sent_as_it_is(progress):
    assert as_progress(progress_as_json(progress)) == progress


def test_a_pod_that_trains_alone_does_not_ask_kubernetes(no_cluster, recwarn):
    no_cluster.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert not cluster._is_one_of_several(None, None, None)
    assert not recwarn


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, 2, None), "give all three"),
        (("node1:1234", None, None), "give all three"),
        (("node1:1234", 2, 2), "count from 0 to 1"),
        (("node1", 2, 0), "HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        cluster._is_one_of_several(*given)
