"""MobileNet V1: its counts, its stages, and what the two conventions pad."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import drawn

from jaxtl.models import build, definition, split
from jaxtl.models.mobilenet_v1 import SeparableBlock, keras_file, torch_layers

RNG = np.random.default_rng(0)


def images(count, side):
    return RNG.integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize(("width", "published"), [(1.0, 4_253_864), (0.25, 475_544)])
def test_has_the_published_number_of_parameters(width, published):
    _, variables = split(build("mobilenet_v1", num_classes=1000, width=width))
    assert sum(v.size for v in variables.values()) == published


def test_its_stages_are_the_rows_of_the_papers_table():
    blocks = tuple(f"block_{i}" for i in range(1, 14))
    network = build("mobilenet_v1", num_classes=3, width=0.25)
    assert network.stage_names == ("preprocess", "stem", *blocks, "pool", "head")


# A strided block leaves floor((side - 2) / 2) + 1 in Keras and ceil(side / 2) in torch.
@pytest.mark.parametrize(
    ("convention", "side", "expected"),
    [
        ("keras", 32, (16, 8, 4, 2, 1)),
        ("keras", 33, (17, 8, 4, 2, 1)),
        ("keras", 47, (24, 12, 6, 3, 1)),
        ("torch", 32, (16, 8, 4, 2, 1)),
        ("torch", 33, (17, 9, 5, 3, 2)),
        ("torch", 47, (24, 12, 6, 3, 2)),
    ],
)
def test_odd_maps_are_halved_as_the_framework_does(convention, side, expected):
    network = build("mobilenet_v1", num_classes=None, width=0.25, convention=convention)
    ends = ("block_1", "block_3", "block_5", "block_7", "pool")
    sides = [jax.eval_shape(partial(network, stop=end), images(1, side)).shape for end in ends]
    assert [shape[1:3] for shape in sides] == [(side, side) for side in expected]


@pytest.mark.parametrize(("convention", "pads"), [("keras", (0, 1)), ("torch", (1, 1))])
@pytest.mark.parametrize("side", [6, 7])
def test_a_strided_block_pads_where_the_framework_does(convention, pads, side):
    conventions = definition("mobilenet_v1").conventions
    block = drawn(SeparableBlock(4, 8, 2, conventions[convention]))
    x = RNG.normal(size=(1, side, side, 4)).astype(np.float32)
    padded, kernel = np.pad(x[0], (pads, pads, (0, 0))), np.asarray(block.depthwise.kernel[...])
    starts = range(0, len(padded) - 2, 2)
    expected = [
        [np.sum(padded[i : i + 3, j : j + 3] * kernel[:, :, 0], axis=(0, 1)) for j in starts]
        for i in starts
    ]
    np.testing.assert_allclose(block.depthwise(jnp.asarray(x))[0], expected, rtol=1e-5, atol=1e-6)


def test_torchvision_does_not_have_it():
    assert torch_layers(build("mobilenet_v1", num_classes=3, width=0.25), "torchvision") is None


def test_the_weights_file_of_the_nearest_trained_size_is_taken():
    assert keras_file("mobilenet_v1", 0.25, 96, False).path == (
        "mobilenet/mobilenet_2_5_128_tf_no_top.h5"
    )
    assert keras_file("mobilenet_v1", 1.0, 299, True).path == "mobilenet/mobilenet_1_0_224_tf.h5"
