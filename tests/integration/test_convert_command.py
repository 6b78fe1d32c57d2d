"""A run and other weights become files for Keras from the terminal; what cannot be is refused."""

import contextlib
import json

import keras
import numpy as np
import pytest

import jaxtl
from jaxtl.weights import create_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def convert(whole, workplace):
    """A function that runs the command where `whole` is a run and `weights.h5` a trunk."""

    def convert(*arguments):
        return workplace.run("jaxtl.convert", *arguments)

    return convert


def keras_model(size=32, **options):
    return keras.applications.MobileNetV2(
        weights=None, alpha=0.35, input_shape=(size, size, 3), **options
    )


@pytest.mark.parametrize("file", ["run.h5", "run.weights.h5"])
def test_keras_classifies_as_the_run_does_that_was_converted(convert, whole, workplace, file):
    ended = convert("--from", "whole", "--to", file)
    assert ended.code == 0, ended.err
    assert ended.out.count("\n") == 1
    assert f"{file}: mobilenet_v2 of width 0.35, 3 classes, " in ended.out
    line = "MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=3)"
    assert f"keras.applications.{line}" in ended.out
    assert f"model.load_weights('{file}')" in ended.out
    assert "keras.applications.mobilenet_v2.preprocess_input" in ended.out

    model = keras_model(classes=3)
    model.load_weights(workplace.path / file)

    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    scaled = keras.applications.mobilenet_v2.preprocess_input(images.astype(np.float32))
    expected = jaxtl.load_run(whole.path).predict(images)
    np.testing.assert_allclose(model.predict(scaled, verbose=0), expected, atol=1e-4)


def test_the_head_of_a_run_is_left_out_when_asked_and_the_line_says_so(convert, workplace):
    ended = convert("--from", "whole", "--to", "trunk.h5", "--no-head")
    assert ended.code == 0, ended.err
    assert "head left out" in ended.out
    assert 'include_top=False, pooling="avg"' in ended.out
    keras_model(include_top=False, pooling="avg").load_weights(workplace.path / "trunk.h5")


def test_a_file_is_written_as_another_kind_of_file(convert, workplace):
    given = ("--model", "mobilenet_v2", "--width", "0.35", "--from", "weights.h5")
    ended = convert(*given, "--to", "other.weights.h5", "--no-head")
    assert ended.code == 0, ended.err
    assert "no head" in ended.out  # and not "head left out": there was none
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    before, after = (
        create_model("mobilenet_v2", width=0.35, weights=str(workplace.path / file))(images)
        for file in ("weights.h5", "other.weights.h5")
    )
    np.testing.assert_array_equal(before, after)


def test_the_line_for_a_trunk_makes_the_same_features_in_keras(convert, workplace):
    given = ("--model", "mobilenet_v2", "--width", "0.35", "--from", "weights.h5")
    ended = convert(*given, "--image-size", "100", "--to", "hundred.h5")
    assert ended.code == 0, ended.err
    line = ended.out.partition("; load: ")[2].partition("; images: ")[0]
    names = {"keras": keras}
    with contextlib.chdir(workplace.path):
        exec(line, names)
    images = np.random.default_rng(0).integers(0, 256, (2, 100, 100, 3), np.uint8)
    scaled = keras.applications.mobilenet_v2.preprocess_input(images.astype(np.float32))
    weights = str(workplace.path / "weights.h5")
    expected = create_model("mobilenet_v2", width=0.35, weights=weights, image_size=100)(images)
    np.testing.assert_allclose(names["model"].predict(scaled, verbose=0), expected, atol=1e-4)


WITH_HEAD = ("--model", "mobilenet_v2", "--width", "0.35", "--from", "headed.h5")

# The flags, and words that the one line must have.
REFUSALS = {
    "no model": (("--from", "weights.h5", "--to", "a.h5"), ["--model", "mobilenet_v2"]),
    "a model for a run": (
        ("--model", "vgg16", "--from", "whole", "--to", "a.h5"),
        ["whole is a run", "--model"],
    ),
    "a folder that is no run": (("--from", "data", "--to", "a.h5"), ["no run in data"]),
    "a run for timm": (
        ("--from", "whole", "--to", "a.safetensors"),
        ["keras convention", "a.weights.h5"],
    ),
    "a misspelt model": (
        ("--model", "vgg166", "--from", "weights.h5", "--to", "a.h5"),
        ["'vgg166'", "'vgg16'"],
    ),
    "a misspelt model of torch's weights": (
        ("--model", "resnet5", "--from", "a.safetensors", "--to", "b.safetensors"),
        ["'resnet5'", "'resnet50'"],
    ),
    "a misspelt run": (("--from", "runs/wole", "--to", "a.h5"), ["no run runs/wole", "a path"]),
    "a folder that is no run, with a model": (
        ("--model", "vgg16", "--from", "data", "--to", "a.h5"),
        ["no run in data"],
    ),
    "keras for timm, before anything is fetched": (
        ("--model", "resnet50", "--from", "keras", "--to", "a.safetensors"),
        ["keras convention", "a.weights.h5"],
    ),
    "a head of unsaid size": ((*WITH_HEAD, "--to", "a.h5"), ["--classes", "--no-head"]),
    "a head of another size": (
        (*WITH_HEAD, "--classes", "7", "--to", "a.h5"),
        ["headed.h5 has no head of 7 classes"],
    ),
    "images of no size": (
        (*WITH_HEAD, "--classes", "3", "--image-size", "0", "--to", "a.h5"),
        ["image_size 0 is too small"],
    ),
    "a file that exists": (("--from", "whole", "--to", "weights.h5"), ["weights.h5 exists"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused_in_one_line_and_nothing_is_written(convert, workplace, case):
    if not (workplace.path / "headed.h5").exists():
        assert convert("--from", "whole", "--to", "headed.h5").code == 0
    files = sorted(path.name for path in workplace.path.iterdir())
    flags, words = REFUSALS[case]
    ended = convert(*flags)
    assert ended.code == 2
    *before, last = ended.err.splitlines()
    assert last.startswith("error: ")
    assert [word for word in words if word not in last] == []
    assert [line for line in before if not line.startswith("weights: ")] == []
    assert sorted(path.name for path in workplace.path.iterdir()) == files


def test_the_head_of_a_file_is_kept_with_its_classes(convert, workplace):
    if not (workplace.path / "headed.h5").exists():
        assert convert("--from", "whole", "--to", "headed.h5").code == 0
    ended = convert(*WITH_HEAD, "--classes", "3", "--to", "again.weights.h5")
    assert ended.code == 0, ended.err
    classes = json.loads((workplace.path / "whole" / "run.json").read_text())["classes"]
    assert f", {len(classes)} classes, " in ended.out


def test_help_says_what_each_suffix_is_for(convert):
    ended = convert("--help")
    assert ended.code == 0
    words = (".h5", ".weights.h5", ".safetensors", "--no-head")
    assert [word for word in words if word not in ended.out] == []
