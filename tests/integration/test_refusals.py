"""What the user can fix ends with exit code 2 and one line that says what is wrong."""

import json
import shutil

import pytest
from PIL import Image
from workplace import write_images

from jaxtl.files import sealed, unsealed

TRAIN = ("jaxtl.train", "--cfg", "tiny.py", "--workdir", "refused")
CONTINUE = ("jaxtl.train", "--cfg", "tiny.py", "--workdir")

# Each has a command, how many devices it sees, and words that its one line must have.
CASES = {
    "unknown config": (("jaxtl.train", "--cfg", "mnv22.py"), 1, ["mnv22.py", "mnv2.py"]),
    "unknown key": (
        (*TRAIN, "--cfg.data.batchsize=4"),
        1,
        ["'data.batchsize'", "did you mean 'batch_size'"],
    ),
    "unset placeholder": (("jaxtl.train", "--cfg", "seed.py"), 1, ["--cfg.data.source="]),
    "missing data": ((*TRAIN, "--cfg.data.source=nowhere"), 1, ["'nowhere'", "No such file"]),
    "empty folder": ((*TRAIN, "--cfg.data.source=empty"), 1, ["empty", "folder"]),
    "one class": ((*TRAIN, "--cfg.data.source=one"), 1, ["one class only", "'red'"]),
    "class without training images": (
        (*TRAIN, "--cfg.data.source=unlike"),
        1,
        ["unlike/val", "'red'", "unlike/train lacks"],
    ),
    "corrupt image": (
        ("jaxtl.train", "--cfg", "tiny.py", "--workdir", "ruined", "--cfg.data.source=corrupt"),
        1,
        ["corrupt/train/green/03.png: "],
    ),
    "batch size": (
        (*TRAIN, "--cfg.data.batch_size=12"),
        8,
        ["12 does not divide by 8 devices", "--cfg.data.batch_size=8 or 16"],
    ),
    "no steps to profile": ((*TRAIN, "--profile", "9:9"), 1, ["--profile 9:9: give two steps"]),
    "steps that never come": ((*TRAIN, "--profile=5:999999"), 1, ["5:999999: the run has"]),
    "missing weights": ((*TRAIN, "--cfg.model.weights=lost.h5"), 1, ["lost.h5"]),
    "pattern without a match": (
        (*TRAIN, "--cfg.phases.head.train={'hed/.*': 1.0}"),
        1,
        ["'hed/.*' matches no parameter", "block_16", "head/"],
    ),
    "another config": (
        (*CONTINUE, "whole", "--cfg.seed=1", "--cfg.phases.head.lr=0.5"),
        1,
        ["phases.head.lr: 0.002 -> 0.5; seed: 0 -> 1"],
    ),
    "other data": ((*CONTINUE, "moved"), 1, ["its data changed"]),
    "other files": ((*CONTINUE, "papers"), 1, ["papers holds other files"]),
    "evaluate no run": (("jaxtl.evaluate", "--run", "empty"), 1, ["no run in empty"]),
    "evaluate a run that never began": (
        ("jaxtl.evaluate", "--run", "unborn"),
        1,
        ["no run in unborn"],
    ),
    "evaluate unknown class": (
        ("jaxtl.evaluate", "--run", "whole", "--data", "purple"),
        1,
        ["'purple'", "blue, green, red"],
    ),
    "a report of runs without a name": (("jaxtl.report", "whole", "whole"), 1, ["--to FILE"]),
    "predict a missing file": (
        ("jaxtl.predict", "--run", "whole", "data/val/red/99.png"),
        1,
        ["data/val/red/99.png"],
    ),
    "predict a large image": (
        ("jaxtl.predict", "--run", "whole", "large.png"),
        1,
        ["large.png: too large to decode safely", "67 megapixels"],
    ),
    "a list in place of metadata": (
        ("jaxtl.evaluate", "--run", "damaged"),
        1,
        ["damaged/run.json is damaged"],
    ),
    "continue with a list in place of metadata": (
        (*CONTINUE, "damaged"),
        1,
        ["damaged/run.json is damaged"],
    ),
    "a checkpoint of no phase": (
        ("jaxtl.predict", "--run", "phase9", "data/val/red/01.png"),
        1,
        ["phase9 is damaged: its checkpoint is in phase 9"],
    ),
    "continue a checkpoint of no phase": (
        (*CONTINUE, "phase9"),
        1,
        ["phase9 is damaged: its checkpoint is in phase 9"],
    ),
    "a report of damaged metrics": (
        ("jaxtl.report", "metrics"),
        1,
        ["metrics/metrics.jsonl is damaged"],
    ),
    "predict no image": (("jaxtl.predict", "--run", "whole", "tiny.py"), 1, ["tiny.py: "]),
}


