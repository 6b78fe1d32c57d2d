"""Files of torch are read by the names of either library; what does not fit is named.

Layouts are checked here, without torch; `test_torch_parity.py` checks the names, with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, LayerNames, Network, build, merge, split
from jaxtl.weights import WeightsRecord, create
from jaxtl.weights.strict import AnotherNetwork
from jaxtl.weights.torch import read_torch

CLASSES = 7
WIDTH = 0.35

# Our names of arrays and torch's.
NAMES = {
    "batch_normalization": {
        "scale": "weight",
        "bias": "bias",
        "mean": "running_mean",
        "var": "running_var",
    },
    "other": {"kernel": "weight", "bias": "bias"},
}
# From our layout to torch's (torch.nn.Conv2d and torch.nn.Linear, "Variables").
LAYOUTS = {
    "conv2d": "hwio->oihw",
    "depthwise_conv2d": "hwio->oihw",
    "dense": "io->oi",
}


def random_network(name: str, *, width: float = 1.0, classes: int | None = CLASSES) -> Network:
    network = build(name, num_classes=classes, width=width, convention="torch")
    graph, variables = split(network)
    rng = np.random.default_rng(0)
    return merge(
        graph, {p: rng.uniform(0.5, 1.5, v.shape).astype(np.float32) for p, v in variables.items()}
    )


def layers_of(network: Network, library: str) -> list[LayerNames]:
    layers = REGISTRY[network.name].torch_layers(network, library)
    assert layers is not None
    return layers


def state_dict(network: Network, library: str = "timm") -> dict[str, np.ndarray]:
    """What torch would save of a network, the counters of its BatchNorms included."""
    variables, state = split(network)[1], {}
    for layer in layers_of(network, library):
        for ours, theirs in NAMES.get(layer.kind, NAMES["other"]).items():
            value = variables.get(f"{layer.path}/{ours}")
            if value is not None:
                value = np.einsum(LAYOUTS[layer.kind], value) if ours == "kernel" else value
                state[f"{layer.name}.{theirs}"] = np.ascontiguousarray(value)
        if layer.kind == "batch_normalization":
            state[f"{layer.name}.num_batches_tracked"] = np.asarray(3, np.int64)
    return state


def save(state: dict[str, np.ndarray], folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file(state, path)
    return path


def load(name: str, path: Path, **options) -> tuple[Network, dict[str, np.ndarray], WeightsRecord]:
    network, record = create(name, **({"num_classes": CLASSES} | options), weights=str(path))
    assert record is not None
    return network, {p: np.asarray(v) for p, v in split(network)[1].items()}, record


def assert_same_bits(ours: dict[str, np.ndarray], expected: dict) -> None:
    assert ours.keys() == expected.keys()
    different = [p for p in expected if ours[p].tobytes() != np.asarray(expected[p]).tobytes()]
    assert different == []


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network("mobilenet_v2", width=WIDTH)


@pytest.fixture
def state(network) -> dict[str, np.ndarray]:
    return state_dict(network)


@pytest.mark.parametrize(
    ("name", "width", "library"),
    [
        ("mobilenet_v2", WIDTH, "timm"),
        ("mobilenet_v2", WIDTH, "torchvision"),
        ("mobilenet_v1", 0.25, "timm"),
        pytest.param("resnet50", 1.0, "timm", marks=pytest.mark.slow),
        pytest.param("inception_v3", 1.0, "torchvision", marks=pytest.mark.slow),
        pytest.param("vgg16", 1.0, "timm", marks=pytest.mark.slow),
        pytest.param("vgg16", 1.0, "torchvision", marks=pytest.mark.slow),
    ],
)
def test_the_variables_come_back_bit_for_bit(name, width, library, tmp_path):
    network = random_network(name, width=width)
    loaded, variables, record = load(
        name, save(state_dict(network, library), tmp_path), width=width
    )
    assert (record.convention, record.head, record.left_out) == ("torch", "loaded", ())
    assert loaded.spec.convention == REGISTRY[name].conventions["torch"]
    assert_same_bits(variables, split(network)[1])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_precisions_are_read_as_float32(state, dtype, tmp_path):
    exact = {n: v.astype(dtype) if v.dtype == np.float32 else v for n, v in state.items()}
    _, variables, _ = load("mobilenet_v2", save(exact, tmp_path), width=WIDTH)
    kernel = variables["head/kernel"]
    assert {value.dtype for value in variables.values()} == {np.dtype(np.float32)}
    assert kernel.tobytes() == exact["classifier.weight"].astype(np.float32).T.tobytes()


def test_the_auxiliary_classifier_of_inception_is_left_alone(tmp_path):
    network = random_network("inception_v3", classes=None)
    state = state_dict(network, "torchvision") | {
        "AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1), np.float32),
        "AuxLogits.fc.bias": np.zeros(1000, np.float32),
    }
    _, variables, record = load("inception_v3", save(state, tmp_path), num_classes=None)
    assert record.left_out == ()
    assert_same_bits(variables, split(network)[1])


class TestHead:
    def test_is_left_out_when_no_classes_are_asked_for(self, state, network, tmp_path):
        path = save(state, tmp_path)
        _, variables, record = load("mobilenet_v2", path, num_classes=None, width=WIDTH)
        assert record.head == "none"
        assert sorted(record.left_out) == ["classifier.bias", "classifier.weight"]
        trunk = {p: v for p, v in split(network)[1].items() if not p.startswith("head/")}
        assert_same_bits(variables, trunk)

    @pytest.mark.parametrize("options", [{"fresh_head": True}, {"num_classes": 3}])
    def test_stays_new_when_asked_for_or_when_the_classes_differ(self, state, options, tmp_path):
        _, variables, record = load("mobilenet_v2", save(state, tmp_path), width=WIDTH, **options)
        fresh, _ = create(
            "mobilenet_v2", weights=None, width=WIDTH, **({"num_classes": CLASSES} | options)
        )
        assert record.head == "new"
        assert sorted(record.left_out) == ["classifier.bias", "classifier.weight"]
        expected = np.asarray(split(fresh)[1]["head/kernel"])
        assert variables["head/kernel"].tobytes() == expected.tobytes()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("library", "hidden"),
        [
            ("timm", ("pre_logits.fc1", "pre_logits.fc2")),
            ("torchvision", ("classifier.0", "classifier.3")),
        ],
    )
    @pytest.mark.parametrize("classes", [None, CLASSES])
    def test_is_not_loaded_from_behind_layers_that_the_network_has_not(
        self, library, hidden, classes, tmp_path
    ):
        state = state_dict(random_network("vgg16"), library)
        for layer in hidden:
            state[f"{layer}.weight"] = np.ones((3, 3), np.float32)
            state[f"{layer}.bias"] = np.ones(3, np.float32)
        _, _, record = load("vgg16", save(state, tmp_path), num_classes=classes)
        head = "head.fc" if library == "timm" else "classifier.6"
        names = {f"{layer}.{of}" for layer in (*hidden, head) for of in ("weight", "bias")}
        assert record.head == ("new" if classes else "none")
        assert set(record.left_out) == names


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_first_dense_layer_of_vgg_takes_flattened_maps_channels_last(library, tmp_path):
    """Names decide where an array goes, so all others may be of any shape here."""
    network = build("vgg16", num_classes=None)
    state = {
        f"{layer.name}.weight": np.zeros(1, np.float32) for layer in layers_of(network, library)
    }
    channels, out = 3, 5
    maps = np.random.default_rng(0).normal(size=(7, 7, channels)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(out, channels, 7, 7)).astype(np.float32)
    expected = np.einsum("hwc,ochw->o", maps, kernel)
    second = np.random.default_rng(2).normal(size=(4, out)).astype(np.float32)
    if library == "timm":  # its dense layers are convolutions
        state |= {"pre_logits.fc1.weight": kernel, "pre_logits.fc2.weight": second[..., None, None]}
    else:
        state |= {"classifier.0.weight": kernel.reshape(out, -1), "classifier.3.weight": second}
    path = save(state, tmp_path)

    stored = read_torch(path.read_bytes(), path, network)

    got = maps.reshape(-1) @ stored["fc1/kernel"].value
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(stored["fc2/kernel"].value, second.T)


class TestAFileThatDoesNotFit:
    def test_is_refused_in_words_where_an_array_is_empty(self, tmp_path):
        network = build("vgg16", num_classes=None)
        shapes = {"pre_logits.fc1": (0, 25088)}
        state = {
            f"{layer.name}.weight": np.zeros(shapes.get(layer.name, (1,)), np.float32)
            for layer in layers_of(network, "timm")
        }
        with pytest.raises(UserError, match="does not fit vgg16"):
            load("vgg16", save(state, tmp_path), num_classes=1000)

    @pytest.mark.parametrize(
        ("name", "width", "gone", "path"),
        [
            ("mobilenet_v2", WIDTH, "blocks.1.0.conv_pw.weight", "block_1/expand/kernel"),
            ("mobilenet_v1", 0.25, "blocks.2.1.bn2.running_var", "block_5/pointwise_bn/var"),
            ("resnet50", 1.0, "layer2.0.downsample.0.weight", "conv3_block1/shortcut/kernel"),
            ("inception_v3", 1.0, "Mixed_6b.branch_pool.bn.bias", "mixed_6b/branch_pool/bn/bias"),
            ("vgg16", 1.0, "features.10.bias", "block3_conv1/conv/bias"),
        ],
    )
    def test_names_a_missing_one_an_unexpected_one_and_a_transposed_one(
        self, name, width, gone, path, tmp_path
    ):
        state = state_dict(random_network(name, width=width))
        kernel, ours = {
            "mobilenet_v2": ("blocks.2.0.conv_pwl.weight", "block_3/project/kernel"),
            "mobilenet_v1": ("blocks.1.0.conv_pw.weight", "block_2/pointwise/kernel"),
            "resnet50": ("layer1.0.conv3.weight", "conv2_block1/expand/kernel"),
            "inception_v3": (
                "Mixed_5b.branch5x5_2.conv.weight",
                "mixed_5b/branch5x5_2/conv/kernel",
            ),
            "vgg16": ("features.5.weight", "block2_conv1/conv/kernel"),
        }[name]
        del state[gone]
        state["adapter.weight"] = np.zeros(3, np.float32)
        shape = state[kernel].shape
        state[kernel] = np.ascontiguousarray(state[kernel].swapaxes(0, 1))

        with pytest.raises(UserError, match="does not fit") as error:
            load(name, save(state, tmp_path), width=width)

        out, channels, height, right = shape
        assert f"missing: {path};" in str(error.value)
        assert "unexpected: adapter.weight;" in str(error.value)
        shapes = f"{(height, right, out, channels)}, not {(height, right, channels, out)}"
        assert str(error.value).endswith(f"of another shape: {ours} is {shapes}")

    def test_has_ten_names_of_a_kind_and_a_count(self, state, tmp_path):
        gone = sorted(name for name in state if name.endswith("running_mean"))[:12]
        for name in gone:
            del state[name]
        with pytest.raises(UserError, match="missing: ") as error:
            load("mobilenet_v2", save(state, tmp_path), width=WIDTH)
        assert str(error.value).count("_bn/mean") == 10
        assert str(error.value).endswith(", and 2 more")

    @pytest.mark.parametrize("classes", [CLASSES, 3, None])
    def test_names_a_head_whose_kernel_is_missing_or_transposed(self, state, classes, tmp_path):
        state["classifier.weight"] = np.ascontiguousarray(state["classifier.weight"].T)
        path = save(state, tmp_path)
        with pytest.raises(UserError, match=r"classifier\.weight, is \(7, 1280\)"):
            load("mobilenet_v2", path, width=WIDTH, num_classes=classes)
        del state["classifier.weight"]
        path = save(state, tmp_path)
        with pytest.raises(UserError, match=r"missing: head/kernel, .*classifier\.bias belongs"):
            load("mobilenet_v2", path, width=WIDTH, num_classes=classes)

    def test_says_which_width_the_shapes_are_of(self, state, tmp_path):
        with pytest.raises(UserError, match=r" holds .* of width 0\.35, and not .* of width 1$"):
            load("mobilenet_v2", save(state, tmp_path))

    @pytest.mark.slow
    @pytest.mark.parametrize("library", ["timm", "torchvision"])
    @pytest.mark.parametrize(
        ("held", "wanted"),
        [("vgg16", "vgg19"), ("vgg19", "vgg16"), ("resnet50", "resnet101")],
    )
    def test_says_which_network_of_the_same_kind_it_holds(self, held, wanted, library, tmp_path):
        path = save(state_dict(random_network(held, classes=None), library), tmp_path)
        with pytest.raises(AnotherNetwork, match=f"{path} holds {held}, and not {wanted}$"):
            load(wanted, path)

    def test_is_not_taken_for_another_network(self, state, tmp_path):
        path = save(state, tmp_path)
        with pytest.raises(UserError, match=f"{path} does not hold resnet50: its arrays are "):
            load("resnet50", path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda value: value.astype(np.int32), "bn1.running_mean holds I32"),
            (lambda value: np.full_like(value, np.nan), "stem/bn/mean is not finite"),
        ],
    )
    def test_holds_what_cannot_be_weights(self, state, change, message, tmp_path):
        state["bn1.running_mean"] = change(state["bn1.running_mean"])
        with pytest.raises(UserError, match=message):
            load("mobilenet_v2", save(state, tmp_path), width=WIDTH)

    @pytest.mark.parametrize("content", [b"<html>404</html>", b""])
    def test_is_refused_when_it_is_something_else(self, content, tmp_path):
        path = tmp_path / "page.safetensors"
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path} is damaged, or is no safetensors file"):
            load("mobilenet_v2", path)

    def test_is_refused_when_truncated(self, state, tmp_path):
        path = save(state, tmp_path)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match=f"{path} is damaged"):
            load("mobilenet_v2", path, width=WIDTH)


def test_a_pth_without_torch_says_what_to_install_or_take(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install torch, or take a \.safetensors file"):
        load("mobilenet_v2", path)


@pytest.mark.peers
class TestPth:
    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.fixture
    def tensors(self, torch, state):
        return {name: torch.from_numpy(value) for name, value in state.items()}

    @pytest.mark.parametrize("suffix", [".pth", ".pt"])
    @pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
    def test_gives_the_variables_also_from_within_what_a_script_saved(
        self, torch, tensors, network, suffix, wrapper, tmp_path
    ):
        whole = {wrapper: tensors, "epoch": 3, "arch": "mobilenetv2"} if wrapper else tensors
        torch.save(whole, tmp_path / f"model{suffix}")
        _, variables, record = load("mobilenet_v2", tmp_path / f"model{suffix}", width=WIDTH)
        assert (record.convention, record.head) == ("torch", "loaded")
        assert_same_bits(variables, split(network)[1])

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision_is_read_as_float32(self, torch, tensors, dtype, tmp_path):
        kind = getattr(torch, dtype)
        half = {n: t.to(kind) if t.is_floating_point() else t for n, t in tensors.items()}
        torch.save(half, tmp_path / "model.pth")
        _, variables, _ = load("mobilenet_v2", tmp_path / "model.pth", width=WIDTH)
        expected = half["classifier.weight"].float().numpy().T
        assert variables["head/kernel"].tobytes() == expected.tobytes()

    def test_is_refused_when_it_is_something_else(self, torch, tensors, tmp_path):
        path = tmp_path / "model.pth"
        for content in (b"<html>404</html>", b""):
            path.write_bytes(content)
            with pytest.raises(UserError, match=f"{path} is damaged, or is no file of torch's"):
                load("mobilenet_v2", path)
        torch.save(tensors, path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(UserError, match=f"{path} is damaged"):
            load("mobilenet_v2", path)

    def test_code_in_a_pickle_is_refused_and_not_run(self, torch, tmp_path):
        class Evil:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "evil",))

        torch.save({"stem": Evil()}, tmp_path / "model.pth")
        with pytest.raises(UserError, match="no file of torch's weights alone"):
            load("mobilenet_v2", tmp_path / "model.pth")
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], 7])
    def test_what_is_no_weights_is_refused(self, torch, content, tmp_path):
        torch.save(content, tmp_path / "model.pth")
        with pytest.raises(UserError, match="holds what cannot be weights"):
            load("mobilenet_v2", tmp_path / "model.pth")
