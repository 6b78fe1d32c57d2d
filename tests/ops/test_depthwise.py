"""Both lowerings of the depthwise convolution, against a sum written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtl.ops import depthwise

BELOW = ((0, 1), (0, 1))
CASES = list(itertools.product([(5, 5), (6, 9), (1, 2)], [1, 2], [3, 5], ["SAME"]))
CASES += itertools.product([(5, 5), (6, 9), (2, 2)], [1, 2], [3], [((1, 1), (1, 1)), BELOW])


def pads_of(length, stride, size, padding, axis):
    """What goes before and after; SAME as TensorFlow defines it."""
    if padding != "SAME":
        return padding[axis]
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def brute_force(x, kernel, stride, padding="SAME"):
    """One product at a time, in float64."""
    x, kernel = np.asarray(x), np.asarray(kernel)
    batch, height, width, channels = x.shape
    size = kernel.shape[0]
    (top, bottom), (left, right) = (
        pads_of(length, stride, size, padding, axis) for axis, length in enumerate((height, width))
    )
    out_height = (height + top + bottom - size) // stride + 1
    out_width = (width + left + right - size) // stride + 1
    y = np.zeros((batch, out_height, out_width, channels))
    for i, j, a, b in itertools.product(
        range(out_height), range(out_width), range(size), range(size)
    ):
        row, column = i * stride + a - top, j * stride + b - left
        if 0 <= row < height and 0 <= column < width:
            y[:, i, j] += x[:, row, column].astype(float) * kernel[a, b, 0]
    return y


def draw(shape, stride, size, padding="SAME"):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *shape, 4)), rng.normal(size=(size, size, 1, 4))
    cotangent = rng.normal(size=brute_force(x, kernel, stride, padding).shape)
    return tuple(jnp.asarray(array, jnp.float32) for array in (x, kernel, cotangent))


def lowered(lowering, x, kernel, *rest, padding="SAME"):
    """Calls a lowering, which takes numbers for the padding and the stride before them."""
    *gradient, stride = rest
    pads = [
        pads_of(n, stride, kernel.shape[0], padding, axis) for axis, n in enumerate(x.shape[1:3])
    ]
    return lowering(x, kernel, *gradient, stride, pads)


@pytest.mark.parametrize(("shape", "stride", "size", "padding"), CASES)
@pytest.mark.parametrize("lowering", [depthwise._shifted, depthwise._native])
def test_value_is_that_of_the_sum_written_out(lowering, shape, stride, size, padding):
    x, kernel, _ = draw(shape, stride, size, padding)
    expected = brute_force(x, kernel, stride, padding)
    got = lowered(lowering, x, kernel, stride, padding=padding)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    both = depthwise.depthwise_conv(x, kernel, stride, padding)
    np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "stride", "size", "padding"), CASES)
def test_gradients_are_those_of_xla(shape, stride, size, padding):
    x, kernel, cotangent = draw(shape, stride, size, padding)
    _, pull_back = jax.vjp(lambda x, k: depthwise.depthwise_conv(x, k, stride, padding), x, kernel)
    _, reference = jax.vjp(
        lambda x, k: lowered(depthwise._native, x, k, stride, padding=padding), x, kernel
    )
    for ours, theirs in zip(pull_back(cotangent), reference(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("lowering", ["cpu", "cuda", "default"])
def test_bfloat16_maps_go_with_a_float32_kernel_whose_gradient_is_float32(lowering, stride):
    x, kernel, cotangent = draw((6, 9), stride, 3)
    x, cotangent = x.astype("bfloat16"), cotangent.astype("bfloat16")
    _, reference = jax.vjp(
        lambda x, k: lowered(depthwise._native, x, k, stride), x.astype("float32"), kernel
    )
    forward, pull_back = {
        "cpu": (depthwise._shifted, depthwise._shifted_vjp),
        "cuda": (depthwise._native, depthwise._mixed_vjp),
        "default": (depthwise._native, depthwise._native_vjp),
    }[lowering]
    y = lowered(forward, x, kernel, stride)
    assert y.dtype == "bfloat16"
    np.testing.assert_allclose(np.float32(y), brute_force(x, kernel, stride), rtol=0.03, atol=0.06)
    ours = lowered(pull_back, x, kernel, cotangent, stride)
    assert [gradient.dtype for gradient in ours] == ["bfloat16", "float32"]
    for got, want in zip(ours, reference(cotangent.astype("float32")), strict=True):
        limit = 0.02 * np.abs(want).max()
        np.testing.assert_allclose(np.float32(got), want, atol=limit)


def test_on_a_cpu_no_grouped_convolution_is_compiled():
    x, kernel, _ = draw((6, 9), 1, 3)
    text = jax.jit(depthwise.depthwise_conv).lower(x, kernel).compile().as_text()
    assert "feature_group_count" not in text
