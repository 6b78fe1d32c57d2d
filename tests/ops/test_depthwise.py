"""Both lowerings of the depthwise convolution, against a sum written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtl.ops import depthwise

CASES = list(itertools.product([(5, 5), (6, 9), (1, 2)], [1, 2], [3, 5]))


def brute_force(x, kernel, stride):
    """SAME padding as TensorFlow defines it, one product at a time, in float64."""
    batch, height, width, channels = x.shape
    size = kernel.shape[0]
    out_height, out_width = -(-height // stride), -(-width // stride)
    top = max((out_height - 1) * stride + size - height, 0) // 2
    left = max((out_width - 1) * stride + size - width, 0) // 2
    y = np.zeros((batch, out_height, out_width, channels))
    for i, j, a, b in itertools.product(
        range(out_height), range(out_width), range(size), range(size)
    ):
        row, column = i * stride + a - top, j * stride + b - left
        if 0 <= row < height and 0 <= column < width:
            y[:, i, j] += x[:, row, column].astype(float) * kernel[a, b, 0]
    return y


def draw(shape, stride, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, 4)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 1, 4)).astype(np.float32)
    return x, kernel, rng.normal(size=brute_force(x, kernel, stride).shape).astype(np.float32)


@pytest.mark.parametrize(("shape", "stride", "size"), CASES)
@pytest.mark.parametrize("lowering", [depthwise._shifted, depthwise._native])
def test_value_is_that_of_the_sum_written_out(lowering, shape, stride, size):
    x, kernel, _ = draw(shape, stride, size)
    expected = brute_force(x, kernel, stride)
    np.testing.assert_allclose(lowering(x, kernel, stride), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "stride", "size"), CASES)
def test_gradients_are_those_of_xla(shape, stride, size):
    x, kernel, cotangent = draw(shape, stride, size)
    _, pull_back = jax.vjp(lambda x, k: depthwise.depthwise_conv(x, k, stride), x, kernel)
    _, reference = jax.vjp(lambda x, k: depthwise._native(x, k, stride), x, kernel)
    for ours, theirs in zip(pull_back(cotangent), reference(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("lowering", ["cpu", "default"])
def test_bfloat16_maps_go_with_a_float32_kernel_whose_gradient_is_float32(lowering, stride):
    x, kernel, cotangent = draw((6, 9), stride, 3)
    x, cotangent = jnp.asarray(x, "bfloat16"), jnp.asarray(cotangent, "bfloat16")
    _, reference = jax.vjp(lambda x, k: depthwise._native(x, k, stride), np.float32(x), kernel)
    forward, pull_back = {
        "cpu": (depthwise._shifted, depthwise._shifted_pull_back),
        "default": (depthwise._native, depthwise._native_pull_back),
    }[lowering]
    y = forward(x, kernel, stride)
    assert y.dtype == "bfloat16"
    np.testing.assert_allclose(np.float32(y), brute_force(x, kernel, stride), rtol=0.03, atol=0.06)
    ours = pull_back(x, kernel, cotangent, stride)
    assert [gradient.dtype for gradient in ours] == ["bfloat16", "float32"]
    for got, want in zip(ours, reference(np.float32(cotangent)), strict=True):
        limit = 0.02 * np.abs(want).max()
        np.testing.assert_allclose(np.float32(got), want, atol=limit)


def test_on_a_cpu_no_grouped_convolution_is_compiled():
    x, kernel, _ = draw((6, 9), 1, 3)
    text = jax.jit(depthwise.depthwise_conv).lower(x, kernel).compile().as_text()
    assert "feature_group_count" not in text
