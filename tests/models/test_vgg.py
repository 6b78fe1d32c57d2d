"""VGG: its counts, its stages with and without the published classifier, and its pooling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import drawn, network_of_zeros

from jaxtl.models import Context, build, output_spec, split, structure
from jaxtl.models.vgg import FlatDenseRelu, adaptive_average_pool, keras_layers, torch_layers

RNG = np.random.default_rng(0)
VGG16 = [
    f"block{block}_conv{i}"
    for block, depth in enumerate((2, 2, 3, 3, 3), 1)
    for i in range(1, depth + 1)
]


@pytest.fixture(scope="module")
def with_top():
    """VGG-16 with its classifier, of zeros."""
    return network_of_zeros("vgg16", 1000, top=True)


def images(count, side):
    return RNG.integers(0, 256, (count, side, side, 3), np.uint8)


def parameters(network):
    return sum(v.size for v in split(network)[1].values())


def test_has_the_published_number_of_parameters(with_top):
    assert parameters(with_top) == 138_357_544


@pytest.mark.parametrize(("name", "published"), [("vgg16", 14_714_688), ("vgg19", 20_024_384)])
def test_has_the_published_number_of_parameters_without_its_classifier(name, published):
    assert parameters(build(name, num_classes=None)) == published


def test_its_stages_are_its_convolutions_and_the_classifier_that_is_asked_for(with_top):
    assert with_top.stage_names == ("preprocess", *VGG16, "fc1", "fc2", "head")
    network = build("vgg16", num_classes=3)
    assert network.stage_names == ("preprocess", *VGG16, "pool", "head")


@pytest.mark.parametrize(("side", "expected"), [(32, (16, 8, 4, 2, 1)), (95, (47, 23, 11, 5, 2))])
def test_every_block_halves_the_maps_and_rounds_down(side, expected):
    network = build("vgg16", num_classes=None)
    ends = ("block2_conv1", "block3_conv1", "block4_conv1", "block5_conv1", "pool")
    shapes = [jax.eval_shape(partial(network, stop=end), images(1, side)).shape for end in ends]
    assert [shape[1:3] for shape in shapes] == [(side, side) for side in expected]
    assert [shape[3] for shape in shapes] == [64, 128, 256, 512, 512]


@pytest.mark.parametrize("side", [32, 95, 224, 256])
def test_the_classifier_takes_any_size_and_is_float32_on_bfloat16_maps(side):
    network = structure("vgg16", num_classes=1000, top=True, dtype="bfloat16")
    shapes = [output_spec(network, side, end) for end in ("fc1", "fc2", "head", None)]
    assert [shape.dtype for shape in shapes] == ["bfloat16", "float32", "float32", "float32"]
    assert [shape.shape[1:] for shape in shapes[1:]] == [(4096,), (4096,), (1000,)]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 7), (8, 7), (14, 15)])
def test_adaptive_pooling_averages_the_cells_of_its_definition(shape):
    height, width = shape
    x = RNG.normal(size=(2, height, width, 3)).astype(np.float32)
    expected = np.zeros((2, 7, 7, 3))
    for i in range(7):
        for j in range(7):
            top, bottom = int(np.floor(i * height / 7)), int(np.ceil((i + 1) * height / 7))
            left, right = int(np.floor(j * width / 7)), int(np.ceil((j + 1) * width / 7))
            expected[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
    np.testing.assert_allclose(
        adaptive_average_pool(jnp.asarray(x), 7), expected, rtol=1e-5, atol=1e-6
    )


def test_the_first_dense_layer_is_the_7x7_convolution_that_timm_has_there():
    layer = drawn(FlatDenseRelu(7 * 7 * 2, 3, dropout=0.0))
    x = RNG.normal(size=(2, 7, 7, 2)).astype(np.float32)
    kernel = np.asarray(layer.kernel[...]).reshape(7, 7, 2, 3)
    expected = np.maximum(np.einsum("bhwc,hwco->bo", x, kernel), 0)
    np.testing.assert_allclose(layer(jnp.asarray(x), Context()), expected, rtol=1e-4, atol=1e-5)


def test_only_the_first_dense_layer_takes_feature_maps(with_top):
    for layers in (
        keras_layers(with_top),
        torch_layers(with_top, "timm"),
        torch_layers(with_top, "torchvision"),
    ):
        assert [layer.path for layer in layers if layer.flattened] == ["fc1"]
