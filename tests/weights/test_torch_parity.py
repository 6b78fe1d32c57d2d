"""Networks with torch's weights return what timm and torchvision return, to 1e-4."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parity import assert_all_same, assert_same, our_outputs, random_images

from jaxtl.models import REGISTRY, split
from jaxtl.weights import create

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

pytestmark = [pytest.mark.slow, pytest.mark.peers]

CLASSES = 7

# For a network here: the library and its name there, and pixels a side. The first size is that of
# the published weights; odd maps are where paddings differ. timm slides VGG's classifier over maps
# that are larger than published.
CASES = [
    ("mobilenet_v1", "timm", "mobilenetv1_100", (224, 97, 64)),
    ("mobilenet_v2", "timm", "mobilenetv2_100", (224, 97, 64)),
    ("mobilenet_v2", "torchvision", "mobilenet_v2", (224, 97, 64)),
    ("resnet50", "timm", "resnet50", (224, 97, 64)),
    ("resnet50", "torchvision", "resnet50", (224, 97, 64)),
    ("resnet101", "timm", "resnet101", (224, 97, 64)),
    ("resnet152", "timm", "resnet152", (224, 97, 64)),
    ("resnet152", "torchvision", "resnet152", (224, 97, 64)),
    ("inception_v3", "timm", "inception_v3", (299, 75, 130)),
    ("inception_v3", "torchvision", "inception_v3", (299, 75, 130)),
    ("vgg16", "timm", "vgg16", (224, 97, 64)),
    ("vgg16", "torchvision", "vgg16", (224, 300, 64)),
    ("vgg19", "timm", "vgg19", (224, 97, 64)),
]
# Widths of MobileNetV2 in timm, by the networks that have them.
WIDTHS = {
    "mobilenetv2_035": 0.35,
    "mobilenetv2_050": 0.5,
    "mobilenetv2_075": 0.75,
    "mobilenetv2_140": 1.4,
}


def test_every_network_that_timm_has_is_compared_with_it():
    compared = {name for name, library, *_ in CASES if library == "timm"}
    assert compared == {name for name, of_name in REGISTRY.items() if of_name.names[name].timm}


def their_network(library: str, name: str, classes: int) -> torch.nn.Module:
    """A network of a library with random numbers that would tell if any two were swapped."""
    if library == "timm":
        model = timm.create_model(name, pretrained=False, num_classes=classes)
    else:
        options = {"transform_input": True, "init_weights": False} if "inception" in name else {}
        model = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            last = key.rpartition(".")[2]
            if last == "running_var" or (last == "weight" and value.ndim == 1):
                value.uniform_(0.5, 1.5, generator=generator)
            elif last in ("bias", "running_mean"):
                value.normal_(0, 0.2, generator=generator)
            elif last == "weight":
                value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
    return model.eval()


def their_outputs(model: torch.nn.Module, library: str, images: np.ndarray) -> list[np.ndarray]:
    """Features and logits for RGB images 0..255, normalised as the library says."""
    if library == "timm":
        of_model = model.pretrained_cfg
        mean, std = of_model["mean"], of_model["std"]
    else:
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = (images / 255 - np.asarray(mean)) / np.asarray(std)
    found: list[torch.Tensor] = []
    *_, last = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
    hook = last.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    with torch.no_grad():
        found.append(model(torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))))
    hook.remove()
    return [y.numpy() for y in found]


def assert_same_as_there(
    name: str, path: Path, model: torch.nn.Module, library: str, size: int, **options
) -> None:
    images = random_images(size)
    network, record = create(name, weights=str(path), image_size=size, **options)
    assert record is not None
    assert (record.convention, record.head, record.left_out) == ("torch", "loaded", ())
    theirs = their_outputs(model, library, images)
    assert_all_same(our_outputs(network, images), theirs)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request, tmp_path_factory):
    """A model of a library and the two files of it."""
    from safetensors.torch import save_file

    name, library, theirs, sizes = request.param
    # VGG with its published classifier is asked for by the number of classes of that.
    classes = 1000 if name.startswith("vgg") else CLASSES
    model = their_network(library, theirs, classes)
    folder = tmp_path_factory.mktemp(f"{name}-{library}")
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save(model.state_dict(), folder / "model.pth")
    yield name, library, model, folder, sizes, classes
    for path in folder.iterdir():
        path.unlink()  # 1 GB of VGG


@pytest.mark.parametrize("place", range(3))
def test_features_and_logits_are_those_of_the_library(case, place):
    name, library, model, folder, sizes, classes = case
    path = folder / "model.safetensors"
    assert_same_as_there(name, path, model, library, sizes[place], num_classes=classes)


def test_both_kinds_of_file_give_the_same_bits(case):
    name, _, _, folder, _, classes = case
    first, second = (
        split(create(name, weights=str(folder / file), num_classes=classes)[0])[1]
        for file in ("model.safetensors", "model.pth")
    )
    assert first.keys() == second.keys()
    assert [p for p in first if first[p].tobytes() != second[p].tobytes()] == []


def test_the_pooled_features_of_vgg_are_the_mean_of_its_last_maps(tmp_path):
    model = their_network("torchvision", "vgg16", 2)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    network, record = create("vgg16", weights=str(tmp_path / "model.pth"), num_classes=None)
    (tmp_path / "model.pth").unlink()
    assert record is not None
    assert len(record.left_out) == 6
    images = random_images(97)
    x = (images / 255 - np.asarray([0.485, 0.456, 0.406])) / np.asarray([0.229, 0.224, 0.225])
    with torch.no_grad():
        maps = model.features(torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32)))
    (ours,) = our_outputs(network, images)
    assert_same(ours, maps.mean((2, 3)).numpy())


@pytest.mark.parametrize("theirs", WIDTHS)
def test_every_width_is_that_of_timm(theirs, tmp_path):
    model = their_network("timm", theirs, CLASSES)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    options = {"num_classes": CLASSES, "width": WIDTHS[theirs]}
    assert_same_as_there("mobilenet_v2", tmp_path / "model.pth", model, "timm", 97, **options)
