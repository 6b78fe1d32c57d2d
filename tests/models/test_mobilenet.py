"""MobileNetV2: its counts and paths, and the images that it takes; what the registry refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtl.errors import UserError
from jaxtl.models import InvertedResidual, batch_statistics, build, merge, split


def images(count, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def test_has_the_published_number_of_parameters():
    _, variables = split(build("mobilenet_v2", num_classes=1000))
    assert sum(v.size for v in variables.values()) == 3_538_984


def test_trunk_has_260_arrays_with_readable_paths():
    network = build("mobilenet_v2", num_classes=None)
    _, variables = split(network)
    assert len(variables) == 260
    assert variables["block_14/expand/kernel"].shape == (1, 1, 160, 960)
    assert network.stage_names == (
        "preprocess",
        "stem",
        *(f"block_{i}" for i in range(17)),
        "top",
        "pool",
    )
    assert len(batch_statistics(network)) == 2 * 52


@pytest.mark.parametrize("side", [32, 33, 47])
def test_takes_any_size_from_32_pixels(side):
    graph, variables = split(build("mobilenet_v2", num_classes=None, width=0.35))
    features = jax.jit(lambda v, x: merge(graph, v)(x))(variables, images(1, side))
    assert features.shape == (1, 1280)
    assert features.dtype == jnp.float32


def test_takes_whole_numbers_and_floats_alike():
    graph, variables = split(build("mobilenet_v2", num_classes=None, width=0.35))
    x = images(1, 32)
    run = jax.jit(lambda v, x: merge(graph, v)(x))
    np.testing.assert_array_equal(run(variables, x), run(variables, x.astype(np.float32)))


def test_normalises_to_minus_one_to_one():
    network = build("mobilenet_v2", num_classes=None, width=0.35)
    x = np.array([0, 127.5, 255, 51], np.float32)[:, None, None, None] * np.ones((1, 1, 3))
    np.testing.assert_allclose(network(x, stop="stem")[:, 0, 0, 0], [-1, 0, 1, -0.6], atol=1e-6)


def test_an_unknown_name_or_width_is_refused_with_a_hint():
    with pytest.raises(UserError, match="did you mean 'mobilenet_v2'"):
        build("mobilenetv2", num_classes=None)
    with pytest.raises(UserError, match="does not come in width"):
        build("mobilenet_v2", num_classes=None, width=0.6)


def test_the_seed_decides_the_parameters():
    def head(seed):
        return split(build("mobilenet_v2", num_classes=3, seed=seed))[1]["head/kernel"]

    np.testing.assert_array_equal(head(1), head(1))
    assert not np.array_equal(head(1), head(2))


@pytest.mark.parametrize(("images", "blocks"), [(74, 15), (75, 13)])
def test_blocks_compute_maps_of_up_to_128_mib_again(images, blocks):
    """Two blocks widen 74 images to 127.5 MiB, 56 x 56 x 144 float32, and 75 to 129.2 MiB."""
    graph, variables = split(build("mobilenet_v2", num_classes=None))
    network = merge(graph, variables)
    for _, module in nnx.iter_modules(network):
        if isinstance(module, InvertedResidual):
            module.recomputes = True
    recomputing = split(network)[0]
    x = jax.ShapeDtypeStruct((images, 224, 224, 3), np.uint8)
    program = jax.make_jaxpr(lambda v, x: merge(recomputing, v)(x))(variables, x)
    names = [equation.primitive.name for equation in program.eqns]
    assert sum(name in ("checkpoint", "remat", "remat2") for name in names) == blocks
