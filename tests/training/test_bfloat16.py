"""Computing in bfloat16: feature maps are, what is kept and what is measured stays float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_setup import (
    BATCH,
    CLASSES,
    HEAD_ONLY,
    MIDDLE,
    lively,
    make_batch,
)
from step_setup import SmallSetup as Setup

from jaxtl.models import build, merge, split
from jaxtl.training.inference import make_predict_step
from jaxtl.training.parallel import shard

HALF = jnp.bfloat16


def networks(num_classes=None):
    return [
        build("mobilenet_v2", num_classes=num_classes, width=0.35, dtype=dtype)
        for dtype in ("float32", "bfloat16")
    ]


def test_the_maps_between_stages_are_bfloat16_and_features_and_logits_are_not():
    network = networks(CLASSES)[1]
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), np.uint8)
    for before, after in zip(network.stage_names, (*network.stage_names[1:], None), strict=True):
        x = jax.eval_shape(lambda x, a=before, b=after: network(x, start=a, stop=b), x)
        assert x.dtype == (np.float32 if before in ("pool", "head") else HALF), before


def test_every_convolution_is_one_of_bfloat16():
    program = str(jax.make_jaxpr(networks()[1])(np.zeros((2, 32, 32, 3), np.uint8)))
    types = re.findall(r":(\w+)\[[^\]]*\] = (?:dot_general|conv_general_dilated)\[", program)
    assert len(types) > 30
    assert set(types) == {"bf16"}


def test_features_are_close_to_those_of_float32():
    exact, half = networks()
    variables = lively(split(exact)[1])
    images = make_batch().inputs
    expected, found = (
        np.asarray(jax.jit(lambda x, n=network: merge(split(n)[0], variables)(x))(images))
        for network in (exact, half)
    )
    apart = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-4 < apart < 0.05  # and it does compute otherwise


@pytest.mark.parametrize("rules", [HEAD_ONLY, pytest.param(MIDDLE, marks=pytest.mark.slow)])
def test_a_step_keeps_float32_and_learns_what_float32_does(rules):
    batches = [make_batch(seed) for seed in range(4)]
    options = {"lr": 1e-3, "batch_norm": "train" if rules == MIDDLE else "frozen"}
    losses = {}
    for dtype in ("float32", "bfloat16"):
        setup = Setup(rules, 2, dtype=dtype, **options)
        sums = setup.run(batches)
        losses[dtype] = [float(s.loss) / BATCH for s in sums]
        assert {s.loss.dtype for s in sums} == {np.dtype(np.float32)}
        kept = jax.tree.leaves((setup.state.variables, setup.state.optimizer))
        assert {leaf.dtype.name for leaf in kept} <= {"float32", "int32"}
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.05)
    assert losses["bfloat16"] != losses["float32"]


def test_prediction_returns_float32_from_images_and_from_cached_maps():
    setup = Setup(MIDDLE, 2, dtype="bfloat16")
    maps = setup.features(make_batch().inputs)
    assert maps.dtype == HALF
    whole = make_predict_step(setup.graph, devices=setup.devices)
    tail = make_predict_step(setup.graph, devices=setup.devices, start="block_14", cached=HALF)
    found = whole(setup.variables, None, shard(make_batch().inputs, setup.devices))
    for kept in (maps, maps.astype(np.float32)):  # whichever way the cache keeps them
        again = tail(setup.variables, None, shard(kept, setup.devices))
        assert again.dtype == found.dtype == np.float32
        np.testing.assert_allclose(again, found, rtol=1e-2, atol=1e-2)
