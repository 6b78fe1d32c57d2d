"""The layers, against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from parity import drawn

from jaxtl.models import build, initial_variables, merge, output_spec, split, structure
from jaxtl.models.layers import (
    BatchNorm,
    Context,
    Conv,
    Convention,
    Head,
    Preprocess,
)

RNG = np.random.default_rng(0)


def trained_norm():
    norm = drawn(BatchNorm(4, epsilon=1e-3))
    norm.scale[...] = jnp.asarray(RNG.uniform(0.5, 2, 4), jnp.float32)
    norm.bias[...] = jnp.asarray(RNG.normal(size=4), jnp.float32)
    norm.mean[...] = jnp.asarray(RNG.normal(size=4), jnp.float32)
    norm.var[...] = jnp.asarray(RNG.uniform(0.5, 2, 4), jnp.float32)
    return norm


def test_batch_norm_in_inference_uses_and_keeps_its_statistics():
    norm = trained_norm()
    before = [np.asarray(v[...]) for v in (norm.mean, norm.var)]
    x = jnp.asarray(RNG.normal(size=(3, 2, 2, 4)), jnp.float32)
    expected = (x - before[0]) / np.sqrt(before[1] + 1e-3) * norm.scale[...] + norm.bias[...]
    np.testing.assert_allclose(norm(x, Context()), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(norm.mean[...], before[0])
    np.testing.assert_array_equal(norm.var[...], before[1])


@pytest.mark.parametrize("devices", [1, 8])
def test_batch_norm_in_training_counts_every_image_once_and_no_padding(devices):
    norm = trained_norm()
    norm.training, norm.momentum, norm.axis_name = True, 0.7, "data"
    old_mean, old_var = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
    x = RNG.normal(2, 3, size=(16, 2, 3, 4)).astype(np.float32)
    valid = np.arange(16) < 5  # on eight devices five of them hold padding alone
    real = x[valid].reshape(-1, 4)

    graph, state = nnx.split(norm)
    arrays = nnx.to_pure_dict(state)

    @partial(jax.pmap, axis_name="data", devices=jax.devices()[:devices], out_axes=(0, None))
    def train(x, valid):
        fresh = nnx.merge(graph, nnx.State(arrays))
        y = fresh(x, Context(None, valid))
        return y, (fresh.mean[...], fresh.var[...])

    split_up = x.reshape(devices, -1, 2, 3, 4), valid.reshape(devices, -1)
    y, (mean, var) = train(*split_up)
    normal = (x - real.mean(0)) / np.sqrt(real.var(0) + 1e-3)
    expected = normal * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
    np.testing.assert_allclose(np.asarray(y).reshape(x.shape), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mean, 0.7 * old_mean + 0.3 * real.mean(0), rtol=1e-5)
    np.testing.assert_allclose(var, 0.7 * old_var + 0.3 * real.var(0), rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_of_bfloat16_maps_is_computed_in_float32(training):
    norm, wide = trained_norm(), trained_norm()
    nnx.update(wide, nnx.state(norm))
    norm.training = wide.training = training
    x = jnp.asarray(RNG.normal(2, 3, size=(8, 5, 5, 4)), "bfloat16")
    y, expected = norm(x, Context()), wide(x.astype("float32"), Context())
    assert y.dtype == "bfloat16"
    np.testing.assert_array_equal(y, expected.astype("bfloat16"))
    np.testing.assert_array_equal(norm.mean[...], wide.mean[...])
    np.testing.assert_array_equal(norm.var[...], wide.var[...])


def test_the_type_of_the_feature_maps_is_chosen_where_images_come_in():
    preprocess = Preprocess(Convention("keras", (127.5,) * 3, (127.5,) * 3, 1e-3), "float32")
    images = RNG.integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert preprocess(images, Context()).dtype == "float32"
    network = build("mobilenet_v2", num_classes=3, width=0.35, dtype="bfloat16")
    graph, variables = split(network)
    assert output_spec(network, 32, "top").dtype == "bfloat16"

    def loss(variables):
        logits = merge(graph, variables)(images)
        assert logits.dtype == "float32"
        return jnp.sum(logits)

    gradients = jax.eval_shape(jax.grad(loss), variables)
    assert {gradient.dtype for gradient in gradients.values()} == {jnp.dtype("float32")}


def test_dropout_drops_its_share_and_keeps_the_mean():
    head = drawn(Head(400, 2, dropout=0.25))
    head.kernel[...] = jnp.concatenate([jnp.eye(400, 1), jnp.ones((400, 1))], axis=1)
    keys = jax.random.split(jax.random.key(0), 500)
    y = head(jnp.ones((500, 400)), Context(keys))
    np.testing.assert_allclose(np.unique(y[:, 0]), [0, 1 / 0.75])
    np.testing.assert_allclose(np.mean(y[:, 1]), 400, rtol=0.01)
    assert np.std(np.asarray(y[:, 1])) > 1  # every image drops its own features


def test_dropout_is_off_without_keys():
    head = drawn(Head(8, 2, dropout=0.9))
    x = RNG.normal(size=(3, 8)).astype(np.float32)
    expected = x @ np.asarray(head.kernel[...]) + np.asarray(head.bias[...])
    np.testing.assert_allclose(head(jnp.asarray(x), Context()), expected, rtol=1e-5, atol=1e-6)


def test_kernels_have_the_limits_and_variance_of_glorot_uniform():
    kernel = np.asarray(drawn(Conv(64, 128, size=3)).kernel[...])
    limit = np.sqrt(6 / (9 * (64 + 128)))
    assert np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.var(), limit**2 / 3, rtol=0.02)


def test_a_variable_is_drawn_from_the_seed_and_its_own_path_alone():
    network = structure("mobilenet_v2", num_classes=3, width=0.35)
    all_of_them = initial_variables(network, 1)
    alone = initial_variables(network, 1, ["head/kernel"])
    np.testing.assert_array_equal(alone["head/kernel"], all_of_them["head/kernel"])
    other_seed = initial_variables(network, 2, ["head/kernel"])
    assert np.abs(other_seed["head/kernel"] - alone["head/kernel"]).max() > 0.01
    twins = [all_of_them[f"block_{n}/expand/kernel"] for n in (4, 5)]
    assert twins[0].shape == twins[1].shape
    assert np.abs(twins[0] - twins[1]).max() > 0.01
