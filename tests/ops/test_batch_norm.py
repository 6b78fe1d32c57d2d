"""The closed form of BatchNorm's gradient, against autodiff of the plain formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxtl.ops.batch_norm import batch_norm, normalise

EPSILON = 1e-3
REAL = np.arange(16) < 11  # on eight devices, two hold padding alone


def plain(x, scale, bias, weights):
    """Two passes, as the paper writes it, over one device."""
    x, weights = x.astype(jnp.float32), weights[:, None, None, None]
    count = weights.sum() * x.shape[1] * x.shape[2]
    mean = jnp.sum(x * weights, (0, 1, 2)) / count
    var = jnp.sum(jnp.square(x - mean) * weights, (0, 1, 2)) / count
    return (x - mean) * lax.rsqrt(var + EPSILON) * scale + bias, mean, var


def draw(height=3, width=5, *, mean=2.0):
    rng = np.random.default_rng(0)
    x = rng.normal(mean, 3, (16, height, width, 4))
    drawn = (x, *rng.normal(size=(3, 4)), rng.normal(size=x.shape))
    return tuple(jnp.asarray(array, jnp.float32) for array in drawn)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 8)])
@pytest.mark.parametrize("weights", [np.ones(16), REAL], ids=["full", "padded"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_plain_formula(shape, weights, dtype):
    x, scale, bias, center, cotangent = draw(*shape)
    x, weights = x.astype(dtype), jnp.asarray(weights, jnp.float32)

    def ours(x, scale, bias):
        return batch_norm(x, scale, bias, center, weights, EPSILON, None)

    (y, mean, var), pull_back = jax.vjp(ours, x, scale, bias)
    expected, reference = jax.vjp(lambda *of: plain(*of, weights), x, scale, bias)
    assert y.dtype == dtype
    assert mean.dtype == var.dtype == "float32"
    rounding = 1e-4 if dtype == "float32" else 2e-2
    for got, want in zip((y, mean, var), expected, strict=True):
        np.testing.assert_allclose(np.float32(got), want, rtol=rounding, atol=rounding)

    gradients = pull_back((cotangent.astype(dtype), 0 * mean, 0 * var))
    for got, want in zip(gradients, reference((cotangent, 0 * mean, 0 * var)), strict=True):
        assert got.dtype == want.dtype
        limit = rounding * np.abs(np.float32(want)).max()
        np.testing.assert_allclose(np.float32(got), np.float32(want), atol=limit)


def test_with_limits_it_is_the_clipped_result_and_its_gradient():
    x, scale, bias, center, cotangent = draw()
    weights = jnp.asarray(REAL, jnp.float32)

    def normalised(x, scale, bias, *limits):
        return batch_norm(x, scale, bias, center, weights, EPSILON, None, *limits)[0]

    got, pull_back = jax.vjp(lambda *of: normalised(*of, (-0.5, 1.0)), x, scale, bias)
    want, reference = jax.vjp(lambda *of: jnp.clip(normalised(*of), -0.5, 1.0), x, scale, bias)
    np.testing.assert_array_equal(got, want)
    assert 0.2 < np.mean((got > -0.5) & (got < 1.0)) < 0.8
    for ours, theirs in zip(pull_back(cotangent), reference(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_devices_share_their_sums_in_both_directions(devices):
    x, scale, bias, center, cotangent = draw()
    weights = jnp.asarray(REAL, jnp.float32)
    _, reference = jax.vjp(lambda *of: plain(*of, weights)[0], x, scale, bias)
    of_x, *of_parameters = reference(cotangent)

    @partial(jax.pmap, axis_name="data", devices=jax.devices()[:devices], out_axes=(0, None))
    def pull_back(x, weights, cotangent):
        def ours(x, scale, bias):
            return batch_norm(x, scale, bias, center, weights, EPSILON, "data")[0]

        of_x, *own = jax.vjp(ours, x, scale, bias)[1](cotangent)
        return of_x, lax.psum(own, "data")

    parts = (array.reshape(devices, -1, *array.shape[1:]) for array in (x, weights, cotangent))
    got_x, got_parameters = pull_back(*parts)
    np.testing.assert_allclose(got_x.reshape(x.shape), of_x, rtol=1e-3, atol=1e-4)
    for got, want in zip(got_parameters, of_parameters, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_a_mean_far_from_zero_costs_no_digits_of_the_variance():
    x, scale, bias, _, _ = draw(8, 8, mean=1e4)
    center = x.mean((0, 1, 2)) + 1  # a running mean that lags behind
    _, _, var = batch_norm(x, scale, bias, center, jnp.ones(16), EPSILON, None)
    np.testing.assert_allclose(var, np.asarray(x, np.float64).var((0, 1, 2)), rtol=1e-4)


def test_constant_statistics_have_the_gradient_of_an_affine_map():
    x, scale, bias, center, cotangent = draw()
    _, pull_back = jax.vjp(lambda x, f, b: normalise(x, center, f, b), x, scale, bias)
    of_x, of_scale, of_bias = pull_back(cotangent)
    np.testing.assert_allclose(of_x, cotangent * scale, rtol=1e-5)
    np.testing.assert_allclose(
        of_scale, (cotangent * (x - center)).sum((0, 1, 2)), rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(of_bias, cotangent.sum((0, 1, 2)), rtol=1e-4, atol=1e-3)
