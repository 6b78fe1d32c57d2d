"""Names that are not UTF-8, or that the terminal has no letters for, cost no work."""

import csv
import json
import os
import pty
import subprocess
import sys

import pytest
from workplace import write_images, write_weights

pytestmark = pytest.mark.slow

FOLDER = b"d\xe9ta"  # Latin-1, which is not UTF-8
IMAGE = b"d\xe9ta/val/caf\xe9/\xff.png"
CLASS = r"caf\xe9"
CONFIG = """
from jaxtl.config import Config, Data, Model, Phase, head_only

def get_config():
    return Config(
        model=Model(width=0.35, image_size=32, weights=None),
        data=Data(batch_size=8),
        phases=(Phase(name="head", train=head_only(), epochs=1, lr=2e-3),),
    )
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def command(place, module, *arguments, **variables):
    return {
        "args": [sys.executable, "-m", module, *arguments],
        "cwd": place,
        "env": os.environ | {"LC_ALL": "C"} | variables,
    }


def run(place, module, *arguments, **variables):
    """Runs a process to its end; what it wrote is bytes."""
    return subprocess.run(
        **command(place, module, *arguments, **variables), capture_output=True, check=False
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data and a finished run, all with awkward names."""
    place = tmp_path_factory.mktemp("names")
    for split, each in (("train", 4), ("val", 2)):
        write_images(place / "data" / split, each=each, seed=each)
        folder = os.fsencode(place / "data" / split)
        os.rename(folder + b"/blue", folder + b"/caf\xe9")
    os.rename(folder + b"/caf\xe9/01.png", folder + b"/caf\xe9/\xff.png")
    os.rename(place / "data", os.fsencode(place) + b"/" + FOLDER)
    (place / "names.py").write_text(CONFIG)
    return place


@pytest.fixture(scope="module")
def trained(place):
    source = b"--cfg.data.source=" + FOLDER
    ended = run(place, "jaxtl.train", "--cfg", "names.py", "--workdir", "run", source)
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    assert b"could not be drawn" not in ended.stdout
    return place / "run"


def predict(place, form, *more, **variables):
    ended = run(place, "jaxtl.predict", "--run", "run", "--format", form, IMAGE, *more, **variables)
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    return ended.stdout


def test_training_ends_with_a_result_and_a_report(trained):
    metadata = json.loads((trained / "run.json").read_text())
    assert metadata["result"]["step"] == 2
    assert os.fsencode(metadata["source"]).endswith(b"/" + FOLDER)
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert page.count(CLASS) >= 3  # the table, and both axes of the confusions


def test_a_complete_run_is_continued(trained, place):
    source = b"--cfg.data.source=" + FOLDER
    ended = run(place, "jaxtl.train", "--cfg", "names.py", "--workdir", "run", source)
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    assert b"continuing run" in ended.stdout


def test_evaluate_prints_the_class(trained, place):
    ended = run(place, "jaxtl.evaluate", "--run", "run", LC_ALL="C.UTF-8")
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    assert CLASS.encode() in ended.stdout


def test_predict_writes_a_path_as_its_bytes(trained, place):
    assert IMAGE in predict(place, "table")
    lines = predict(place, "csv").splitlines()
    assert [next(csv.reader([line.decode("latin-1")]))[0] for line in lines[1:]] == [
        IMAGE.decode("latin-1")
    ] * 3


def test_predict_writes_json_that_gives_the_path_back(trained, place):
    (entry,) = json.loads(predict(place, "json"))
    assert os.fsencode(entry["path"]) == IMAGE
    assert CLASS in {guess["class"] for guess in entry["classes"]}


def test_predict_shows_a_table_on_a_terminal(trained, place):
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        **command(place, "jaxtl.predict", "--run", "run", IMAGE, LC_ALL="C.UTF-8", COLUMNS="200"),
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # Linux says so when the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0, shown.decode(errors="replace")
    assert b"\x1b[1m" in shown  # it is a terminal
    assert IMAGE in shown


def test_class_names_are_escaped_where_the_terminal_has_no_letters_for_them(trained, place):
    file = trained / "run.json"
    before = file.read_text()
    file.write_text(json.dumps(json.loads(before) | {"classes": ["猫", "naïve", "red"]}))
    try:
        shown = predict(place, "table", **ASCII)
    finally:
        file.write_text(before)
    assert IMAGE in shown
    assert shown.count(rb"\u732b") == shown.count(rb"na\xefve") == 1


SWEEP = """
def sweep():
    yield {"phases.head.lr": 1e-3}
    yield {"phases.head.lr": 1e-2}
"""


def test_a_sweep_is_trained_and_continued(place):
    (place / "swept.py").write_text(CONFIG + SWEEP)
    source = b"--cfg.data.source=" + FOLDER
    for complete in (0, 2):
        ended = run(place, "jaxtl.sweep", "--cfg", "swept.py", "--workdir", "swept", source)
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")
        assert f"2 runs in swept, {complete} of them complete".encode() in ended.stdout


def test_a_sweep_over_sources_has_their_names_in_its_table(place):
    sweep = f"\ndef sweep():\n    yield {{'data.source': {os.fsdecode(FOLDER)!a}}}\n"
    (place / "sources.py").write_text(CONFIG + sweep)
    ended = run(place, "jaxtl.sweep", "--cfg", "sources.py", "--workdir", "sources")
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    assert b"," + FOLDER + b"," in (place / "sources" / "sweep.csv").read_bytes()


def test_compare_measures_with_a_file_of_weights(place):
    write_weights(place / "weights.h5")
    weights = b"w\xe9ights.h5"
    os.rename(place / "weights.h5", os.fsencode(place) + b"/" + weights)
    flags = ("--models", "mobilenet_v2@0.35", "--image-size", "32", "--batch-size", "8")
    given = ("--data", FOLDER, "--weights", weights, "--out", "compared")
    ended = run(place, "jaxtl.compare", *flags, *given)
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    assert b"," + weights + b" sha256:" in (place / "compared" / "compare.csv").read_bytes()


def test_a_run_directory_that_orbax_cannot_write_to_is_refused(place):
    ended = run(
        place,
        "jaxtl.train",
        *("--cfg", "names.py", "--cfg.data.source=digits", "--workdir", b"r\xe9n"),
    )
    assert ended.returncode == 2
    assert ended.stderr == b"error: r\xe9n: the path of a run directory must be UTF-8\n"
    assert not os.path.exists(os.fsencode(place) + b"/r\xe9n")
