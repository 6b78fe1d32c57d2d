"""What a network costs: multiply-adds against closed forms and published counts, and memory."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxtl.comparison import costs
from jaxtl.comparison.costs import count_macs, macs, measure, timed
from jaxtl.models import build, split
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


# In millions. MobileNet V1: its paper, table 6. All others: what torchvision's model cards say
# (`_ops` of the ImageNet weights, which counts pairs too).
PUBLISHED = {
    ("mobilenet_v1", 1.0, 224): 569,
    ("mobilenet_v1", 0.25, 224): 41,
    ("mobilenet_v2", 1.0, 224): 301,
    ("resnet50", 1.0, 224): 4089,
    ("resnet101", 1.0, 224): 7801,
    ("resnet152", 1.0, 224): 11514,
    ("vgg16", 1.0, 224): 15470,
    ("inception_v3", 1.0, 299): 5713,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width", "size"), PUBLISHED)
def test_networks_cost_what_is_published(name, width, size):
    network = build(name, num_classes=1000, width=width, top=True, convention="torch")
    published = PUBLISHED[name, width, size]
    assert macs(network, size) / 1e6 == pytest.approx(published, rel=0.003, abs=0.5)


@pytest.fixture(scope="module")
def network():
    return build("mobilenet_v2", num_classes=7, width=0.35)


@pytest.fixture(scope="module")
def cost(network):
    return measure(network, 32, 4, jax.devices()[0])


@pytest.mark.slow
def test_all_that_is_stored_counts_as_size_and_statistics_are_no_parameters(network, cost):
    trunk = 410_208  # Keras: MobileNetV2(alpha=0.35, include_top=False).count_params()
    statistics = 14_080  # and its non-trainable ones among them
    head = 1280 * 7 + 7
    assert cost.weights_mb == pytest.approx(4 * (trunk + head) / 1e6)
    assert cost.parameters == trunk - statistics + head


@pytest.mark.slow
def test_finetuning_holds_the_parameters_with_both_moments_and_activations(network, cost):
    weights = sum(value.nbytes for value in split(network)[1].values())
    assert weights < 1e6 * cost.inference_memory_mb
    more = cost.finetuning_memory_mb - cost.inference_memory_mb
    assert 1e6 * more > 2 * 4 * cost.parameters


@pytest.mark.slow
def test_all_three_programs_ran(cost):
    assert min(cost.latency_calls, cost.inference_calls, cost.finetuning_calls) >= 3
    assert min(cost.latency_ms, cost.inference_images_per_second) > 0
    assert 0 < cost.finetuning_images_per_second < cost.inference_images_per_second


def test_a_call_is_warmed_up_and_then_measured_for_long_enough(monkeypatch):
    calls = []
    for seconds, count in ((1e9, 100), (0, 3)):  # a hundred calls are enough, and three the least
        monkeypatch.setattr(costs, "_SECONDS", seconds)
        calls.clear()
        _, counted_calls = timed(lambda: calls.append(1))
        assert counted_calls == count
        assert len(calls) == count + 1
