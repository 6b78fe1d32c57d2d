"""The commands as a user runs them: real processes on a small data set and small random weights."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from PIL import Image

from jaxtl import cli
from jaxtl.models import build, split
from jaxtl.models.mobilenet import keras_layers

COLOURS = {"blue": (60, 80, 190), "green": (70, 180, 80), "red": (190, 70, 60)}
STEPS = 6  # batches of 8 in an epoch of 45 images, the last one short

CONFIG = """
from jaxtl.config import Augment, Config, Data, Model, Phase

def get_config() -> Config:
    return Config(
        model=Model(width=0.35, image_size=32, weights="weights.h5", dropout=0.2),
        data=Data(source="data", batch_size=8),
        augment=Augment(horizontal_flip=True),
        views=3,  # too many to keep for the first phase, few enough for the second
        phases=(
            Phase(name="head", train={"head/.*": 1.0}, epochs=2, lr=2e-3),
            Phase(
                name="finetune",
                train={"(head|top|block_1[5-6])/.*": 1.0},
                epochs=8,
                lr=5e-4,
                optimizer="sgd",
                batch_norm="train",
                batch_norm_momentum=0.8,
            ),
        ),
    )
"""


# `jaxtl.train` with a checkpoint after every epoch, as runs with long epochs have.
SAVING_OFTEN = """
from jaxtl import cli, train
from jaxtl.training import saving
saving._SECONDS_BETWEEN_CHECKPOINTS = 0
cli.run(train.main)
"""


class Workplace:
    """A folder with `data/`, `weights.h5` and `tiny.py`, and processes that run in it."""

    def __init__(self, path):
        self.path = path

    def start(
        self,
        module,
        *arguments,
        devices=1,
        stdout=subprocess.PIPE,
        home=None,
        path=None,
        saving_often=False,
    ):
        """Starts `python -m MODULE ARGUMENTS` on so many simulated devices.

        With `home` it has a cache directory of its own; modules in the folder `path` are found
        before all others.
        """
        variables = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        if home is not None:
            variables["XDG_CACHE_HOME"] = str(home)
        if path is not None:
            variables["PYTHONPATH"] = f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        program = ("-c", SAVING_OFTEN) if saving_often else ("-m", module)
        return subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=self.path,
            env=os.environ | variables,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, module, *arguments, **options):
        """Runs a process to its end."""
        return finish(self.start(module, *arguments, **options))

    def here(self, module, *arguments, devices=1):
        """Runs the same command to its end without a process of its own."""
        out, err = io.StringIO(), io.StringIO()
        main = importlib.import_module(module).main
        code = None
        with (
            contextlib.chdir(self.path),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
            try:
                cli.run(main, list(map(str, arguments)))
            except SystemExit as ended:
                code = ended.code
        return Ended(code, out.getvalue(), err.getvalue())

    def train(self, workdir, *arguments, **options):
        """Trains with `tiny.py`, in a run directory that is named relative to the folder."""
        given = ("--cfg", "tiny.py", "--workdir", workdir, *arguments)
        return self.run("jaxtl.train", *given, **options)


@dataclass(frozen=True)
class Ended:
    """A process that ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


def finish(process):
    """Waits for a process and returns how it ended."""
    out, err = process.communicate(timeout=600)
    return Ended(process.returncode, out, err)


def wait_until(condition, process, seconds=300):
    """Polls until a condition holds; a process that ends before is a failure."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"the process ended too early: {finish(process)}")
        assert time.monotonic() < deadline
        time.sleep(0.01)


def measurements(run):
    """The lines of a run's `metrics.jsonl`, without the speed; those so far, if it is running."""
    path = Path(run) / "metrics.jsonl"
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    lines = [json.loads(line) for line in whole]
    measured = {"images_per_second", "input_wait", "memory_gb", "mfu"}
    return [{k: v for k, v in line.items() if k not in measured} for line in lines]


def saved_steps(run):
    """The steps of the checkpoints that are complete; there may be two of one step."""
    folders = (Path(run) / "checkpoints" / "steps").glob("*")
    return sorted(int(folder.name) // 2 for folder in folders if folder.name.isdigit())


def write_images(folder, each, seed):
    """Writes a folder of noisy images for each colour, PNG and JPEG by turns, 40 x 40 pixels."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            tint = np.array(colour) + rng.normal(0, 30, 3)
            pixels = np.clip(tint + rng.normal(0, 40, (40, 40, 3)), 0, 255).astype(np.uint8)
            suffix = "png" if number % 2 else "jpg"
            Image.fromarray(pixels).save(folder / name / f"{number:02}.{suffix}")


def write_weights(path, width=0.35, network=None):
    """Writes a MobileNetV2 without its top as Keras' legacy HDF5 has it, random but well scaled.

    The initial parameters of a new network would let the signal fade on its way through a trunk
    whose BatchNorms use statistics that were never measured; He's do not (arXiv:1502.01852).
    """
    rng = np.random.default_rng(0)
    network = network or build("mobilenet_v2", num_classes=None, width=width)
    shapes = {where: value.shape for where, value in split(network)[1].items()}
    layers = keras_layers(network)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name for layer in layers]
        for layer in layers:
            kind, name, where = layer.kind, layer.name, layer.path
            if kind == "batch_normalization":
                ones, zeros = np.ones(shapes[f"{where}/scale"]), np.zeros(shapes[f"{where}/scale"])
                values = {"gamma": ones, "beta": zeros}
                values |= {"moving_mean": zeros, "moving_variance": ones}
            else:
                shape = shapes[f"{where}/kernel"]
                kernel = rng.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape)
                values = {"kernel": kernel}
                if kind == "depthwise_conv2d":
                    values = {"depthwise_kernel": kernel.transpose(0, 1, 3, 2)}
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{value}:0" for value in values]
            for value, array in values.items():
                group[f"{name}/{value}:0"] = array.astype(np.float32)
