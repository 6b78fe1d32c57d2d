"""Weights that are written load in Keras and timm, compute the same there, and come back as is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from full_disk import files_no_longer_than
from keras_models import CLASSES, blank, outputs, preprocessed, quick_initialisers
from parity import assert_all_same, assert_same, our_outputs, random_images
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, Network, build, merge, split
from jaxtl.weights import create
from jaxtl.weights.write import Written, without_head, write_weights

NAMES = {name: of_name.names[name] for name, of_name in REGISTRY.items()}

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KERAS_FILES = ("model.h5", "model.weights.h5")
TIMM_FILE = "model.safetensors"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# Name, width, pixels a side; 33: odd maps are padded unevenly.
KERAS_CASES = (
    slow("mobilenet_v1", 0.25, 33),
    ("mobilenet_v2", 0.35, 33),
    slow("mobilenet_v2", 1.4, 32),
    slow("resnet50", 1.0, 33),
    slow("inception_v3", 1.0, 75),
)
TIMM_CASES = (
    ("mobilenet_v2", 0.35, 33),
    slow("mobilenet_v1", 1.0, 33),
    slow("mobilenet_v2", 1.4, 32),
    slow("resnet50", 1.0, 33),
    slow("inception_v3", 1.0, 75),
)


def random_network(
    name: str,
    *,
    width: float = 1.0,
    classes: int | None = CLASSES,
    top: bool = False,
    convention: str = "keras",
) -> Network:
    """A network whose every array would tell if any two were swapped; the signal does not fade."""
    rng = np.random.default_rng(0)
    graph, variables = split(
        build(name, num_classes=classes, width=width, top=top, convention=convention)
    )
    drawn = {}
    for path, value in variables.items():
        last = path.rpartition("/")[2]
        if last in ("scale", "var"):
            array = rng.uniform(0.5, 1.5, value.shape)
        elif last in ("bias", "mean"):
            array = rng.normal(0, 0.2, value.shape)
        else:
            array = rng.standard_normal(value.shape, np.float32)
            array *= np.sqrt(2 / np.prod(value.shape[:-1]))
        drawn[path] = array.astype(np.float32, copy=False)
    return merge(graph, drawn)


@pytest.fixture(scope="module")
def timm_logits() -> Callable[[str, np.ndarray], np.ndarray]:
    """What timm returns for images, after the Python that loads the file."""
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    import safetensors.torch

    def logits(load: str, images: np.ndarray) -> np.ndarray:
        names = {"torch": torch, "timm": timm, "safetensors": safetensors}
        exec(load, names)
        model = names["model"].eval()
        with torch.no_grad():
            return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()

    return logits


def as_told(told: str, images: np.ndarray) -> np.ndarray:
    """Images normalised as the words say that come with a file."""
    groups = re.fullmatch(r"RGB, 0\.\.(\d+), minus \((.+)\), divided by \(([^)]+)\).*", told)
    assert groups is not None, told
    mean, std = (np.float32(groups[i].split(", ")) for i in (2, 3))
    return (images.astype(np.float32) * (int(groups[1]) / 255) - mean) / std


@pytest.mark.parametrize(("name", "width", "size"), KERAS_CASES)
def test_keras_loads_both_kinds_of_file_and_gives_the_same_logits(name, width, size, tmp_path):
    network = random_network(name, width=width)
    ours = our_outputs(network, random_images(size))
    model = blank(name, width=width, size=size, top=True)
    for file in KERAS_FILES:
        for variable in model.weights:
            variable.assign(np.zeros(variable.shape, np.float32))

        written = write_weights(network, tmp_path / file)
        model.load_weights(tmp_path / file)

        assert_all_same(ours, outputs(model, preprocessed(name, random_images(size))))
        assert written.parameters == model.count_params()
        assert written.images.startswith(f"keras.applications.{NAMES[name].module}.")


@pytest.mark.parametrize(
    ("name", "width"), [("mobilenet_v2", 0.35), slow("vgg16", 1.0), slow("vgg19", 1.0)]
)
@pytest.mark.parametrize("file", KERAS_FILES)
def test_keras_loads_a_trunk_and_gives_the_same_features(name, width, file, tmp_path):
    network = without_head(random_network(name, width=width))
    model = blank(name, width=width, size=32)

    write_weights(network, tmp_path / file)
    model.load_weights(tmp_path / file)

    theirs = outputs(model, preprocessed(name, random_images(32)))
    assert_all_same(our_outputs(network, random_images(32)), theirs)


@pytest.mark.parametrize(("name", "width", "size"), TIMM_CASES)
@pytest.mark.peers
def test_timm_loads_strictly_and_gives_the_same_logits(name, width, size, timm_logits, tmp_path):
    network = random_network(name, width=width, convention="torch")

    written = write_weights(network, tmp_path / TIMM_FILE)

    theirs = timm_logits(written.load, as_told(written.images, random_images(size)))
    assert_same(our_outputs(network, random_images(size))[-1], theirs)


@pytest.mark.parametrize(
    ("name", "width"), [("mobilenet_v2", 0.35), slow("resnet50", 1.0), slow("vgg16", 1.0)]
)
@pytest.mark.peers
def test_timm_loads_a_trunk_and_gives_the_same_features(name, width, timm_logits, tmp_path):
    network = without_head(random_network(name, width=width, convention="torch"))

    written = write_weights(network, tmp_path / TIMM_FILE)

    theirs = timm_logits(written.load, as_told(written.images, random_images(32)))
    assert_same(our_outputs(network, random_images(32))[-1], theirs)


@pytest.mark.slow
@pytest.mark.parametrize("file", KERAS_FILES)
def test_vgg_with_its_published_classifier_is_the_same_in_keras_and_comes_back(file, tmp_path):
    network = random_network("vgg16", classes=1000, top=True)
    model = blank("vgg16", size=224, top=True, classes=1000)

    assert_comes_back(network, tmp_path / file)
    model.load_weights(tmp_path / file)

    theirs = outputs(model, preprocessed("vgg16", random_images(224)))
    assert_all_same(our_outputs(network, random_images(224)), theirs)


@pytest.mark.slow
@pytest.mark.peers
def test_vgg_with_its_published_classifier_is_the_same_in_timm_and_comes_back(
    timm_logits, tmp_path
):
    network = random_network("vgg16", classes=1000, top=True, convention="torch")

    written = assert_comes_back(network, tmp_path / TIMM_FILE)

    theirs = timm_logits(written.load, as_told(written.images, random_images(224)))
    assert_same(our_outputs(network, random_images(224))[-1], theirs)


@pytest.mark.slow
def test_vgg_trained_in_torch_computes_the_same_in_keras_with_the_images_that_it_says(tmp_path):
    network = random_network("vgg16", classes=None, convention="torch")
    model = blank("vgg16", size=32)

    for file in KERAS_FILES:
        written = assert_comes_back(network, tmp_path / file)
        model.load_weights(tmp_path / file)

        theirs = outputs(model, as_told(written.images, random_images(32)))
        assert_all_same(our_outputs(network, random_images(32)), theirs)
        assert written.images.endswith("not preprocess_input")


@pytest.mark.slow
@pytest.mark.peers
def test_vgg_trained_in_keras_computes_the_same_in_timm_with_the_images_that_it_says(
    timm_logits, tmp_path
):
    network = random_network("vgg16", classes=None, convention="keras")

    written = write_weights(network, tmp_path / TIMM_FILE)

    theirs = timm_logits(written.load, as_told(written.images, random_images(32)))
    assert_same(our_outputs(network, random_images(32))[-1], theirs)


ROUND_TRIPS = [
    pytest.param(
        name, min(of_name.widths), marks=() if name.startswith("mobilenet") else pytest.mark.slow
    )
    for name, of_name in REGISTRY.items()
]


@pytest.mark.parametrize("file", [*KERAS_FILES, TIMM_FILE])
@pytest.mark.parametrize(("name", "width"), ROUND_TRIPS)
def test_what_was_written_comes_back_bit_for_bit(name, width, file, tmp_path):
    if file == TIMM_FILE and name == "mobilenet_v1":
        width = 1.0  # timm has no other
    convention = "torch" if file == TIMM_FILE else "keras"
    network = random_network(name, width=width, convention=convention)
    if name.startswith("vgg"):
        network = without_head(network)
    assert_comes_back(network, tmp_path / file)


@pytest.mark.slow
def test_vgg_trained_in_keras_comes_back_from_a_file_for_timm_with_its_own_images(tmp_path):
    network = random_network("vgg16", classes=None, convention="keras")
    assert_comes_back(network, tmp_path / TIMM_FILE)


@pytest.mark.parametrize("file", [*KERAS_FILES, TIMM_FILE])
def test_a_file_marked_with_a_convention_that_is_none_is_refused(file, tmp_path):
    path = tmp_path / file
    if file == TIMM_FILE:
        save_file({"a": np.zeros(1)}, path, {"jaxtl_convention": "caffe"})
    else:
        with h5py.File(path, "w") as written:
            written.attrs["jaxtl_convention"] = "caffe"
    with pytest.raises(UserError, match="'caffe', which is unknown here"):
        create("vgg16", num_classes=None, weights=str(path))


@pytest.mark.slow
def test_a_file_with_a_byte_that_is_wrong_is_refused_in_words_or_read(tmp_path):
    network = random_network("mobilenet_v2", width=0.35, convention="keras")
    write_weights(network, tmp_path / "whole.h5")
    whole, path = (tmp_path / "whole.h5").read_bytes(), tmp_path / "wrong.h5"
    refused = 0
    for place in range(0, 4000, 100):
        wrong = bytearray(whole)
        wrong[place] ^= 0xFF
        path.write_bytes(wrong)
        try:
            create("mobilenet_v2", num_classes=None, weights=str(path), width=0.35)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert refused > 5


def assert_comes_back(network: Network, path: Path) -> Written:
    """Writes a network and reads it again."""
    written = write_weights(network, path)

    loaded, record = create(
        network.name, num_classes=network.num_classes, weights=str(path), width=network.width
    )

    assert record is not None
    assert record.head == ("none" if network.num_classes is None else "loaded")
    assert record.left_out == ()
    assert loaded.spec.convention == network.spec.convention
    before, after = (split(of)[1] for of in (network, loaded))
    assert before.keys() == after.keys()
    assert [p for p in before if before[p].tobytes() != after[p].tobytes()] == []
    return written


every_width = pytest.mark.parametrize(
    ("name", "width"),
    [(name, width) for name, of_name in REGISTRY.items() for width in of_name.widths],
)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_network_has_its_names_of_keras(name):
    assert callable(getattr(keras.applications, NAMES[name].keras))
    assert callable(getattr(keras.applications, NAMES[name].module).preprocess_input)


@pytest.mark.peers
@every_width
def test_every_network_has_its_name_of_timm_or_none_where_timm_does_not_have_it(name, width):
    timm = pytest.importorskip("timm")
    numbered = name.replace("mobilenet_", "mobilenet") + f"_{100 * width:03.0f}"
    known = [model for model in (name, numbered) if timm.is_model(model)]
    assert known == ([NAMES[name].timm[width]] if width in NAMES[name].timm else [])


def test_the_line_that_loads_a_file_makes_the_network_of_keras_with_its_weights(tmp_path):
    network = random_network("mobilenet_v2", width=0.35)
    written = write_weights(network, tmp_path / "a.h5")

    names = {"keras": keras}
    with quick_initialisers():
        exec(written.load, names)

    model = names["model"]
    assert model.count_params() == written.parameters
    assert model.output_shape == (None, CLASSES)
    np.testing.assert_array_equal(model.layers[-1].kernel, split(network)[1]["head/kernel"])


# Sizes at which maps become odd on the way, and a network whose padding asks for the size.
@pytest.mark.parametrize(
    ("name", "width", "size", "classes"),
    [
        slow("mobilenet_v2", 0.35, 100, None),
        slow("mobilenet_v2", 0.35, 100, CLASSES),
        slow("mobilenet_v2", 0.35, 32, None),
        slow("mobilenet_v1", 0.25, 100, CLASSES),
        slow("resnet50", 1.0, 100, None),
        slow("inception_v3", 1.0, 101, None),
        slow("vgg16", 1.0, 100, None),
    ],
)
def test_the_line_makes_a_network_of_keras_that_computes_the_same(
    name, width, size, classes, tmp_path
):
    network = random_network(name, width=width, classes=classes)
    written = write_weights(network, tmp_path / "a.h5", image_size=size)

    names = {"keras": keras}
    with quick_initialisers():
        exec(written.load, names)

    model = names["model"]
    images = random_images(size)
    theirs = np.asarray(model(preprocessed(name, images), training=False))
    ours = our_outputs(network, images)[-1]
    if classes is not None:  # Keras puts a softmax after the logits
        ours = np.exp(ours - ours.max(-1, keepdims=True))
        ours /= ours.sum(-1, keepdims=True)
    assert_same(ours, theirs)


@pytest.mark.slow
def test_the_line_for_the_published_classifier_of_vgg_makes_the_one_size_that_it_takes(tmp_path):
    network = random_network("vgg16", classes=1000, top=True)
    written = write_weights(network, tmp_path / "a.h5", image_size=100)
    assert "input_shape=(224, 224, 3)" in written.load
    names = {"keras": keras}
    with quick_initialisers():
        exec(written.load, names)
    assert names["model"].count_params() == written.parameters


class TestWithoutHead:
    def test_every_variable_of_the_trunk_is_kept(self):
        network = random_network("mobilenet_v2", width=0.35)
        before, after = split(network)[1], split(without_head(network))[1]
        assert sorted(before.keys() - after.keys()) == ["head/bias", "head/kernel"]
        assert [p for p in after if before[p].tobytes() != after[p].tobytes()] == []

    def test_the_convention_and_the_width_are_kept(self):
        network = random_network("mobilenet_v2", width=0.5, convention="torch")
        trunk = without_head(network)
        assert trunk.spec.convention == network.spec.convention
        assert (trunk.width, trunk.num_classes) == (0.5, None)

    @pytest.mark.slow
    def test_a_vgg_loses_all_of_its_classifier(self):
        network = build("vgg16", num_classes=2, top=True)
        gone = split(network)[1].keys() - split(without_head(network))[1].keys()
        assert {path.partition("/")[0] for path in gone} == {"fc1", "fc2", "head"}


@pytest.fixture(scope="module")
def small() -> dict[str, Network]:
    """A small network of each convention."""
    return {
        convention: build("mobilenet_v2", num_classes=2, width=0.35, convention=convention)
        for convention in ("keras", "torch")
    }


class TestIsRefused:
    @pytest.fixture
    def refused(self, tmp_path):
        """A function that is refused to write, and returns why; it checks that nothing was."""

        def refused(network: Network, file: str) -> str:
            before = sorted(tmp_path.iterdir())
            with pytest.raises(UserError) as error:
                write_weights(network, tmp_path / file)
            assert sorted(tmp_path.iterdir()) == before
            return str(error.value)

        return refused

    def test_a_model_file_and_what_to_write_instead_is_said(self, small, refused, tmp_path):
        assert f"write {tmp_path}/a.weights.h5" in refused(small["keras"], "a.keras")

    @pytest.mark.parametrize("file", ["a.pth", "a", ".h5", "weights"])
    def test_another_suffix(self, small, refused, file):
        reason = refused(small["keras"], file)
        assert "does not end in one of .weights.h5, .h5, .safetensors" in reason

    @pytest.mark.parametrize("file", ["a.h5", "a.weights.h5"])
    def test_weights_of_torch_in_a_file_for_keras(self, small, refused, file, tmp_path):
        reason = refused(small["torch"], file)
        assert "the torch convention" in reason
        assert f"write {tmp_path}/a.safetensors for timm" in reason

    def test_weights_of_keras_in_a_file_for_timm(self, small, refused, tmp_path):
        reason = refused(small["keras"], "a.safetensors")
        assert "the keras convention" in reason
        assert f"write {tmp_path}/a.weights.h5 for Keras" in reason

    def test_a_file_that_exists(self, small, refused, tmp_path):
        (tmp_path / "a.h5").write_text("precious")
        assert f"{tmp_path}/a.h5 exists" in refused(small["keras"], "a.h5")
        assert (tmp_path / "a.h5").read_text() == "precious"

    def test_a_folder_that_does_not_exist(self, small, refused, tmp_path):
        assert f"no folder {tmp_path}/lost" in refused(small["keras"], "lost/a.h5")

    def test_a_width_that_timm_does_not_have(self, refused):
        network = build("mobilenet_v1", num_classes=2, width=0.25, convention="torch")
        assert "no mobilenet_v1 of width 0.25, only of 1" in refused(network, "a.safetensors")

    @pytest.mark.parametrize("file", ["a.h5", "a.weights.h5", "a.safetensors"])
    def test_a_head_on_the_pooled_features_of_a_vgg(self, refused, file):
        reason = refused(build("vgg16", num_classes=2), file)
        assert "with its published classifier of three dense layers or with none" in reason
        assert "--no-head" in reason

    @pytest.mark.slow
    def test_a_vgg_that_ends_before_its_logits(self, refused):
        assert "--no-head" in refused(build("vgg16", num_classes=None, top=True), "a.h5")


@pytest.mark.parametrize("file", KERAS_FILES)
def test_nothing_is_left_of_a_file_that_did_not_fit_on_the_disk(small, file, tmp_path):
    with files_no_longer_than(100_000), pytest.raises(OSError, match="too large"):
        write_weights(small["keras"], tmp_path / file)
    assert list(tmp_path.iterdir()) == []


def test_a_legacy_file_lists_layers_and_arrays_by_the_names_of_keras(small, tmp_path):
    write_weights(small["keras"], tmp_path / "a.h5")
    model = blank("mobilenet_v2", width=0.35, size=32, top=True)
    with h5py.File(tmp_path / "a.h5") as file:
        names = [name.decode() for name in file.attrs["layer_names"]]
        assert names == [layer.name for layer in model.layers if layer.weights]
        for name in names:
            listed = [weight.decode() for weight in file[name].attrs["weight_names"]]
            assert listed == [variable.path for variable in model.get_layer(name).weights]


def test_safetensors_say_that_they_are_torchs_and_count_batches_from_zero(small, tmp_path):
    write_weights(small["torch"], tmp_path / TIMM_FILE)

    with safe_open(tmp_path / TIMM_FILE, "np") as file:
        assert file.metadata() == {"format": "pt", "jaxtl_convention": "torch"}
        counters = [file.get_tensor(n) for n in file.keys() if n.endswith("tracked")]  # noqa: SIM118
    assert len(counters) == 52  # one for each BatchNorm
    assert {(str(c.dtype), c.shape, int(c)) for c in counters} == {("int64", (), 0)}
