"""Faults of images, disks and processes in the middle of a run: one line, and nothing is lost."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console
from small_run import watched
from workplace import finish, measurements, wait_until

from jaxtl.accelerators import ACCELERATORS
from jaxtl.config import Checkpoint
from jaxtl.config.config_file import load
from jaxtl.errors import UserError
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.training import profiling
from jaxtl.training.setup import open_data, train

pytestmark = pytest.mark.usefixtures("small")

STEPS = 6  # batches in an epoch
FLAGS = {
    "model.name": "small",
    "model.width": "1",
    "phases.head.epochs": "1",
    "phases.finetune.epochs": "2",
    "data.memory_gb": "0",  # each image is read when it is needed
    "cache.disk_gb": "0",
    "views": "0",
}


def config_in(folder, workplace):
    """A config of a small run on images of its own, which a test may ruin."""
    shutil.copytree(workplace.path / "data", folder / "data")
    place = {
        "data.source": str(folder / "data"),
        "model.weights": str(workplace.path / "small.h5"),
    }
    return load(str(workplace.path / "tiny.py"), FLAGS | place)


@pytest.fixture
def config(workplace, tmp_path):
    return config_in(tmp_path, workplace)


def run(config, path, out=None):
    train(config, open_data(config), path, out or Console(quiet=True))


def newest(path):
    return Checkpoints(path / "checkpoints", read_only=True).newest()


def bits(path):
    """The arrays of a run's newest checkpoint."""
    folders = (path / "checkpoints" / "steps").iterdir()
    last = max((folder for folder in folders if folder.name.isdigit()), key=lambda f: int(f.name))
    with ocp.StandardCheckpointer() as reader:
        tree = [reader.restore(last / item) for item in ("variables", "optimizer")]
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def whole(workplace, small, tmp_path_factory):
    """What an uninterrupted run measures, and where it ends."""
    folder = tmp_path_factory.mktemp("whole")
    run(config_in(folder, workplace), folder / "run")
    return measurements(folder / "run"), bits(folder / "run")


@contextlib.contextmanager
def ruined(file, other=None):
    """Overwrites an image with zeros, as a bad sector reads, or with another image; afterwards it
    is as it was."""
    content, times = file.read_bytes(), file.stat()
    file.write_bytes(other.read_bytes() if other else bytes(len(content)))
    yield
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("swapped", [False, True])
def test_an_image_that_rots_or_becomes_another_ends_an_epoch_and_keeps_its_steps(
    config, whole, tmp_path, swapped
):
    path, data = tmp_path / "run", open_data(config)
    first, *_, last = np.random.RandomState([config.seed, 0]).permutation(len(data.train))
    file, other = (Path(data.train.describe(int(index))) for index in (last, first))
    with ruined(file, other if swapped else None), pytest.raises(UserError, match=file.name):
        train(config, data, path, Console(quiet=True))
    saved = newest(path)
    assert (saved.phase, saved.epoch) == (0, 0)
    assert 0 < saved.batch == saved.step < STEPS
    run(config, path)
    assert (measurements(path), bits(path)) == whole


def test_an_image_that_cannot_be_validated_costs_no_trained_epoch(
    config, whole, tmp_path, monkeypatch
):
    """Nor on a device whose peak is known, where the continued epoch has no step to count."""
    monkeypatch.setattr(profiling, "accelerator_of", lambda kind: ACCELERATORS[0])
    path, data = tmp_path / "run", open_data(config)
    file = tmp_path / "data" / "val" / "red" / "03.png"
    with ruined(file), pytest.raises(UserError, match=r"red/03\.png"):
        train(config, data, path, Console(quiet=True))
    saved = newest(path)
    assert (saved.phase, saved.epoch, saved.batch, saved.step) == (0, 0, STEPS, STEPS)
    assert measurements(path) == []
    run(config, path)
    assert (measurements(path), bits(path)) == whole


