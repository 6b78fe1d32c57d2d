"""Joins the processes of a cluster, and says so when one of them is lost."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator

import jax
from jax._src import clusters
from jax._src.clusters.k8s_cluster import K8sCluster
from rich.console import Console

from jaxtl.errors import EXPECTED, Interrupted, UserError
from jaxtl.training import hosts

_SECONDS_OF_SILENCE = 25  # after which a host counts as dead
_SECONDS_TO_LEAVE = 60

_LOST = (
    "another host has died or cannot be reached, or this process was killed; what was trained "
    "until the last checkpoint is saved: to continue, start the same command again, on as many "
    "hosts or fewer"
)

# Runs in a process of its own, which outlives the one that it watches: JAX ends that by a signal
# where the first host dies. Who leaves in good order says so before.
_WATCH = "import sys; sys.stdin.buffer.read() or print('error: ' + sys.argv[1], file=sys.stderr)"


class HostLost(UserError):
    """Another host has died, or cannot be reached."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: another try may help


@contextlib.contextmanager
def joined(
    coordinator: str | None, num_processes: int | None, process_id: int | None, out: Console
) -> Iterator[None]:
    """Joins the other processes of a run before the block, and leaves them after it.

    Without arguments it joins those of the cluster that JAX detects, if there are several.

    Args:
        coordinator: HOST:PORT, where the process number 0 listens.
        num_processes: the number of processes; 1 to stay alone inside a cluster.
        process_id: the number of this one, from 0 on.
        out: the terminal.

    Raises:
        HostLost: another host died while this one waited for it.
        UserError: the arguments do not fit together, or the processes do not meet.
    """
    if not _is_one_of_several(coordinator, num_processes, process_id):
        yield
        return
    # JAX would take SIGTERM for itself, and the run could not be saved.
    jax.config.update("jax_enable_preemption_service", False)
    out.print("waiting for the other processes; to train in this one alone: --num-processes 1")
    with _watched():
        try:
            jax.distributed.initialize(
                *(coordinator, num_processes, process_id),
                cluster_detection_method="deactivate" if coordinator else None,
                heartbeat_timeout_seconds=_SECONDS_OF_SILENCE,
                shutdown_timeout_seconds=_SECONDS_TO_LEAVE,
            )
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the processes of this run do not meet: {reason}") from error
        try:
            yield
        except (Exception, Interrupted) as error:
            if hosts.is_shared(error):
                _leave()
            elif _is_lost(error):
                raise HostLost(_LOST) from error
            raise
        _leave()


def _is_one_of_several(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> bool:
    given = coordinator, num_processes, process_id
    if given == (None, 1, None):
        return False
    if given == (None, None, None):
        detected = _detected()
        return detected is not None and detected.get_process_count() > 1
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(
            "--coordinator, --num-processes and --process-id go together: give all three, or none "
            "in a cluster that JAX detects, or --num-processes 1 alone"
        )
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process-id {process_id} is not one of {num_processes} processes: they count from 0 "
            f"to {num_processes - 1}"
        )
    if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator {coordinator} has no port: HOST:PORT, such as node1:29500")
    return num_processes > 1


def _detected() -> type[clusters.ClusterEnv] | None:
    """The cluster that `jax.distributed.initialize()` would find."""
    for cluster in clusters.ClusterEnv._cluster_types:
        if cluster.opt_in_only_method:
            continue
        if cluster is K8sCluster and not _in_an_indexed_job():
            continue  # JAX asks the API of Kubernetes, also in pods that train alone
        if cluster.is_env_present():
            return cluster
    return None


def _in_an_indexed_job() -> bool:
    known = importlib.util.find_spec("kubernetes") is not None
    return known and "JOB_COMPLETION_INDEX" in os.environ


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Has the loss of a host told after all that JAX says when it ends this process for it."""
    watcher = subprocess.Popen(
        [sys.executable, "-S", "-c", _WATCH, _LOST],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    try:
        yield
    finally:
        watcher.communicate(b".")


def _leave() -> None:
    """Waits until all hosts are here: one that ended at once would count as dead."""
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()


def _is_lost(error: BaseException) -> bool:
    """Whether a computation on all hosts failed since one of them is gone."""
    words = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination service")
    return not isinstance(error, EXPECTED) and any(word in str(error) for word in words)
