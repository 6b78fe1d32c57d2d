"""What holds for each network of the registry."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from parity import network_of_zeros, quick_jit, random_images
from step_setup import lively

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, build, definition, merge, split, structure

NETWORKS = [
    pytest.param(name, marks=() if name.startswith("mobilenet") else pytest.mark.slow)
    for name in REGISTRY
]


@pytest.mark.parametrize("convention", ["keras", "torch"])
@pytest.mark.parametrize("name", NETWORKS)
def test_going_from_stage_to_stage_is_the_whole(name, convention):
    of_name = REGISTRY[name]
    width = min(of_name.widths)
    graph, variables = split(build(name, num_classes=3, width=width, convention=convention))
    images = random_images(of_name.smallest)

    @quick_jit
    def both_ways(variables):
        network, maps = merge(graph, variables), images
        for start, stop in pairwise((None, *network.stage_names[1:], None)):
            maps = network(maps, start=start, stop=stop)
        return network(images), maps

    whole, in_steps = both_ways(lively(variables))
    assert whole.shape == (2, 3)
    assert whole.dtype == "float32"
    assert np.abs(in_steps - whole).max() < 0.01 * np.abs(whole[0] - whole[1]).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_array_has_one_name_in_each_library_that_has_the_network(name):
    of_name = REGISTRY[name]
    network = network_of_zeros(name, 3, width=min(of_name.widths), top=of_name.deep_top)
    owners = sorted({path.rpartition("/")[0] for path in split(network)[1]})
    of_torch = [of_name.torch_layers(network, library) for library in ("timm", "torchvision")]
    for layers in (of_name.keras_layers(network), *filter(None, of_torch)):
        assert sorted(layer.path for layer in layers) == owners
        assert len({layer.name for layer in layers}) == len(owners)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet5", "did you mean 'resnet50'\\?"), ("xyz", "there are inception_v3, .*, vgg19$")],
)
def test_an_unknown_name_is_refused_with_one_that_is_near_or_with_all(name, hint):
    with pytest.raises(UserError, match=f"no network is called '{name}'; {hint}"):
        definition(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"convention": "caffe"}, "no convention 'caffe'; take keras or torch"),
        ({"dtype": "float99"}, "'float99'; take float32 or bfloat16"),
        ({"width": 0.9}, "does not come in width 0.9"),
        ({"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_options_that_a_network_does_not_have_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        structure("mobilenet_v2", **{"num_classes": 3, **options})
