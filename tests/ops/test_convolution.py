"""Convolutions by a matrix product, against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxtl.ops.convolution import conv

ROUND = ((1, 1), (1, 1))
# Each of the ways that maps of different sizes go, by each kind of window.
CASES = [
    (shape, *window)
    for shape in [(1, 1), (3, 5), (5, 5), (9, 10)]
    for window in [
        ((1, 1), 1, "SAME"),
        ((1, 1), 2, "VALID"),
        ((3, 3), 1, ROUND),
        ((3, 3), 2, "SAME"),
        ((7, 1), 1, "SAME"),
    ]
] + [(shape, (3, 3), 2, "VALID") for shape in [(3, 5), (5, 5), (9, 10)]]


def draw(shape, size, dtype=np.float32):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *shape, 6)), rng.normal(size=(*size, 6, 4))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, np.float32)


def native(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case[0] in ((1, 1), (5, 5)) else ())
        for case in CASES
    ],
)
def test_value_and_both_gradients_are_those_of_xla(shape, size, stride, padding):
    x, kernel = draw(shape, size)
    expected, pull_back = jax.vjp(lambda x, k: native(x, k, stride, padding), x, kernel)
    got, own_pull_back = jax.vjp(lambda x, k: conv(x, k, stride, padding), x, kernel)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    gradient = jax.random.normal(jax.random.key(1), expected.shape)
    for own, theirs in zip(own_pull_back(gradient), pull_back(gradient), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (3, 3)])
@pytest.mark.parametrize("shape", [(2, 2), (5, 5), (9, 10)])
def test_half_precision_stays_half_and_the_gradient_of_the_kernel_does_not(shape, size):
    x, kernel = draw(shape, size, jnp.bfloat16)
    y, pull_back = jax.vjp(lambda x, k: conv(x, k), x, kernel)
    of_x, of_kernel = pull_back(jnp.ones_like(y))
    assert (y.dtype, of_x.dtype, of_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(
        y.astype(np.float32), native(*map(np.float32, (x, kernel)), 1, "SAME"), rtol=0.05, atol=0.2
    )


def test_the_gradient_of_the_kernel_is_summed_in_single_precision():
    x = jnp.full((64, 9, 10, 1), 1 + 2**-7, jnp.bfloat16)  # the next number after 1
    kernel = jnp.ones((3, 3, 1, 1), jnp.float32)
    of_kernel = jax.grad(lambda kernel: conv(x, kernel).astype(jnp.float32).sum())(kernel)
    assert float(of_kernel[1, 1, 0, 0]) == pytest.approx(64 * 90 * (1 + 2**-7), rel=2**-8)


@pytest.mark.parametrize(
    ("shape", "size", "platform", "convolutions"),
    [
        ((4, 4), (3, 3), "cpu", 0),
        ((4, 4), (3, 3), "cuda", 1),
        ((4, 4), (3, 3), "tpu", 1),
        ((5, 4), (3, 3), "cpu", 1),
        ((9, 9), (1, 1), "cpu", 0),
        ((9, 9), (1, 1), "tpu", 0),
    ],
)
def test_small_maps_are_a_product_on_a_cpu_alone(shape, size, platform, convolutions):
    traced = jax.jit(conv).trace(*draw(shape, size))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == convolutions
    assert program.count("stablehlo.dot_general") == 1 - convolutions


@pytest.mark.parametrize(
    ("shape", "platform", "convolutions"),
    [((9, 10), "cpu", 1), ((9, 10), "cuda", 2), ((9, 10), "tpu", 2), ((5, 5), "cpu", 2)],
)
def test_the_kernel_of_large_maps_has_its_gradient_by_products_on_a_cpu_alone(
    shape, platform, convolutions
):
    def pull_back(x, kernel):
        return jax.grad(lambda *both: conv(*both).sum(), argnums=(0, 1))(x, kernel)

    traced = jax.jit(pull_back).trace(*draw(shape, (3, 3)))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == convolutions
    assert program.count("stablehlo.dot_general") == (9 if convolutions == 1 else 0)
