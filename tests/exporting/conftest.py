"""A run on digits that is exported."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # lets the tests here import what lies beside them

from networks import trained
from small_network import small_network
from small_run import MODEL, run, settings

from jaxtl.weights.write import write_weights


@pytest.fixture(scope="module")
def digits(small, tmp_path_factory):
    """The directory of a run: a head on a random trunk, right about most digits."""
    folder = tmp_path_factory.mktemp("runs")
    write_weights(trained(small_network(num_classes=None)), folder / "trunk.h5")
    config = settings(
        {"train": {"head/.*": 1.0}, "lr": 0.05, "schedule": "cosine", "epochs": 25},
        model=MODEL | {"weights": str(folder / "trunk.h5"), "dropout": 0.0},
        views=1,
    )
    run(config, folder / "digits")
    return folder / "digits"
