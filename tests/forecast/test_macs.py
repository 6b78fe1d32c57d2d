"""The multiply-adds of traced programs, against closed forms."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxtl.forecast.macs import count_macs
from jaxtl.ops.depthwise import depthwise_conv

IMAGE = jnp.zeros((1, 8, 8, 4))


def counted(function, *arguments):
    return count_macs(jax.make_jaxpr(function)(*arguments).jaxpr)


def conv(x, kernel, *, stride=1, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_a_convolution_costs_its_window_for_each_number_that_it_returns():
    kernel = jnp.zeros((3, 5, 4, 6))
    assert counted(lambda x: conv(x, kernel, stride=2), IMAGE) == (4 * 4 * 6) * (3 * 5 * 4)


def test_a_grouped_convolution_sees_only_the_channels_of_its_group():
    kernel = jnp.zeros((3, 3, 2, 6))
    assert counted(lambda x: conv(x, kernel, groups=2), IMAGE) == (8 * 8 * 6) * (3 * 3 * 2)


def test_a_depthwise_convolution_costs_the_same_however_the_platform_computes_it():
    kernel = jnp.zeros((3, 3, 1, 4))
    assert counted(lambda x: depthwise_conv(x, kernel, 2), IMAGE) == (4 * 4 * 4) * 9


@pytest.mark.parametrize("axes", [((2,), (0,)), ((1, 2), (1, 2))])
def test_a_product_costs_the_summed_axes_for_each_number_that_it_returns(axes):
    left, right = jnp.zeros((5, 7, 3)), jnp.zeros((3, 7, 3))
    results = jnp.tensordot(left, right, axes).size
    summed = {(2,): 3, (1, 2): 21}[axes[0]]
    assert counted(lambda a, b: jnp.tensordot(a, b, axes), left, right) == results * summed


def test_a_loop_costs_its_body_as_often_as_it_runs():
    matrix = jnp.zeros((3, 3))

    def three_times_two(x):
        def twice(y, _):
            return lax.scan(lambda z, _: (z @ matrix, None), y, length=2)

        return lax.scan(twice, x, length=3)[0]

    assert counted(jax.jit(three_times_two), jnp.zeros((5, 3))) == 6 * 5 * 3 * 3


def test_a_loop_of_unknown_length_is_not_guessed():
    matrix = jnp.zeros((3, 3))

    def until_large(x):
        return lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ matrix, x)

    with pytest.raises(ValueError, match="while loop"):
        counted(until_large, jnp.zeros((5, 3)))


@pytest.mark.parametrize("stride", [1, 2])
def test_both_gradients_of_a_convolution_cost_what_the_convolution_does(stride):
    kernel = jnp.zeros((2, 2, 4, 6))

    def both(x, kernel):
        return jax.vjp(lambda x, k: conv(x, k, stride=stride), x, kernel)[1](
            jnp.zeros((1, 8 // stride, 8 // stride, 6))
        )

    own = (8 // stride) ** 2 * 6 * (2 * 2 * 4)
    assert counted(both, IMAGE, kernel) == 3 * own
