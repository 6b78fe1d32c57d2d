"""Every form of Keras file gives the same variables, bit for bit; what does not fit is named."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import keras
import keras_models
import numpy as np
import pytest
from keras_files import as_keras_2, edited, save

from jaxtl.errors import UserError
from jaxtl.models import split
from jaxtl.weights import WeightsRecord, create

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

WIDTH = 0.35


@pytest.fixture(scope="module")
def trunk() -> keras.Model:
    return keras_models.mobilenet_v2(width=WIDTH)


@pytest.fixture(scope="module")
def models(trunk) -> dict[str, keras.Model]:
    """Networks as users save them, by what their test ids say."""
    without_pool = keras.Model(trunk.input, trunk.layers[-2].output, name="mobilenetv2_0.35_32")
    frozen = keras_models.mobilenet_v2(width=WIDTH)
    for layer in frozen.layers[:-40]:
        layer.trainable = False  # moves these behind the trained ones in a legacy file
    return {
        "trunk": trunk,
        "trunk without pooling": without_pool,
        "with top": keras_models.mobilenet_v2(width=WIDTH, top=True),
        "flat": keras_models.flat(trunk),
        "sequential": keras_models.nested_sequential(trunk),
        "functional": keras_models.nested_functional(trunk, "dense_3"),
        "functional, half frozen": keras_models.nested_functional(frozen, "predictions"),
    }


NAMES = (
    "trunk",
    "trunk without pooling",
    "with top",
    "flat",
    "sequential",
    "functional",
    "functional, half frozen",
)


def load(path: Path, **options) -> tuple[dict[str, np.ndarray], WeightsRecord]:
    options = {"num_classes": keras_models.CLASSES, "width": WIDTH} | options
    network, record = create("mobilenet_v2", weights=str(path), **options)
    assert record is not None
    return {path: np.asarray(value) for path, value in split(network)[1].items()}, record


@pytest.mark.parametrize("file", ["whole.h5", "weights only.h5", "model.weights.h5", "model.keras"])
@pytest.mark.parametrize("name", NAMES)
def test_every_form_of_file_gives_the_variables_bit_for_bit(models, name, file, tmp_path):
    model = models[name]

    loaded, record = load(save(model, tmp_path / file))

    expected = keras_models.arrays(model)
    head = {path for path in loaded if path.startswith("head/")}
    assert record.head == ("loaded" if "head/kernel" in expected else "new")
    assert set(loaded) == set(expected) | head
    for path, value in expected.items():
        assert value.dtype == loaded[path].dtype == np.float32
        assert value.tobytes() == loaded[path].tobytes(), path


def test_layers_with_other_names_are_read_in_their_order_as_keras_reads_them(trunk, tmp_path):
    save(trunk, tmp_path / "whole.h5")
    with h5py.File(tmp_path / "whole.h5") as source, h5py.File(tmp_path / "old.h5", "w") as target:
        names = {
            name: f"mobl_{i}" for i, name in enumerate(source["model_weights"].attrs["layer_names"])
        }
        as_keras_2(source["model_weights"], target, rename=names.__getitem__)

    loaded, _ = load(tmp_path / "old.h5", num_classes=None)

    for path, value in keras_models.arrays(trunk).items():
        assert value.tobytes() == loaded[path].tobytes(), path


@pytest.mark.slow
def test_the_optimizer_state_of_a_trained_model_is_left_alone(trunk, tmp_path):
    model = keras_models.flat(trunk)
    model.compile("adam")
    model.optimizer.build(model.trainable_variables)

    for file in ("model.h5", "model.weights.h5", "model.keras"):
        loaded, _ = load(save(model, tmp_path / file))
        assert (
            loaded["head/kernel"].tobytes() == keras_models.arrays(model)["head/kernel"].tobytes()
        )


def test_half_precision_is_read_as_float32(trunk, tmp_path):
    path = edited(trunk, tmp_path, lambda name, value: value.astype(np.float16))

    loaded, _ = load(path, num_classes=None)

    assert {value.dtype for value in loaded.values()} == {np.dtype(np.float32)}


class TestHead:
    @pytest.fixture
    def path(self, models, tmp_path) -> Path:
        return save(models["functional"], tmp_path / "model.keras")

    def test_is_loaded_when_the_classes_are_as_many(self, path):
        loaded, record = load(path)
        assert (record.head, record.left_out) == ("loaded", ())
        assert "head/kernel" in loaded

    def test_is_left_out_when_no_classes_are_asked_for(self, path):
        loaded, record = load(path, num_classes=None)
        assert record.head == "none"
        assert record.left_out == ("dense_3/kernel", "dense_3/bias")
        assert not any(path.startswith("head/") for path in loaded)

    @pytest.mark.parametrize("options", [{"fresh_head": True}, {"num_classes": 3}])
    def test_stays_new_when_asked_for_or_when_the_classes_differ(self, path, options):
        loaded, record = load(path, **options)
        network, _ = create(
            "mobilenet_v2", weights=None, width=WIDTH, **({"num_classes": 7} | options)
        )
        assert record.head == "new"
        assert record.left_out == ("dense_3/kernel", "dense_3/bias")
        fresh = split(network)[1]
        for name in ("head/kernel", "head/bias"):
            assert loaded[name].tobytes() == np.asarray(fresh[name]).tobytes()


class TestAFileThatDoesNotFit:
    def test_names_every_missing_array(self, trunk, tmp_path):
        gone = ("block_3_project/kernel", "bn_Conv1/moving_mean")
        path = edited(trunk, tmp_path, lambda name, value: None if name in gone else value)
        with pytest.raises(UserError, match="missing: ") as error:
            load(path)
        assert "block_3/project/kernel" in str(error.value)
        assert "stem/bn/mean" in str(error.value)
        assert str(path) in str(error.value)
        assert "unexpected" not in str(error.value)

    def test_names_every_unexpected_array(self, trunk, tmp_path):
        path = edited(trunk, tmp_path, lambda name, value: value, extra="adapter")
        with pytest.raises(UserError, match=r"unexpected: adapter/kernel$"):
            load(path)

    def test_shows_both_shapes_of_a_transposed_array(self, trunk, tmp_path):
        def transpose(name, value):
            return value.transpose(0, 1, 3, 2) if name == "block_3_expand/kernel" else value

        with pytest.raises(UserError, match="of another shape: block_3/expand/kernel is") as error:
            load(edited(trunk, tmp_path, transpose))
        assert "(1, 1, 48, 8), not (1, 1, 8, 48)" in str(error.value)

    @pytest.mark.parametrize("classes", [keras_models.CLASSES, 3, None])
    def test_names_the_kernel_of_a_head_that_is_missing(self, models, classes, tmp_path):
        path = edited(
            models["with top"], tmp_path, lambda n, v: None if n == "predictions/kernel" else v
        )
        with pytest.raises(UserError, match=r"missing: head/kernel, .* predictions/bias belongs"):
            load(path, num_classes=classes)

    @pytest.mark.parametrize("classes", [keras_models.CLASSES, 3, None])
    def test_shows_the_shapes_of_a_transposed_head(self, models, classes, tmp_path):
        path = edited(
            models["with top"], tmp_path, lambda n, v: v.T if n == "predictions/kernel" else v
        )
        with pytest.raises(UserError, match=r"predictions/kernel, is \(7, 1280\)") as error:
            load(path, num_classes=classes)
        assert "predictions/bias of (7,)" in str(error.value)

    def test_names_both_arrays_that_claim_one_place(self, trunk, tmp_path):
        path = edited(trunk, tmp_path, lambda name, value: value)
        with h5py.File(path, "a") as file:
            group = file["model_weights/block_3_depthwise"]
            (kernel,) = group.attrs["weight_names"]
            group.attrs["weight_names"] = [kernel, "block_3_depthwise/depthwise_kernel"]
            group["block_3_depthwise/depthwise_kernel"] = np.zeros_like(group[kernel])
        with pytest.raises(UserError, match=r"has both .* and .* for block_3/depthwise/kernel"):
            load(path, num_classes=None)

    def test_names_an_array_that_it_has_twice(self, trunk, tmp_path):
        path = edited(trunk, tmp_path, lambda name, value: value)
        with h5py.File(path, "a") as file:
            group = file["model_weights/Conv_1"]
            (kernel,) = group.attrs["weight_names"]
            group.attrs["weight_names"] = [kernel, "other/Conv_1/kernel"]
            group["other/Conv_1/kernel"] = np.zeros_like(group[kernel])
        with pytest.raises(UserError, match="it has Conv_1/kernel twice"):
            load(path, num_classes=None)

    @pytest.mark.parametrize("file", ["model.h5", "model.weights.h5", "model.keras"])
    @pytest.mark.parametrize("name", ["mobilenet_v1", "resnet50"])
    def test_is_not_taken_for_a_network_with_layers_alike(self, trunk, name, file, tmp_path):
        path = save(trunk, tmp_path / file)
        with pytest.raises(UserError, match=f"{path} does not hold {name}"):
            create(name, num_classes=None, weights=str(path))

    @pytest.mark.parametrize("file", ["model.h5", "model.weights.h5", "model.keras"])
    def test_says_which_width_the_shapes_are_of(self, models, file, tmp_path):
        path = save(models["sequential"], tmp_path / file)
        with pytest.raises(UserError, match=r" holds .* of width 0\.35, and not .* of width 1$"):
            load(path, width=1.0)

    @pytest.mark.parametrize("file", ["model.h5", "model.weights.h5", "model.keras"])
    def test_may_have_one_dense_layer_only(self, trunk, file, tmp_path):
        path = save(keras_models.nested_functional(trunk, "hidden", "output"), tmp_path / file)
        with pytest.raises(UserError, match="2 dense layers where one classifier is expected"):
            load(path)

    @pytest.mark.parametrize("file", ["model.h5", "model.weights.h5", "model.keras"])
    def test_is_not_taken_for_another_network(self, file, tmp_path):
        other = keras.Sequential(
            [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
        )
        path = save(other, tmp_path / file)
        with pytest.raises(UserError, match=f"{path} does not hold mobilenet_v2"):
            load(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda value: value.astype(np.int32), "top/bn/mean holds int32"),
            (lambda value: np.full_like(value, np.nan), "top/bn/mean is not finite"),
        ],
    )
    def test_holds_what_cannot_be_weights(self, trunk, change, message, tmp_path):
        path = edited(
            trunk, tmp_path, lambda n, v: change(v) if n == "Conv_1_bn/moving_mean" else v
        )
        with pytest.raises(UserError, match=message):
            load(path)


class TestADamagedFile:
    @pytest.mark.parametrize("file", ["model.h5", "model.weights.h5", "model.keras"])
    def test_is_refused_when_truncated(self, trunk, file, tmp_path):
        path = save(trunk, tmp_path / file)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(UserError, match=f"{path} is damaged"):
            load(path)

    @pytest.mark.parametrize("file", ["page.h5", "page.weights.h5", "page.keras"])
    def test_is_refused_when_it_is_something_else(self, file, tmp_path):
        path = tmp_path / file
        path.write_text("<html>404</html>")
        with pytest.raises(UserError, match=f"{path} is damaged, or is no Keras weights file"):
            load(path)

    def test_is_refused_when_it_is_hdf5_without_weights(self, tmp_path):
        path = tmp_path / "data.h5"
        with h5py.File(path, "w") as file:
            file["images"] = np.zeros(3)
        with pytest.raises(UserError, match="it holds no layers with weights"):
            load(path)

    def test_is_refused_when_a_zip_lacks_its_config(self, trunk, tmp_path):
        path = save(trunk, tmp_path / "model.keras")
        with zipfile.ZipFile(path) as archive:
            weights = archive.read("model.weights.h5")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.weights.h5", weights)
        with pytest.raises(UserError, match=r"config\.json"):
            load(path)

    def test_is_named_when_it_is_missing(self, tmp_path):
        with pytest.raises(UserError, match=r"gone\.h5 does not exist"):
            load(tmp_path / "gone.h5")


def test_lambda_layers_in_a_config_are_never_run(trunk, tmp_path):
    path = save(keras_models.flat(trunk), tmp_path / "model.keras")
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    config["config"]["layers"].append(
        {"class_name": "Lambda", "config": {"name": "evil", "function": "not even base64"}}
    )
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)

    _, record = load(path)

    assert record.head == "loaded"
