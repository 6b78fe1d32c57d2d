"""A run that computes in bfloat16 is measured and used in bfloat16."""

import json

import jax
import numpy as np
import pytest
from small_network import small_network

import jaxtl
from jaxtl.config import Data
from jaxtl.data.loader import Loader
from jaxtl.data.splits import open_splits
from jaxtl.models import merge, split
from jaxtl.runs.checkpoints import Checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(begin):
    return begin({"dtype": "bfloat16", "phases.finetune.epochs": "2"})


@pytest.fixture(scope="module")
def val(workplace):
    return open_splits(Data(source=str(workplace.path / "data"))).val


@pytest.fixture(scope="module")
def images(val):
    load = Loader(
        val, image_size=32, resize="stretch", batch_size=18, seed=0, shuffle=False, memory_bytes=0
    )
    (batch,) = load.epoch(0)
    return batch.inputs


def test_the_loss_of_a_run_is_that_of_its_evaluation(run, val):
    result = json.loads((run.path / "run.json").read_text())["result"]
    sums = jaxtl.load_run(run.path).evaluate(val).sums
    assert sums.loss / 18 == pytest.approx(result["loss"], rel=1e-4)
    assert sums.top1 / 18 == result["accuracy"]


def test_images_are_classified_in_bfloat16(run, images):
    """By the network with the saved variables, which comes out otherwise in float32."""
    networks = {
        dtype: small_network(num_classes=3, dtype=dtype) for dtype in ("float32", "bfloat16")
    }
    checkpoints = Checkpoints(run.path / "checkpoints", read_only=True)
    best = checkpoints.newest().best_number
    variables = checkpoints.variables(best, split(networks["float32"])[1])
    assert {value.dtype.name for value in variables.values()} == {"float32"}
    predicted = jaxtl.load_run(run.path).predict(images)
    apart = {}
    for dtype, network in networks.items():
        graph = split(network)[0]
        apply = jax.jit(lambda v, x, graph=graph: jax.nn.softmax(merge(graph, v)(x)))
        apart[dtype] = float(np.abs(apply(variables, images) - predicted).max())
    # The run compiled its own program, which rounds some values differently on some CPUs: 0.29 of
    # the difference to float32 was seen.
    assert apart["bfloat16"] < apart["float32"] / 2
    assert apart["float32"] < 0.1
