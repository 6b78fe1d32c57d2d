"""Runs of the small network on scikit-learn's digits, in this process."""

import io

import numpy as np
from rich.console import Console
from small_network import small_network

from jaxtl.config import Config
from jaxtl.models import split
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.metrics_log import read_metrics
from jaxtl.training.setup import open_data, train

MODEL = {"name": "small", "image_size": 32, "weights": None, "dropout": 0.2}
NETWORK = small_network(num_classes=10)
LIKE = split(NETWORK)[1]
RULES = {"head/.*": 1.0, "(top|block_(14|16))/.*": 0.5}  # block_15 is frozen between trained ones


def settings(*phases, **sections):
    return Config.model_validate(
        {
            "model": MODEL,
            "data": {"source": "digits", "batch_size": 256},
            "phases": tuple({"name": f"p{i}", "epochs": 1, **p} for i, p in enumerate(phases)),
            **sections,
        }
    )


def run(config, workdir, out=None):
    train(config, open_data(config), workdir, out or Console(quiet=True))
    return opened(workdir)


def opened(workdir):
    """A run directory and its checkpoints."""
    directory = RunDirectory(workdir)
    return directory, Checkpoints(directory.checkpoints, read_only=True)


def metrics(workdir):
    """The lines of a run's metrics, without the speed."""
    lines = read_metrics(RunDirectory(workdir).metrics)
    measured = {"images_per_second", "input_wait", "memory_gb", "mfu"}
    return [{k: v for k, v in line.items() if k not in measured} for line in lines]


def bits(workdir):
    """All variables at the newest checkpoint of a run."""
    checkpoints = opened(workdir)[1]
    variables = checkpoints.variables(checkpoints.newest().number, LIKE)
    return {path: np.asarray(value).tobytes() for path, value in variables.items()}


class Watching(io.StringIO):
    """A terminal on which something is done as soon as it shows a text."""

    def __init__(self, text, action):
        super().__init__()
        self._text, self._action = text, action

    def write(self, text):
        written = super().write(text)
        if self._action is not None and self._text in text:
            action, self._action = self._action, None
            action()
        return written


def watched(text, action):
    """A console with such a terminal."""
    return Console(file=Watching(text, action), width=300)
