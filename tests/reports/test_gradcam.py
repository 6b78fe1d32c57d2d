"""Grad-CAM where it has a closed form: before an average and one dense layer."""

import jax
import numpy as np
import pytest
from flax import nnx
from small_network import small_network

from jaxtl.models import Network, split, structure
from jaxtl.models.layers import Head, Preprocess
from jaxtl.reports.gradcam import grad_cam, last_maps


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mobilenet_v1", "mobilenet_v2", "vgg16", "resnet50", "inception_v3"]
)
def test_the_last_maps_are_those_before_the_average(name):
    assert last_maps(structure(name, num_classes=3), 96) == "pool"


class Means(nnx.Module):
    """The mean of each channel of an image."""

    def __call__(self, x, context):
        return x.astype("float32").mean(axis=(1, 2))


def test_of_a_network_without_feature_maps_they_are_the_images():
    spec = small_network(num_classes=4).spec
    stages = {"means": Means(), "head": Head(3, 4, dropout=0.0)}
    network = Network({"preprocess": Preprocess(spec.convention, "float32"), **stages}, spec)
    assert last_maps(network, 32) == "means"


def test_it_is_the_sum_of_the_maps_by_the_weights_of_the_class():
    """The gradient of a logit is the kernel of the head over the number of places, everywhere."""
    network = small_network(num_classes=4)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    classes = np.array([2, 0, 2])
    maps = np.asarray(jax.jit(lambda x: network(x, stop="pool"))(images), np.float64)
    kernel = np.asarray(network.head.kernel[...])[:, classes]
    raw = np.maximum(np.einsum("bhwf,fb->bhw", maps, kernel), 0)
    expected = raw / np.maximum(raw.max(axis=(1, 2), keepdims=True), 1e-12)
    found = grad_cam(network, split(network)[1], images, classes)
    assert found.shape == maps.shape[:3]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.max() == pytest.approx(1, abs=1e-6)
