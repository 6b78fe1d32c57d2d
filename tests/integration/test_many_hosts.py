"""Several processes train as one does, and go on when one of them is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from same_bits import arrays
from workplace import Ended, finish, measurements, saved_steps, wait_until, write_images

pytestmark = pytest.mark.slow

# Four epochs of 45 images in batches of 16, the last of which is short: the first phase trains from
# cached activations; the second from images, whose views are as many as its epochs.
FLAGS = (
    *("--cfg", "tiny.py", "--cfg.model.name=small", "--cfg.model.weights=small.h5"),
    *("--cfg.model.width=1", "--cfg.data.batch_size=16", "--cfg.views=2"),
    *("--cfg.phases.head.epochs=4", "--cfg.phases.finetune.epochs=2"),
)
STEPS = 3  # an epoch
MOST_SECONDS = 60  # until the others notice that a host is gone
LOST = "error: another host has died or cannot be reached"
CLOSE = {"rtol": 1e-3, "atol": 1e-5}


class Job:
    """The processes of a run, of which each has so many simulated devices.

    They are told of each other by flags or, with `slurm`, by the variables of that cluster.
    """

    def __init__(self, workplace, name, processes, devices, *flags, slurm=False):
        self.path = workplace.path / name
        variables = {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
            "--xla_backend_optimization_level=0"
        }
        command = [sys.executable, Path(__file__).with_name("host_process.py"), *FLAGS, *flags]
        command += ["--workdir", name]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        if processes > 1 and not slurm:
            command += ["--coordinator", f"localhost:{port}", "--num-processes", str(processes)]
        if slurm:
            variables |= {"SLURM_JOB_ID": str(port), "SLURM_STEP_NODELIST": "localhost"}
            variables |= {"SLURM_NTASKS": str(processes)}

        def own(number):
            """The flags and variables that only one process has."""
            if slurm:
                return [], {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
            return ["--process-id", str(number)] if processes > 1 else [], {}

        self.processes = [
            subprocess.Popen(
                [*map(str, command), *own(number)[0]],
                cwd=workplace.path,
                env=os.environ | variables | own(number)[1],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]

    def finish(self) -> list[Ended]:
        """How all of them ended."""
        return [finish(process) for process in self.processes]

    def succeed(self):
        """The job itself, after its end without an error."""
        ended = self.finish()
        assert {one.code for one in ended} == {0}, ended
        self.out = ended[0].out
        return self


@pytest.fixture(scope="module")
def one(workplace):
    """The run in one process on eight devices."""
    return Job(workplace, "hosts-1", 1, 8).succeed()


def assert_same_run(job, reference):
    """The same measurements and variables to float32 rounding, counts exactly."""
    lines, expected = measurements(job.path), measurements(reference.path)
    assert len(lines) == 12
    for line, other in zip(lines, expected, strict=True):
        assert line == other | {"loss": pytest.approx(other["loss"], rel=1e-4)}
    found, known = arrays(job.path), arrays(reference.path)
    assert found.keys() == known.keys()
    for key, value in known.items():
        np.testing.assert_allclose(found[key], value, **CLOSE, err_msg=str(key))


@pytest.mark.parametrize(("processes", "devices", "slurm"), [(2, 4, False), (4, 2, True)])
def test_any_number_of_processes_trains_the_same(
    workplace, one, processes, devices, slurm, own_cache
):
    def stored():
        return set((own_cache / "jaxtl" / "activations").glob("*/about.json"))

    before = stored()
    job = Job(workplace, f"hosts-{processes}", processes, devices, slurm=slurm).succeed()
    assert_same_run(job, one)
    for ran in (one, job):
        assert "head: 2 views an image; the frozen stages run once" in ran.out
        assert "finetune: 2 views an image; not cached" in ran.out
    # Each process ran the frozen stages on its part of 45 and of 18 images, and on no other.
    new = [json.loads(file.read_text())["metadata"] for file in stored() - before]
    parts = [tuple(work["part"]) for work in new if work["network"][-1] == "head"]
    for images in (45, 18):
        each = -(-images // processes)
        for first in range(0, images, each):
            assert parts.count((first, min(first + each, images))) == 1
    run = json.loads((job.path / "run.json").read_text())
    assert len(run["devices"]) == 8
    assert (job.path / "report.html").exists()
    result = json.loads((one.path / "run.json").read_text())["result"]
    assert run["result"] == result | {"loss": pytest.approx(result["loss"], rel=1e-4)}


def test_processes_find_the_same_test_and_the_same_area_under_the_curve(workplace):
    flags = ("--cfg.data.test_fraction=0.1", "--cfg.phases.finetune.monitor=auroc")
    flags += ("--cfg.phases.head.epochs=1", "--cfg.phases.finetune.epochs=2")
    results = []
    for processes, devices in ((1, 4), (2, 2)):
        job = Job(workplace, f"tested-{processes}", processes, devices, *flags).succeed()
        run = json.loads((job.path / "run.json").read_text())
        assert run["data"]["test"]["images"] == 6  # 2 of the 15 of each class
        assert job.out.count("test_loss") == 1
        results.append(run["result"])
    assert {"auroc", "test_auroc", "test_accuracy"} <= results[0].keys()
    assert results[1] == pytest.approx(results[0], rel=1e-4)


def test_processes_find_the_same_labels_and_thresholds(workplace):
    rows = ["image,labels,split"]
    for split in ("train", "val"):
        for index, file in enumerate(sorted((workplace.path / "data" / split).glob("*/*"))):
            colour = file.parent.name
            labels = ";".join([colour] * (index % 3 > 0) + ["not red"] * (colour != "red"))
            rows.append(f"{file},{labels},{split}")
    (workplace.path / "labels.csv").write_text("\n".join(rows))
    flags = ("--cfg.data.source=csv:labels.csv", "--cfg.phases.head.epochs=2")
    results, thresholds = [], []
    for processes, devices in ((1, 4), (2, 2)):
        job = Job(workplace, f"labels-{processes}", processes, devices, *flags).succeed()
        run = json.loads((job.path / "run.json").read_text())
        results.append(run["result"])
        thresholds.append(run["thresholds"])
    assert {"mAP", "macro_f1"} <= results[0].keys()
    assert results[1] == pytest.approx(results[0], rel=1e-4)
    assert len(thresholds[0]) == 4  # three colours, and `not red`
    assert thresholds[1] == pytest.approx(thresholds[0], abs=1e-3)


@pytest.mark.parametrize(("victim", "restarted"), [(1, 2), (0, 1)])
def test_a_killed_process_ends_the_others_and_fewer_or_as_many_go_on(
    workplace, one, victim, restarted
):
    name = f"hosts-without-{victim}"
    job = Job(workplace, name, 2, 4)
    survivor = job.processes[1 - victim]
    wait_until(lambda: 2 * STEPS in saved_steps(job.path), survivor)
    begun = time.monotonic()
    job.processes[victim].kill()
    ended = finish(survivor)
    assert time.monotonic() < begun + MOST_SECONDS
    assert ended.code != 0
    assert ended.err.splitlines()[-1].startswith(LOST)
    assert "Traceback" not in ended.err
    finish(job.processes[victim])
    assert "result" not in (job.path / "run.json").read_text().replace('"result": null', "")
    again = Job(workplace, name, restarted, 8 // restarted).succeed()
    assert_same_run(again, one)


def test_a_signal_to_one_process_stops_and_saves_all_at_the_same_step(workplace, one):
    job = Job(workplace, "hosts-stopped", 2, 4)
    wait_until(lambda: STEPS in saved_steps(job.path), job.processes[1])
    job.processes[1].send_signal(signal.SIGTERM)
    ended = job.finish()
    assert [process.code for process in ended] == [143, 143], ended
    assert "stopped and saved; to continue" in ended[0].out
    assert not any(LOST in process.err for process in ended)
    assert_same_run(Job(workplace, "hosts-stopped", 2, 4).succeed(), one)


def test_an_image_that_one_host_cannot_read_stops_all_at_the_same_step(workplace):
    write_images(workplace.path / "losing" / "train", each=15, seed=1)
    write_images(workplace.path / "losing" / "val", each=6, seed=2)
    streamed = ("--cfg.data.memory_gb=0", "--cfg.cache.disk_gb=0", "--cfg.phases.head.epochs=999")
    flags = ("--cfg.data.source=losing", "--cfg.data.retry_seconds=0", *streamed)
    job = Job(workplace, "hosts-losing", 2, 1, *flags)
    wait_until(lambda: STEPS in saved_steps(job.path), job.processes[0])
    (workplace.path / "losing" / "train" / "red" / "03.png").unlink()
    ended = job.finish()
    assert [process.code for process in ended] == [2, 2], ended
    said = [process.err.splitlines()[-1] for process in ended]
    reader = next(host for host in (0, 1) if "on host" not in said[host])
    assert said[reader].startswith("error: losing/train/red/03.png: cannot be read")
    assert said[1 - reader].startswith(f"error: on host {reader}: losing/train/red/03.png")
    # Every step before that of the image is saved, also within an epoch.
    order = np.random.RandomState([0, saved_steps(job.path)[-1] // STEPS]).permutation(45)
    place = list(order).index(33)  # after 15 blue and 15 green ones
    assert saved_steps(job.path)[-1] % STEPS == place // 16
    assert reader == place % 16 // 8
