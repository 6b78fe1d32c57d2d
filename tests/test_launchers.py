"""What starts several processes: the flags that they get, and how their end is told."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxtl import train

SCRIPTS = Path(__file__).parents[1] / "scripts"


def flags_of_train(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    return set(re.findall(r"--[\w-]+", capsys.readouterr().out))


def test_the_launcher_starts_all_processes_and_returns_their_error(tmp_path):
    started = subprocess.run(
        [sys.executable, SCRIPTS / "launch.py", "--processes", "2", "--cfg", "missing.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert started.returncode == 2
    assert len(re.findall("^error: .*missing.py", started.stderr, re.MULTILINE)) == 2


def test_the_slurm_file_is_a_script_with_flags_of_train(capsys):
    script = SCRIPTS / "slurm.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    (command,) = re.findall(r"jaxtl\.train (.*)", script.read_text())
    assert set(re.findall(r"--[\w-]+(?= |$)", command)) <= flags_of_train(capsys)


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (0, 0, False),
        (2, 0, False),
        (143, 9, True),
        *((code, restarts, restarts < 5) for code in (75, 134, 137) for restarts in (0, 4, 5)),
    ],
)
def test_the_slurm_file_queues_what_was_killed_again_but_not_for_ever(
    tmp_path, code, restarts, again
):
    for name, line in {"srun": f"exit {code}", "scontrol": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    ended = subprocess.run(
        ["bash", SCRIPTS / "slurm.sh"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restarts),
            "WORKDIR": "runs",
        },
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (code, "requeue 7\n" if again else "")


def test_the_jobset_numbers_its_pods_and_names_the_first_as_coordinator(capsys):
    described = yaml.safe_load((SCRIPTS / "jobset.yaml").read_text())
    (job,) = described["spec"]["replicatedJobs"]
    pods = job["template"]["spec"]
    (container,) = pods["template"]["spec"]["containers"]
    command = container["command"][-1]
    first = f"{described['metadata']['name']}-{job['name']}-0-0.{described['metadata']['name']}"
    assert f"--coordinator {first}:" in command
    assert pods["completionMode"] == "Indexed"
    assert pods["parallelism"] == pods["completions"]
    assert f"--num-processes {pods['parallelism']} " in command
    assert set(re.findall(r"(?<= )--[\w-]+(?= )", command)) <= flags_of_train(capsys)
