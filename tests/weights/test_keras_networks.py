"""What is particular to the Keras files of each network; each form of them gives the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import keras
import keras_models
import numpy as np
import pytest
from keras_files import as_keras_1, edited, save

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, split
from jaxtl.weights import WeightsRecord, create

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

FORMS = ("model.h5", "model.weights.h5", "model.keras")

# The classifier that Keras Applications has with top: layers there and here.
CLASSIFIERS = {name: {"predictions": "head"} for name in REGISTRY} | {
    "mobilenet_v1": {"conv_preds": "head"},
    "vgg16": {"fc1": "fc1", "fc2": "fc2", "predictions": "head"},
    "vgg19": {"fc1": "fc1", "fc2": "fc2", "predictions": "head"},
}

# A kernel in the file, its path here, and its shape there.
KERNELS = {
    "inception_v3": (None, "mixed_5b/branch5x5_2/conv/kernel", (5, 5, 48, 64)),
    "mobilenet_v1": ("conv_pw_6/kernel", "block_6/pointwise/kernel", (1, 1, 64, 128)),
    "resnet50": ("conv4_block1_1_conv/kernel", "conv4_block1/reduce/kernel", (1, 1, 512, 256)),
    "vgg16": ("block3_conv1/kernel", "block3_conv1/conv/kernel", (3, 3, 128, 256)),
}

one_of_each_file = pytest.mark.parametrize("name", KERNELS, indirect=True)


def application(name: str, **options) -> keras.Model:
    """The narrowest, for the smallest images: both change no names."""
    of_name = REGISTRY[name]
    options = {"size": of_name.smallest, "width": min(of_name.widths)} | options
    return keras_models.application(name, **options)


@pytest.fixture(scope="module", params=REGISTRY)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=FORMS)
def form(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(name) -> keras.Model:
    """The network with its own classifier: of a VGG, for 1,000 classes and 224 pixels alone."""
    options = {"size": 224, "classes": 1000} if REGISTRY[name].deep_top else {}
    return application(name, top=True, **options)


@pytest.fixture(scope="module")
def whole_file(whole, form, tmp_path_factory) -> Iterator[Path]:
    path = save(whole, tmp_path_factory.mktemp("whole") / form)
    yield path
    path.unlink()  # 0.5 GB of VGG


@pytest.fixture(scope="module")
def trunk(name) -> keras.Model:
    return application(name)


@pytest.fixture(scope="module")
def trunk_arrays(name, trunk, tmp_path_factory) -> dict[str, np.ndarray]:
    """What the trunk is here; `test_keras_parity.py` says that it is right."""
    return load(name, save(trunk, tmp_path_factory.mktemp(name) / "trunk.h5"), num_classes=None)[0]


def load(name: str, path: Path, **options) -> tuple[dict[str, np.ndarray], WeightsRecord]:
    of_name = REGISTRY[name]
    options = {"num_classes": keras_models.CLASSES, "width": min(of_name.widths)} | options
    network, record = create(name, weights=str(path), image_size=of_name.smallest, **options)
    assert record is not None
    return {path: np.asarray(value) for path, value in split(network)[1].items()}, record


def assert_same_bits(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert ours.keys() == expected.keys()
    different = [path for path in expected if ours[path].tobytes() != expected[path].tobytes()]
    assert different == []


def trunk_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: value for path, value in arrays.items() if not path.startswith("head/")}


def test_every_form_of_file_gives_the_same_bits(name, trunk, trunk_arrays, form, tmp_path):
    loaded, record = load(name, save(trunk, tmp_path / form), num_classes=None)
    assert (record.head, record.left_out) == ("none", ())
    assert_same_bits(loaded, trunk_arrays)


def test_the_published_classifier_is_loaded_by_its_number_of_classes(name, whole, whole_file):
    loaded, record = load(name, whole_file, num_classes=whole.output.shape[-1])
    assert (record.head, record.left_out) == ("loaded", ())
    for theirs, ours in CLASSIFIERS[name].items():
        kernel, bias = whole.get_layer(theirs).get_weights()
        assert loaded[f"{ours}/kernel"].tobytes() == kernel.tobytes()
        assert loaded[f"{ours}/bias"].tobytes() == bias.tobytes()


def name_in_file(model: keras.Model, layer: str, form: str) -> str:
    """Its own, but for files of weights alone, which count the layers of each class."""
    if form != "model.weights.h5":
        return layer
    this = model.get_layer(layer)
    place = [other for other in model.layers if type(other) is type(this)].index(this)
    return f"layers/{type(this).__name__.lower()}" + (f"_{place}" if place else "")


@one_of_each_file
@pytest.mark.parametrize(("classes", "head"), [(None, "none"), (3, "new")])
def test_the_published_classifier_is_left_out_by_name_where_another_is_asked_for(
    name, whole, form, whole_file, classes, head
):
    loaded, record = load(name, whole_file, num_classes=classes)
    layers = [name_in_file(whole, layer, form) for layer in CLASSIFIERS[name]]
    assert record.head == head
    assert record.left_out == tuple(f"{of}/{v}" for of in layers for v in ("kernel", "bias"))
    assert {path.partition("/")[0] for path in loaded}.isdisjoint({"fc1", "fc2"})
    assert ("head/kernel" in loaded) == (head == "new")


@one_of_each_file
@pytest.mark.parametrize("model", ["flat", "nested"])
def test_a_head_that_was_put_on_the_trunk_is_loaded(
    name, trunk, trunk_arrays, model, form, tmp_path
):
    make = {
        "flat": keras_models.flat,
        "nested": lambda trunk: keras_models.nested_functional(trunk, "dense_3"),
    }[model]
    theirs = make(trunk)
    loaded, record = load(name, save(theirs, tmp_path / form))
    assert (record.head, record.left_out) == ("loaded", ())
    assert loaded["head/kernel"].tobytes() == theirs.layers[-1].get_weights()[0].tobytes()
    assert_same_bits(trunk_of(loaded), trunk_arrays)


@pytest.mark.parametrize("frozen", [0, 200, 1000])
def test_names_that_keras_made_up_are_counted_from_their_first(frozen, tmp_path):
    """A legacy file lists trained arrays before frozen ones, and no order of the layers."""
    models = [application("inception_v3") for _ in range(2)]
    names = [[layer.name for layer in model.layers if layer.weights] for model in models]
    assert set(names[0]).isdisjoint(names[1])
    expected, _ = load("inception_v3", save(models[0], tmp_path / "first.h5"), num_classes=None)
    for layer in models[1].layers[:frozen]:
        layer.trainable = False
    nested = keras_models.nested_functional(models[1], "dense")

    loaded, _ = load("inception_v3", save(nested, tmp_path / "second.h5"))

    assert_same_bits(trunk_of(loaded), expected)


def test_vgg_is_read_by_the_names_of_keras_1(tmp_path):
    model = application("vgg16")
    save(model, tmp_path / "whole.h5")
    with h5py.File(tmp_path / "whole.h5") as source, h5py.File(tmp_path / "old.h5", "w") as target:
        as_keras_1(source["model_weights"], target)

    loaded, _ = load("vgg16", tmp_path / "old.h5", num_classes=None)

    assert len(loaded) == 26
    for layer in model.layers:
        for variable, value in zip(("kernel", "bias"), layer.get_weights(), strict=False):
            # The first takes red, green, blue here.
            value = (
                value[:, :, ::-1] if f"{layer.name}{variable}" == "block1_conv1kernel" else value
            )
            assert loaded[f"{layer.name}/conv/{variable}"].tobytes() == value.tobytes()


def test_two_dense_layers_on_a_trunk_are_no_classifier(form, tmp_path):
    model = keras_models.nested_functional(application("vgg16"), "hidden", "output")
    with pytest.raises(UserError, match="2 dense layers where one classifier is expected"):
        load("vgg16", save(model, tmp_path / form))


@pytest.fixture(scope="module")
def resnet() -> keras.Model:
    return application("resnet50")


class TestABiasThatABatchNormFollows:
    def test_is_taken_from_the_mean(self, resnet, tmp_path):
        loaded, _ = load("resnet50", save(resnet, tmp_path / "model.h5"), num_classes=None)
        bias = resnet.get_layer("conv3_block2_2_conv").get_weights()[1]
        mean = resnet.get_layer("conv3_block2_2_bn").get_weights()[2]
        assert loaded["conv3_block2/filter_bn/mean"].tobytes() == (mean - bias).tobytes()
        assert "conv3_block2/filter/bias" not in loaded

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda bias: None, "conv3_block2_2_conv/bias is missing"),
            (lambda bias: bias[:-1], r"conv3_block2_2_conv/bias is \(127,\), not \(128,\)"),
            (lambda bias: bias[:1], r"conv3_block2_2_conv/bias is \(1,\), not \(128,\)"),
            (lambda bias: bias.astype(int), "conv3_block2_2_conv/bias holds int64"),
            (lambda bias: bias * np.nan, "conv3_block2/filter_bn/mean is not finite"),
        ],
    )
    def test_is_refused_by_name_when_it_is_wrong(self, resnet, change, message, tmp_path):
        def changed(name, value):
            return change(value) if name.endswith("conv3_block2_2_conv/bias") else value

        with pytest.raises(UserError, match=message):
            load("resnet50", edited(resnet, tmp_path, changed))


@one_of_each_file
class TestAFileThatDoesNotFit:
    def path(self, name, trunk, folder, change, **options) -> Path:
        kernel, _, shape = KERNELS[name]

        def changed(of, value):
            # Inception's layers have names that depend on what was made before; this has a shape.
            hit = of.endswith(kernel) if kernel else value.shape == shape and not seen
            if not hit:
                return value
            seen.append(of)
            assert value.shape == shape
            return change(value)

        seen: list[str] = []
        path = edited(trunk, folder, changed, **options)
        assert seen
        return path

    def test_has_an_array_of_another_shape(self, name, trunk, tmp_path):
        path = self.path(name, trunk, tmp_path, lambda value: value.swapaxes(2, 3))
        _, ours, (height, width, channels, out) = KERNELS[name]
        with pytest.raises(UserError, match=f"of another shape: {ours} is") as error:
            load(name, path)
        shapes = ((height, width, out, channels), (height, width, channels, out))
        assert f"{ours} is {shapes[0]}, not {shapes[1]}" in str(error.value)

    def test_lacks_an_array(self, name, trunk, tmp_path):
        if name == "inception_v3":  # its layers have no names: those after take its place
            with pytest.raises(UserError, match=r"missing: mixed_7c/.*of another shape: mixed_5b/"):
                load(name, self.path(name, trunk, tmp_path, lambda value: None))
            return
        path = self.path(name, trunk, tmp_path, lambda value: None)
        with pytest.raises(UserError, match=f"missing: {KERNELS[name][1]}") as error:
            load(name, path)
        assert "another shape" not in str(error.value)

    def test_has_one_layer_too_many(self, name, trunk, tmp_path):
        path = self.path(name, trunk, tmp_path, lambda value: value, extra="adapter")
        with pytest.raises(UserError, match=r"unexpected: adapter/kernel$"):
            load(name, path)


@pytest.mark.parametrize(
    ("wanted", "given"),
    [("resnet101", "resnet50"), ("vgg19", "vgg16"), ("inception_v3", "mobilenet_v1")],
)
def test_another_network_is_refused(wanted, given, form, tmp_path):
    path = save(application(given), tmp_path / form)
    with pytest.raises(UserError, match=f"(does not hold|holds {given}, and not) {wanted}"):
        create(wanted, num_classes=None, weights=str(path))
