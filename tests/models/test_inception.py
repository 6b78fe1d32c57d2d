"""Inception-V3: its shape, counts and order, against both libraries' numbers, Keras and NumPy."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx
from parity import drawn
from weights.keras_models import quick_initialisers

from jaxtl.models import batch_statistics, build, merge, split
from jaxtl.models.inception import DEFINITION, average_pool, keras_layers, torch_layers
from jaxtl.models.layers import BatchNorm, Context

STEM = ("conv_1a", "conv_2a", "conv_2b", "conv_3b", "conv_4a")
MIXED = tuple(
    f"mixed_{size}{block}"
    for size, blocks in ((5, "bcd"), (6, "abcde"), (7, "abc"))
    for block in blocks
)
CONVENTIONS = ("keras", "torch")


@pytest.fixture(scope="module")
def networks():
    return {name: build("inception_v3", num_classes=1000, convention=name) for name in CONVENTIONS}


def test_has_the_published_number_of_parameters(networks):
    _, variables = split(networks["keras"])
    assert sum(v.size for v in variables.values()) == 23_851_784  # Keras Applications
    _, variables = split(networks["torch"])
    fixed = batch_statistics(networks["torch"])
    trained = {path: v.size for path, v in variables.items() if path not in fixed}
    # torchvision's 27,161,264 without the 3,326,696 of its auxiliary classifier.
    assert sum(trained.values()) == 23_834_568


def test_the_stages_are_those_of_torchvision_in_lower_case(networks):
    assert networks["keras"].stage_names == ("preprocess", *STEM, *MIXED, "pool", "head")
    features = build("inception_v3", num_classes=None)
    assert features.stage_names == ("preprocess", *STEM, *MIXED, "pool")


def test_layers_have_the_names_of_torchvision(networks):
    names = {layer.path: layer.name for layer in torch_layers(networks["torch"], "torchvision")}
    assert names["conv_1a/conv"] == "Conv2d_1a_3x3.conv"
    assert names["conv_3b/bn"] == "Conv2d_3b_1x1.bn"
    assert names["mixed_6b/branch7x7dbl_5/conv"] == "Mixed_6b.branch7x7dbl_5.conv"
    assert names["mixed_7c/branch3x3_2b/bn"] == "Mixed_7c.branch3x3_2b.bn"
    assert names["mixed_5b/branch_pool/conv"] == "Mixed_5b.branch_pool.conv"
    assert names["head"] == "fc"


def test_layers_are_in_the_order_of_keras_and_numbered_as_a_fresh_keras_does(networks):
    keras.utils.clear_session()
    with quick_initialisers():
        model = keras.applications.InceptionV3(weights=None)
    _, variables = split(networks["keras"])
    ours = keras_layers(networks["keras"])
    assert [layer.name for layer in ours] == [layer.name for layer in model.layers if layer.weights]
    for kind, theirs, weight in (
        ("conv2d", keras.layers.Conv2D, "kernel"),
        ("batch_normalization", keras.layers.BatchNormalization, "bias"),
        ("dense", keras.layers.Dense, "kernel"),
    ):
        expected = [
            (layer.name, layer.weights[0].shape)
            for layer in model.layers
            if isinstance(layer, theirs)
        ]
        got = [(o.name, variables[f"{o.path}/{weight}"].shape) for o in ours if o.kind == kind]
        assert got == expected


def test_the_smallest_images_leave_one_pixel():
    graph, variables = split(build("inception_v3", num_classes=None))

    def maps(side, stop):
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)
        run = partial(merge(graph, variables), stop=stop)
        return jax.eval_shape(run, images).shape

    assert maps(DEFINITION.smallest, "pool") == (1, 1, 1, 2048)
    assert maps(299, "pool") == (1, 8, 8, 2048)
    # The windows of the next stage are 3x3, without padding.
    assert maps(DEFINITION.smallest, "mixed_7a") == (1, 3, 3, 768)
    assert maps(DEFINITION.smallest - 1, "mixed_7a") == (1, 2, 2, 768)


@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (1, 1, 1, 2), (1, 2, 7, 1)])
@pytest.mark.parametrize("counts_padding", [False, True])
def test_average_pooling_is_the_mean_of_the_neighbourhood(shape, counts_padding):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = np.empty_like(x)
    for row in range(shape[1]):
        for column in range(shape[2]):
            window = x[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            pixels = 9 if counts_padding else window.shape[1] * window.shape[2]
            expected[:, row, column] = window.sum((1, 2)) / pixels
    got = average_pool(jnp.asarray(x), counts_padding=counts_padding)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    rounded = jnp.asarray(x, "bfloat16")
    got = average_pool(rounded, counts_padding=counts_padding)
    wide = average_pool(rounded.astype("float32"), counts_padding=counts_padding)
    np.testing.assert_array_equal(got, wide.astype("bfloat16"))


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_without_scale_is_one_with_a_scale_of_one(training):
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (8, 5, 5, 4)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)

    def gradients(scale):
        norm = drawn(BatchNorm(4, epsilon=1e-3, scale=scale))
        norm.training, norm.momentum = training, 0.9
        graph, state = nnx.split(norm)

        def loss(state, x):
            return jnp.sum(weights * nnx.merge(graph, state, copy=True)(x, Context()))

        of_state, of_x = jax.grad(loss, (0, 1))(state, x)
        return nnx.to_pure_dict(of_state), of_x

    (plain, plain_x), (scaled, scaled_x) = gradients(False), gradients(True)
    assert set(plain) == set(scaled) - {"scale"}
    np.testing.assert_array_equal(plain["bias"], scaled["bias"])
    np.testing.assert_array_equal(plain_x, scaled_x)
