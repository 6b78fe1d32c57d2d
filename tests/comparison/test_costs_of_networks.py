"""What a network costs: multiply-adds against closed forms and published counts, and memory."""

import jax
import pytest

from jaxtl.comparison import costs
from jaxtl.comparison.costs import macs, measure, timed
from jaxtl.models import build, split

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
