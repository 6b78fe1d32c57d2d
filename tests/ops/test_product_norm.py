"""A product and its BatchNorm as one operation, against autodiff of the plain formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxtl.ops.batch_norm import UNLIMITED
from jaxtl.ops.product_norm import product_norm

EPSILON = 1e-3
REAL = np.arange(16) < 11  # on eight devices, two hold padding alone
RELU6 = (0.0, 6.0)


def plain(x, kernel, scale, bias, weights, limits=UNLIMITED):
    """A product, and two passes as the paper of BatchNorm writes it, over one device."""
    z = jnp.matmul(x.astype(jnp.float32), kernel[0, 0], precision="highest")
    weights = weights[:, None, None, None]
    count = weights.sum() * x.shape[1] * x.shape[2]
    mean = jnp.sum(z * weights, (0, 1, 2)) / count
    var = jnp.sum(jnp.square(z - mean) * weights, (0, 1, 2)) / count
    y = (z - mean) * lax.rsqrt(var + EPSILON) * scale + bias
    return jnp.where(y < limits[0], limits[0], jnp.where(y > limits[1], limits[1], y)), mean, var


def draw(weights, *, mean=1.0):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(mean, 1, (16, 3, 5, 4)), rng.normal(size=(1, 1, 4, 12))
    cotangent = rng.normal(size=(16, 3, 5, 12)) * np.asarray(weights)[:, None, None, None]
    drawn = (x, kernel, *rng.normal(size=(2, 12)), cotangent)
    return tuple(jnp.asarray(array, jnp.float32) for array in drawn)


@pytest.fixture(params=["default", "tpu"])
def form(request, monkeypatch):
    """Takes the forms of a kind of accelerator, which this CPU would not choose."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *of, **forms: forms[request.param](*of))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("limits", [UNLIMITED, RELU6], ids=["unlimited", "relu6"])
@pytest.mark.parametrize("weights", [np.ones(16), REAL], ids=["full", "padded"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_those_of_the_plain_formulas(limits, weights, dtype):
    x, kernel, scale, bias, cotangent = draw(weights)
    x, weights = x.astype(dtype), jnp.asarray(weights, jnp.float32)

    def ours(x, kernel, scale, bias):
        return product_norm(x, kernel, scale, bias, weights, EPSILON, None, limits)

    (y, mean, var), pull_back = jax.vjp(ours, x, kernel, scale, bias)
    expected, reference = jax.vjp(lambda *of: plain(*of, weights, limits), x, kernel, scale, bias)
    assert (y.dtype, mean.dtype, var.dtype) == (dtype, "float32", "float32")
    rounding = 1e-4 if dtype == "float32" else 3e-2
    for got, want in zip((y, mean, var), expected, strict=True):
        np.testing.assert_allclose(np.float32(got), want, rtol=rounding, atol=rounding)

    # Where rounding decides whether a number is within the limits, gradients may differ.
    near = [np.abs(np.float32(y) - limit) < 4 * rounding for limit in limits]
    cotangent = jnp.where(np.logical_or(*near), 0, cotangent)
    gradients = pull_back((cotangent.astype(dtype), 0 * mean, 0 * var))
    for got, want in zip(gradients, reference((cotangent, 0 * mean, 0 * var)), strict=True):
        assert got.dtype == want.dtype
        limit = rounding * np.abs(np.float32(want)).max()
        np.testing.assert_allclose(np.float32(got), np.float32(want), atol=limit)


@pytest.mark.parametrize("devices", [1, 8])
def test_devices_share_their_sums_in_both_directions(devices):
    x, kernel, scale, bias, cotangent = draw(REAL)
    weights = jnp.asarray(REAL, jnp.float32)
    _, reference = jax.vjp(lambda *of: plain(*of, weights)[0], x, kernel, scale, bias)
    of_x, *of_parameters = reference(cotangent)

    @partial(jax.pmap, axis_name="data", devices=jax.devices()[:devices], out_axes=(0, None))
    def pull_back(x, weights, cotangent):
        def ours(x, kernel, scale, bias):
            given = (weights, EPSILON, "data", UNLIMITED)
            return product_norm(x, kernel, scale, bias, *given)[0]

        of_x, *own = jax.vjp(ours, x, kernel, scale, bias)[1](cotangent)
        return of_x, lax.psum(own, "data")

    parts = (array.reshape(devices, -1, *array.shape[1:]) for array in (x, weights, cotangent))
    got_x, got_parameters = pull_back(*parts)
    np.testing.assert_allclose(got_x.reshape(x.shape), of_x, rtol=1e-3, atol=1e-4)
    for got, want in zip(got_parameters, of_parameters, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_a_mean_far_from_zero_leaves_digits_of_the_variance():
    """Maps between BatchNorms have means of about their deviation; these are thirty of it."""
    x, kernel, scale, bias, _ = draw(np.ones(16), mean=30.0)
    _, _, var = product_norm(x, kernel, scale, bias, jnp.ones(16), EPSILON, None, UNLIMITED)
    z = np.asarray(x, np.float64) @ np.asarray(kernel[0, 0], np.float64)
    np.testing.assert_allclose(var, z.var((0, 1, 2)), rtol=1e-2)
