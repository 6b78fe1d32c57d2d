"""A small data set with a config, and a run on it that many tests look at."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # lets the tests here import what lies beside them

from in_process import Run
from small_network import small_network
from workplace import CONFIG, Ended, Workplace, write_images, write_weights

# A shell that starts the tests in the background makes them ignore Ctrl-C, and so their children.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """The folder that all processes run in."""
    path = tmp_path_factory.mktemp("workplace")
    write_images(path / "data" / "train", each=15, seed=1)
    write_images(path / "data" / "val", each=6, seed=2)
    write_weights(path / "weights.h5")
    write_weights(path / "small.h5", network=small_network(num_classes=None))
    (path / "tiny.py").write_text(CONFIG)
    return Workplace(path)


@dataclass(frozen=True)
class Finished:
    """A finished run: its directory, and how its process ended."""

    path: Path
    ended: Ended


@pytest.fixture(scope="session")
def whole(workplace, tmp_path_factory):
    """A run that nothing interrupted, on one device, where other frameworks cannot be imported."""
    empty = tmp_path_factory.mktemp("frameworks")
    for package in ("torch", "tensorflow", "keras"):
        text = f"raise RuntimeError('{package} was imported')\n"
        (empty / f"{package}.py").write_text(text)
    ended = workplace.train("whole", path=empty)
    assert ended.code == 0, ended.err
    return Finished(workplace.path / "whole", ended)


@pytest.fixture(scope="module")
def begin(workplace, tmp_path_factory, small):
    """A function that trains in this process with flags, and returns the run."""

    def begin(flags, *, home=None, phases=2):
        folder = tmp_path_factory.mktemp("run")
        return Run(workplace, folder / "run", home or folder / "home", flags, phases)

    return begin