@pytest.mark.slow
def test_a_run_directory_that_is_moved_away_is_missed_and_can_be_moved_back(
    config, whole, tmp_path, capfd
):
    path, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    out = watched("finetune 1/2", lambda: path.rename(elsewhere))
    with pytest.raises(UserError, match=r"run is gone: .* move it back"):
        run(config, path, out)
    assert not path.exists()
    assert "Traceback" not in capfd.readouterr().err
    elsewhere.rename(path)
    run(config, path)
    assert (measurements(path), bits(path)) == whole


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, left):
    """Fills a disk but for a few bytes."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - left)
    return filler


@pytest.mark.parametrize(
    "left", [0, *(pytest.param(left, marks=pytest.mark.slow) for left in (40_960, 409_600))]
)
def test_a_disk_that_fills_up_ends_a_run_in_one_line(config, whole, small_disk, capfd, left):
    path = small_disk / "run"
    out = watched("finetune 1/2", lambda: fill(small_disk, left))
    with contextlib.suppress(UserError, OSError):
        run(config, path, out)
        assert left == 409_600  # it may be enough
    assert "Traceback" not in capfd.readouterr().err
    (small_disk / "filler").unlink()
    run(config, path)
    assert (measurements(path), bits(path)) == whole


@contextlib.contextmanager
def no_more_files():
    """Yields a function that keeps this process from opening files until the block ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_a_process_that_may_open_no_file_ends_in_one_line(config, whole, tmp_path, capfd):
    path = tmp_path / "run"
    in_memory = config.data.model_copy(update={"memory_gb": 1.0})
    config = config.model_copy(update={"data": in_memory})
    with no_more_files() as limit, pytest.raises((UserError, OSError)) as caught:
        run(config, path, watched("finetune 1/2", limit))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    run(config, path)
    assert (measurements(path), bits(path)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_jumps_loses_nothing(config, whole, tmp_path, monkeypatch, days):
    path, jump, real, real_ns = tmp_path / "run", 86_400 * days, time.time, time.time_ns

    def set_clock():
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + jump * 10**9)

    config = config.model_copy(update={"checkpoint": Checkpoint(every_minutes=1e-9)})
    said = None
    try:
        run(config, path, watched("finetune 1/2", set_clock))
    except UserError as error:
        said = str(error)
        run(config, path)
    if said:  # Orbax takes a jump forward, while it writes, for a timeout
        assert days > 0
        assert re.search("checkpoint .* cannot be written: .* timed out", said)
    assert abs(time.time() - real() - jump) < 1
    assert (measurements(path), bits(path)) == whole


