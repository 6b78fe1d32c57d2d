"""Files that a network is written as give its probabilities, in their own runtimes."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from flax import nnx
from networks import images, mixture, probabilities, trained
from small_network import small_network

from jaxtl.errors import UserError
from jaxtl.exporting import keras, stablehlo
from jaxtl.exporting import onnx as onnx_files
from jaxtl.models import REGISTRY, Network, structure

NETWORKS = {
    "the blocks of MobileNets": lambda: trained(small_network(num_classes=5)),
    "other blocks, Keras": lambda: trained(mixture("keras")),
    "other blocks, torch": lambda: trained(mixture("torch")),
}


def largest_difference(kind, network, path, size):
    """Between the file and the network, for batches of several sizes."""
    kind.write(network, path, size)
    classify, given = kind.load(path), images(3, size)
    expected = probabilities(network, given)
    assert expected.std() > 0.01  # or all files would agree
    return max(np.abs(classify(given[:count]) - expected[:count]).max() for count in (3, 1))


@pytest.mark.parametrize("which", NETWORKS)
def test_onnxruntime_gives_the_probabilities_of_the_network(which, tmp_path):
    """Of images of an odd size, which Keras and torch pad differently."""
    assert largest_difference(onnx_files, NETWORKS[which](), tmp_path / "a.onnx", 51) < 2e-6


@pytest.mark.slow
def test_stablehlo_in_bfloat16_gives_the_probabilities_of_the_network_in_float32(tmp_path):
    network, path = trained(small_network(num_classes=5, dtype="bfloat16")), tmp_path / "a"
    assert largest_difference(stablehlo, network, path, 32) < 1e-2  # bfloat16 has eight bits
    assert stablehlo.load(path)(images(2, 32)).dtype == np.float32


def test_a_graph_has_one_convolution_for_each_and_no_batch_norm(tmp_path):
    onnx_files.write(trained(small_network(num_classes=5)), tmp_path / "a.onnx", 32)
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    # Four blocks of three convolutions, and those of stem and top; two blocks add their input.
    assert Counter(node.op_type for node in model.graph.node) == {
        "Transpose": 1,
        "Cast": 1,
        "Sub": 1,
        "Div": 1,
        "Conv": 14,
        "Clip": 10,
        "Add": 2,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
        "Softmax": 1,
    }


class Tanh(nnx.Module):
    """A stage that no network of jaxtl has."""

    def __call__(self, x, context):
        return nnx.tanh(x)


def test_an_operation_that_is_not_known_is_named(tmp_path):
    known = trained(small_network(num_classes=5))
    stages = {stage: getattr(known, stage) for stage in known.stage_names}
    head = stages.pop("head")
    odd = Network({**stages, "odd": Tanh(), "head": head}, known.spec)
    with pytest.raises(UserError, match=r"tanh.*write \.stablehlo"):
        onnx_files.write(odd, tmp_path / "a.onnx", 32)
    assert list(tmp_path.iterdir()) == []


ALONE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jaxtl", "flax"):
            raise RuntimeError(f"{name} was imported")
sys.meta_path.insert(0, Absent())
import jax, numpy as np
run = jax.export.deserialize(bytearray(open("a.stablehlo", "rb").read())).call
for count in (1, 3):
    np.save(f"{count}.npy", run(np.load("images.npy")[:count]))
"""


@pytest.mark.slow
def test_a_process_without_jaxtl_runs_stablehlo(tmp_path):
    network, given = trained(small_network(num_classes=5)), images(3, 32)
    stablehlo.write(network, tmp_path / "a.stablehlo", 32)
    np.save(tmp_path / "images.npy", given)
    subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, check=True)
    expected = probabilities(network, given)
    for count in (1, 3):
        found = np.load(tmp_path / f"{count}.npy")
        np.testing.assert_allclose(found, expected[:count], atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "convention"),
    [
        ("inception_v3", "torch"),
        ("mobilenet_v1", "keras"),
        ("mobilenet_v2", "torch"),
        ("resnet50", "keras"),
    ],
)
def test_whole_networks_are_written_as_onnx(name, convention, tmp_path):
    size = max(64, REGISTRY[name].smallest)
    network = trained(structure(name, num_classes=5, convention=convention))
    # Their random weights make logits large, and so errors of rounding.
    assert largest_difference(onnx_files, network, tmp_path / "a.onnx", size) < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", [stablehlo, keras])
def test_other_formats_have_the_probabilities_of_resnet(kind, tmp_path):
    """Whose first convolution takes blue, green and red in Keras."""
    network, path = trained(structure("resnet50", num_classes=5)), tmp_path / "a.keras"
    assert largest_difference(kind, network, path, 64) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["a.keras"]


def test_weights_of_torch_are_not_written_for_keras(tmp_path):
    network = structure("resnet50", num_classes=5, convention="torch")
    with pytest.raises(UserError, match=r"torch convention.*write \.onnx or \.stablehlo"):
        keras.write(network, tmp_path / "a.keras", 64)


LITE = """
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np
from pathlib import Path
from networks import images, probabilities, trained
from jaxtl.exporting import tflite
from jaxtl.exporting.export import FORMATS
from jaxtl.models import structure
network, path = trained(structure("mobilenet_v2", num_classes=5)), Path("a.tflite")
tflite.write(network, path, 64)
classify = tflite.load(path)
for count in (3, 1):
    given = images(count, 64)
    np.testing.assert_allclose(classify(given), probabilities(network, given), atol=1e-4)
import ai_edge_litert.interpreter
found = eval(FORMATS[".tflite"].usage.format(file=path), globals() | {"images": given})
np.testing.assert_allclose(found, probabilities(network, given), atol=1e-4)
"""


@pytest.mark.peers
@pytest.mark.slow
def test_tensorflow_lite_has_the_probabilities_of_a_whole_network(tmp_path):
    """In a process of its own: the tests have Keras on JAX."""
    pytest.importorskip("ai_edge_litert")
    code = [sys.executable, "-c", LITE, str(Path(__file__).parent)]
    variables = os.environ | {"KERAS_BACKEND": "tensorflow"}
    subprocess.run(code, cwd=tmp_path, env=variables, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tflite"]
