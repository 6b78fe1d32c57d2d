"""The ResNets: their counts, their stages, and where the two conventions put the stride."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import drawn

from jaxtl.models import Context, build, definition, split
from jaxtl.models.resnet import Bottleneck, keras_layers

RNG = np.random.default_rng(0)


def images(count, side):
    return RNG.integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet50", 25_636_712), ("resnet101", 44_707_176), ("resnet152", 60_419_944)],
)
def test_has_the_published_number_of_parameters(name, published):
    network = build(name, num_classes=1000)
    _, variables = split(network)
    # Keras counts the biases of its convolutions too, which the BatchNorms take up here.
    biases = sum(
        variables[f"{layer.path}/kernel"].shape[-1]
        for layer in keras_layers(network)
        if layer.folds_into
    )
    assert sum(v.size for v in variables.values()) + biases == published


def test_its_stages_are_the_blocks_of_the_papers_table():
    network = build("resnet50", num_classes=3)
    depths = {2: 3, 3: 4, 4: 6, 5: 3}
    blocks = [f"conv{group}_block{i}" for group, n in depths.items() for i in range(1, n + 1)]
    assert network.stage_names == ("preprocess", "stem", *blocks, "pool", "head")


@pytest.mark.parametrize("convention", ["keras", "torch"])
@pytest.mark.parametrize(("side", "expected"), [(32, (8, 4, 2, 1)), (33, (9, 5, 3, 2))])
def test_every_group_halves_the_maps_and_rounds_up(convention, side, expected):
    network = build("resnet50", num_classes=None, convention=convention)
    ends = ("conv3_block1", "conv4_block1", "conv5_block1", "pool")
    shapes = [jax.eval_shape(partial(network, stop=end), images(1, side)).shape for end in ends]
    assert [shape[1:3] for shape in shapes] == [(side, side) for side in expected]
    assert [shape[3] for shape in shapes] == [256, 512, 1024, 2048]


@pytest.mark.parametrize(("convention", "sees_all"), [("keras", False), ("torch", True)])
def test_a_block_that_halves_the_maps_sees_all_pixels_in_torch_and_a_quarter_in_keras(
    convention, sees_all
):
    block = drawn(Bottleneck(6, 2, 2, definition("resnet50").conventions[convention]))
    x = RNG.normal(size=(1, 7, 7, 6)).astype(np.float32)
    other = RNG.normal(size=x.shape).astype(np.float32)
    other[:, ::2, ::2] = x[:, ::2, ::2]
    y, changed = (np.asarray(block(jnp.asarray(maps), Context())) for maps in (x, other))
    assert y.shape == (1, 4, 4, 8)
    assert np.array_equal(y, changed) is not sees_all


def test_every_bias_of_keras_folds_into_the_batch_norm_that_follows_it():
    layers = keras_layers(build("resnet50", num_classes=None))
    places = {layer.path: place for place, layer in enumerate(layers)}
    convolutions = [layer for layer in layers if layer.kind == "conv2d"]
    assert len(convolutions) == 53  # one in the stem, three in each of 16 blocks, 4 shortcuts
    for layer in convolutions:
        assert layers[places[layer.folds_into]].name == layer.name.removesuffix("conv") + "bn"
