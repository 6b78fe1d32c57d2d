"""Steps for real accelerators, by their compilers, where the extras for them are installed."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

NEEDED = {"tpu": "libtpu", "gpu": "jax_cuda13_plugin"}

PROGRAM = """
import dataclasses, json, sys
from jaxtl.forecast.target import prepare_environment
prepare_environment()
from jaxtl.config import Config, Data, Model, Phase, everything, head_only
from jaxtl.training.forecast import compile_for

name, rules, batch_norm, batch_size = sys.argv[1:5]
rules = {"everything": everything(), "head": head_only()}[rules]
phase = Phase(name="p", train=rules, epochs=2, batch_norm=batch_norm)
config = Config(
    model=Model(name="mobilenet_v1", width=0.25, image_size=32, weights=None),
    data=Data(source="digits", batch_size=int(batch_size)),
    phases=(phase,),
    views=0,
    dtype="bfloat16",
)
(phase,) = compile_for(config, name, classes=10, train_images=5000, val_images=512)
print(json.dumps([dataclasses.asdict(step) for step in phase.steps]))
"""


def compiled(name, *arguments):
    """The steps of the only phase: MobileNet V1, a quarter as wide, on images of 32 pixels."""
    if importlib.util.find_spec(NEEDED[name[:3]]) is None:
        pytest.skip(f"{NEEDED[name[:3]]} is not installed")
    command = [sys.executable, "-c", PROGRAM, name, *arguments]
    flags = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, env=flags)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def parameters(rules):
    """How many train, how many channels their BatchNorms have, and how many these are."""
    from jaxtl.models import batch_statistics, build, split

    network = build("mobilenet_v1", num_classes=10, width=0.25)
    sizes = {path: value.size for path, value in split(network)[1].items()}
    if rules == "head":
        return sum(size for path, size in sizes.items() if path.startswith("head/")), 0, 0
    statistics = batch_statistics(network)
    channels = [sizes[path] for path in statistics if path.endswith("/mean")]
    trained = sum(size for path, size in sizes.items() if path not in statistics)
    return trained, sum(channels), len(channels)


@pytest.mark.parametrize("name", ["tpu:v5e-8", "gpu:h100x8"])
def test_a_step_of_everything_compiles_and_what_it_costs_adds_up(name):
    training, validation = compiled(name, "everything", "train", "128")
    program = training["program"]
    trained, channels, norms = parameters("everything")
    # Parameters, optimizer and statistics; at least the weights are read, and kept images written.
    assert program["argument_bytes"] > 3 * 4 * trained
    assert program["moved_bytes"] > program["argument_bytes"]
    assert program["operations"] > 2 * validation["program"]["operations"]
    assert set(training["images_per_second"]) == {"memory", "arithmetic", "links"}
    assert training["largest_batch"] > 128
    # Gradients; at most two sums of each BatchNorm's channels, and a count; metrics. Narrow maps
    # have fewer sums of channels than the products whose mean they tell.
    most = trained + 2 * channels + norms + 5
    assert 4 * (trained + channels) < program["all_reduced_bytes"] <= 4 * most
    assert validation["program"]["all_reduces"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tpu:v5e-256", "gpu:h100x256"])
def test_what_is_frozen_is_not_added_up_over_256_devices(name):
    training, *_ = compiled(name, "head", "frozen", "256")
    trained, *_ = parameters("head")
    # Four metrics, and the number of valid images for the loss.
    assert training["program"]["all_reduced_bytes"] == 4 * (trained + 4 + 1)
