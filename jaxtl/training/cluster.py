"""Joins the processes of a cluster, and says so when one is lost or a command uses just one."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import jax
from jax._src import clusters
from jax._src.clusters.k8s_cluster import K8sCluster
from rich.console import Console

from jaxtl.errors import EXPECTED, Interrupted, UserError, one_line
from jaxtl.training import hosts

_log = logging.getLogger("jaxtl")

_SECONDS_TO_MEET = 300
_SECONDS_OF_SILENCE = 25  # after which a host counts as dead
_SECONDS_TO_LEAVE = 20
_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h

_LOST = (
    "another host has died or cannot be reached, or this process was killed; what was trained "
    "until the last checkpoint is saved: to continue, start the same command again, on as many "
    "hosts or fewer"
)

_ALONE = (
    f"the processes of this run did not meet within {_SECONDS_TO_MEET} s, or this one was killed: "
    "start all of them, with a --coordinator that each can reach"
)

# Runs in a process of its own, which outlives the one that it watches: JAX ends that by a signal
# where the first host dies. Who leaves in good order says so before.
_WATCH = "import sys; sys.stdin.buffer.read() or print('error: ' + sys.argv[1], file=sys.stderr)"


@contextlib.contextmanager
def joined(
    coordinator: str | None, num_processes: int | None, process_id: int | None, out: Console
) -> Iterator[None]:
    """Joins the other processes of a run before the block, and leaves them after it.

    Without arguments it joins those of the cluster that JAX detects, if there are several. If a
    host is lost within the block, this process ends with exit code 75, or by JAX's SIGABRT, and a
    line says so.

    Args:
        coordinator: HOST:PORT, where the process number 0 listens.
        num_processes: the number of processes; 1 to stay alone inside a cluster.
        process_id: the number of this one, from 0 on.
        out: the terminal.

    Raises:
        UserError: the arguments do not fit together, or the processes do not meet.
    """
    if not _is_one_of_several(coordinator, num_processes, process_id):
        yield
        return
    # JAX would take SIGTERM for itself, and the run could not be saved.
    jax.config.update("jax_enable_preemption_service", False)
    out.print("waiting for the other processes; to train in this one alone: --num-processes 1")
    with _watched(_ALONE), _usual_signals():
        try:
            jax.distributed.initialize(
                *(coordinator, num_processes, process_id),
                cluster_detection_method="deactivate" if coordinator else None,
                initialization_timeout=_SECONDS_TO_MEET,
                heartbeat_timeout_seconds=_SECONDS_OF_SILENCE,
                shutdown_timeout_seconds=_SECONDS_TO_LEAVE,
            )
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the processes of this run do not meet: {reason}") from error
    with _watched(_LOST):
        try:
            _check_devices()
            yield
        except (Exception, Interrupted) as error:
            if hosts.is_shared(error):
                _leave()
            elif _is_lost(error):
                _log.error("%s", one_line(error))
                os._exit(_TRY_AGAIN)  # the watching process says the rest, after JAX's own words
            raise
        _leave()


def warn_if_several(command: str) -> None:
    """Says in one line that each process of a cluster would do all that a command does.

    Args:
        command: the name of a command that uses one process, such as `jaxtl.evaluate`.
    """
    detected = _detected()
    if detected is not None and (count := detected.get_process_count()) > 1:
        _log.warning(
            "this is one of %d processes of a cluster, and %s uses one: each of them does all of "
            "it, so start it in one alone (SLURM: srun --ntasks=1)",
            *(count, command),
        )


def _check_devices() -> None:
    """Refuses hosts that differ in their devices; all know those of all."""
    of_hosts = collections.Counter(device.process_index for device in jax.devices()).values()
    if len(set(of_hosts)) > 1:
        _leave()
        raise UserError(
            f"the processes have {', '.join(map(str, of_hosts))} devices: each needs as many as "
            "the others"
        )


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
    if num_processes < 1:
        raise UserError(f"--num-processes {num_processes}: a run has at least one process")
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
def _watched(message: str) -> Iterator[None]:
    """Has a message printed if the block does not end in order, after all that JAX says then."""
    watcher = subprocess.Popen(
        [sys.executable, "-S", "-c", _WATCH, message],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    try:
        yield
    finally:
        watcher.communicate(b".")


@contextlib.contextmanager
def _usual_signals() -> Iterator[None]:
    """Lets signals end this process at once: JAX does not listen to Python while it waits."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave() -> None:
    """Waits until all hosts are here: one that ended at once would count as dead."""
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()


def _is_lost(error: BaseException) -> bool:
    """Whether a computation on all hosts failed since one of them is gone."""
    words = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "coordination service")
    return not isinstance(error, EXPECTED) and any(word in str(error) for word in words)