def prepare(path):
    """Makes everything that is wrong in some way."""
    (path / "empty").mkdir()
    write_images(path / "one" / "train", each=2, seed=0)
    for name in ("blue", "green"):
        shutil.rmtree(path / "one" / "train" / name)
    write_images(path / "unlike" / "train", each=2, seed=0)
    shutil.rmtree(path / "unlike" / "train" / "red")
    write_images(path / "unlike" / "val", each=2, seed=1)
    shutil.copytree(path / "data", path / "corrupt")
    image = path / "corrupt" / "train" / "green" / "03.png"
    image.write_bytes(image.read_bytes()[:700])
    shutil.copytree(path / "data" / "val" / "red", path / "purple" / "purple")
    (path / "papers").mkdir()
    (path / "papers" / "thesis.tex").write_text("\\documentclass{book}\n")
    (path / "unborn").mkdir()
    shutil.copy(path / "whole" / "config.json", path / "unborn")
    shutil.copytree(path / "whole", path / "moved")
    metadata = json.loads((path / "moved" / "run.json").read_text())
    metadata["data"]["train"]["sha256"] = "0" * 64
    (path / "moved" / "run.json").write_text(json.dumps(metadata))
    # 100 megapixels, of which Pillow would only warn.
    Image.new("1", (10_000, 10_000)).save(path / "large.png")
    for name in ("damaged", "phase9", "metrics"):
        shutil.copytree(path / "whole", path / name)
    (path / "damaged" / "run.json").write_text("[1]")
    (path / "metrics" / "metrics.jsonl").write_text("[1]\n")
    for file in (path / "phase9" / "checkpoints" / "steps").glob("*/progress/metadata"):
        content = unsealed(json.loads(file.read_text()))
        content["progress"]["phase"] = 9
        file.write_text(json.dumps(sealed(content)))


@pytest.fixture(scope="module")
def refusals(workplace, whole):
    """How each case ended."""
    prepare(workplace.path)
    return {
        case: workplace.here(*command, devices=devices)
        for case, (command, devices, _) in CASES.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_in_one_line(refusals, case):
    ended, (_, _, words) = refusals[case], CASES[case]
    assert ended.code == 2
    *before, last = ended.err.splitlines()
    assert last.startswith("error: ")
    assert [word for word in words if word not in last] == []
    assert [line for line in before if not line.startswith("weights: ")] == []


def test_nothing_is_left_behind_where_a_run_could_not_begin(refusals, workplace):
    assert not (workplace.path / "refused").exists()
    assert [path.name for path in (workplace.path / "papers").iterdir()] == ["thesis.tex"]


def test_a_run_that_was_refused_is_as_it_was(refusals, whole, workplace):
    config = json.loads((whole.path / "config.json").read_text())
    assert config["seed"] == 0
    assert len((whole.path / "metrics.jsonl").read_text().splitlines()) == 20


def test_debug_shows_where_an_error_comes_from(workplace):
    ended = workplace.run(*TRAIN, "--cfg.data.source=nowhere", "--debug")
    assert ended.code != 0
    assert "Traceback (most recent call last)" in ended.err
    assert "UserError: there is no data source 'nowhere'" in ended.err