def command(workplace, path, prefix=()):
    """A run in a process of its own."""
    arguments = ["-m", "jaxtl.train", "--cfg", "tiny.py", "--workdir", str(path)]
    return subprocess.Popen(
        [*prefix, sys.executable, *arguments, "--cfg.checkpoint.every_minutes=1e-9"],
        cwd=workplace.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_one_line(ended, *words):
    assert ended.code == 2, ended.err
    lines = [line for line in ended.err.splitlines() if not line.startswith("weights: ")]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: ")
    assert [word for word in words if word not in lines[0]] == []


@pytest.mark.slow
def test_a_full_disk_under_a_command(workplace, small_disk):
    path = small_disk / "run"
    process = command(workplace, path)
    wait_until(lambda: len(measurements(path)) >= 2, process)
    fill(small_disk, 0)
    assert_one_line(finish(process), "cannot be written")
    (small_disk / "filler").unlink()
    ended = finish(command(workplace, path))
    assert ended.code == 0, ended.err
    assert len(measurements(path)) == 20


@pytest.mark.slow
def test_a_directory_that_becomes_read_only_under_a_command(workplace, tmp_path):
    """Root may write anywhere unless it gives that right up."""
    drop = ("setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override")
    if shutil.which("setpriv") is None or os.geteuid() != 0:
        drop = ()
    path = tmp_path / "run"
    process = command(workplace, path, drop)
    wait_until(lambda: len(measurements(path)) >= 2, process)
    places = [path, path / "checkpoints", path / "checkpoints" / "steps"]
    for place in places:
        place.chmod(0o555)
    ended = finish(process)
    for place in places:
        place.chmod(0o755)
    assert_one_line(ended, "cannot be written", "ermission denied")
    ended = finish(command(workplace, path))
    assert ended.code == 0, ended.err
    assert len(measurements(path)) == 20


@pytest.mark.slow
def test_a_cache_that_cannot_be_read_any_more_kills_a_run_which_continues(workplace, tmp_path):
    """As a page of a disk that fails, the end of a file under its map raises SIGBUS."""
    home, path = tmp_path / "home", tmp_path / "run"
    flags = ("--cfg", "tiny.py", "--cfg.views=1", "--cfg.cache.memory_gb=0", "--workdir")
    whole = workplace.run("jaxtl.train", *flags, tmp_path / "whole", home=home)
    assert whole.code == 0, whole.err
    process = workplace.start("jaxtl.train", *flags, path, home=home, saving_often=True)
    wait_until(lambda: len(measurements(path)) >= 6, process)
    for rows in (home / "jaxtl" / "activations").rglob("rows.bin"):
        os.truncate(rows, 0)
    assert finish(process).code == -signal.SIGBUS
    assert 6 <= len(measurements(path)) < 20
    ended = workplace.run("jaxtl.train", *flags, path, home=home)
    assert ended.code == 0, ended.err
    assert (measurements(path), bits(path)) == (
        measurements(tmp_path / "whole"),
        bits(tmp_path / "whole"),
    )


@pytest.mark.slow
def test_a_run_outlives_the_reader_of_its_output(workplace, tmp_path):
    process = workplace.start("jaxtl.train", "--cfg", "tiny.py", "--workdir", tmp_path / "run")
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 0
    assert err.count("nobody reads this output any more") == 1
    assert "Traceback" not in err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["result"]


@pytest.mark.slow
def test_a_second_trainer_in_the_same_directory_is_refused(workplace, tmp_path):
    path = tmp_path / "run"
    first = command(workplace, path)
    wait_until(lambda: measurements(path), first)
    second = finish(command(workplace, path))
    assert_one_line(second, "another process trains in", "--workdir")
    ended = finish(first)
    assert ended.code == 0, ended.err
    assert len(measurements(path)) == 20


LIMITED = """
import resource, sys
kind, limit = sys.argv.pop(1), int(sys.argv.pop(1))
if kind == "files":
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
else:
    import jax
    jax.devices()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, used + limit))
from jaxtl import cli, train
cli.run(train.main)
"""


def limited(workplace, path, kind, limit, *flags):
    """How a run ends that may open so many files, or take so many more bytes of memory."""
    arguments = ("--cfg", "tiny.py", "--workdir", str(path), *flags)
    process = subprocess.Popen(
        [sys.executable, "-c", LIMITED, kind, str(limit), *arguments],
        cwd=workplace.path,
        env=os.environ | {"JAXTL_LARGE_PAGES": "0", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return finish(process)


@pytest.mark.slow
def test_a_command_that_may_open_few_files(workplace, tmp_path):
    assert_one_line(limited(workplace, tmp_path / "run", "files", 20))
    ended = limited(workplace, tmp_path / "run", "files", 64)
    assert ended.code == 0, ended.err


TRAINING_ALL = (
    *("--cfg.model.image_size=96", "--cfg.phases.head.epochs=1", "--cfg.phases.finetune.epochs=1"),
    "--cfg.phases.head.train={'.*': 1.0}",
    "--cfg.phases.head.batch_norm=train",  # else the gradient is that of a few images at a time
)


@pytest.mark.slow
def test_a_batch_that_needs_too_much_memory_is_refused_with_one_that_fits(workplace, tmp_path):
    def trained(batch_size):
        flags = (*TRAINING_ALL, f"--cfg.data.batch_size={batch_size}")
        path = tmp_path / f"run-{batch_size}"
        return limited(workplace, path, "memory", 3_000_000_000, *flags)

    ended = trained(1024)
    assert_one_line(ended, "data.batch_size=1024 needs more memory", "in a new --workdir")
    fitting = int(re.search(r"--cfg\.data\.batch_size=(\d+)", ended.err)[1])
    assert f"{fitting} fits" in ended.err
    assert 1024 % fitting == 0
    assert trained(fitting).code == 0
