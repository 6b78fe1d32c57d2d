"""The run directory: locks, damage, and how an unfinished run is found."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import threading

import pytest

from jaxtl.config import Config
from jaxtl.data.sources import open_all
from jaxtl.data.splits import Splits
from jaxtl.errors import UserError
from jaxtl.runs.directory import (
    DataMetadata,
    RunDirectory,
    RunMetadata,
    SplitMetadata,
    find_unfinished,
)
from jaxtl.training.setup import run_metadata
from jaxtl.weights import WeightsRecord

CONFIG = Config.model_validate({"phases": ({"name": "p", "epochs": 1, "train": {"head/.*": 1.0}},)})

SPLIT = SplitMetadata(images=3, sha256="0" * 64)
METADATA = RunMetadata(
    classes=("a", "b"),
    data=DataMetadata(train=SPLIT, val=SPLIT),
    weights=WeightsRecord("keras", "a.h5", "0" * 64, "keras", "new", ("head",)),
)


def test_a_run_of_an_older_version_goes_on_where_there_are_images_for_a_test(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, METADATA)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["data"].keys() == {"train", "val"}
    tests = [
        METADATA.model_copy(update={"data": DataMetadata(train=SPLIT, val=SPLIT, test=test)})
        for test in (SPLIT, SPLIT.model_copy(update={"images": 4}))
    ]
    for metadata in tests:
        directory.check_same(CONFIG, metadata)
    directory.begin(CONFIG, tests[0])
    directory.check_same(CONFIG, tests[0])
    for other in (tests[1], METADATA):
        with pytest.raises(UserError, match="its data changed"):
            directory.check_same(CONFIG, other)


def test_one_process_at_a_time_trains_in_a_directory(tmp_path):
    attempt = (
        "import sys, pathlib, jaxtl.runs.directory\n"
        "with jaxtl.runs.directory.RunDirectory(pathlib.Path(sys.argv[1])).locked(): pass"
    )
    command = [sys.executable, "-c", attempt, str(tmp_path / "run")]
    with RunDirectory(tmp_path / "run").locked():
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another process trains in" in refused.stderr
    assert subprocess.run(command, check=False).returncode == 0
    assert not (tmp_path / "run").exists()  # nothing came to be there


def test_a_path_that_is_a_pattern_is_refused(tmp_path):
    directory = RunDirectory(tmp_path / "exp[1]")
    with pytest.raises(UserError, match="cannot have any of"), directory.locked():
        pass
    assert not directory.path.exists()


def test_a_path_that_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(UserError, match="must be UTF-8"):
        RunDirectory(tmp_path / os.fsdecode(b"caf\xe9"))


def test_a_data_source_whose_path_is_not_utf8_is_read_back(tmp_path):
    source = os.fsdecode(b"/data/caf\xe9")
    data = CONFIG.data.model_copy(update={"source": source})
    config = CONFIG.model_copy(update={"data": data})
    directory = RunDirectory(tmp_path)
    directory.begin(config, METADATA.model_copy(update={"source": source}))
    assert directory.config() == config
    assert directory.metadata().source == source


@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_a_file_that_is_missing_is_named(tmp_path, name):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, METADATA)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"no run in .*: it has no {name}"):
        directory.config()


def test_what_a_run_left_that_died_before_its_first_checkpoint_is_no_hindrance(tmp_path):
    for name in ("config.json", "config.json.1a2b.part", "run.json.3c4d.part", "metrics.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoints").mkdir()
    RunDirectory(tmp_path).check_empty()
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        RunDirectory(tmp_path).check_empty()


def test_nan_is_never_written(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, METADATA)
    with pytest.raises(ValueError, match="JSON"):
        directory.finish({"loss": float("nan")})
    assert directory.metadata().result is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "{", "jaxtl: no JSON: "),
        (lambda text: "[]", "jaxtl: Input should be"),
        (lambda text: json.dumps(json.loads(text) | {"classes": "abcdef"}), "classes"),
        (lambda text: json.dumps({"classes": ["a", "b"]}), "data"),
        (lambda text: text.replace('"keras"', '"caffe"'), "weights.convention"),
        (lambda text: text.encode("utf-16").decode("latin-1"), "run.json is damaged"),
    ],
)
def test_damaged_metadata_is_refused_in_one_line(tmp_path, change, words):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, METADATA)
    file = tmp_path / "run.json"
    file.write_bytes(change(file.read_text()).encode("latin-1"))
    with pytest.raises(UserError, match=words) as error:
        directory.metadata()
    assert "\n" not in str(error.value)
    assert "RunMetadata" not in str(error.value)


@pytest.mark.parametrize("content", [b'{"phases": 3}', b"[1]", b"\xff\xfe{}", b""])
def test_a_damaged_config_is_refused_in_one_line(tmp_path, content):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, METADATA)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.json is damaged, or from another") as error:
        directory.config()
    assert "\n" not in str(error.value)


def test_a_run_of_other_data_is_refused_and_the_line_says_that_nothing_is_lost(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, METADATA)
    other = METADATA.model_copy(update={"classes": ("a", "c")})
    with pytest.raises(
        UserError, match=r"classes changed since .* stays as it is: put back"
    ) as error:
        directory.check_same(CONFIG, other)
    assert "or name another --workdir" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_newest_unfinished_run_of_the_same_config_and_data_is_found(tmp_path):
    def begun(name, config=CONFIG, metadata=METADATA):
        (tmp_path / name).mkdir()
        run = RunDirectory(tmp_path / name)
        run.begin(config, metadata)
        return run

    assert find_unfinished(tmp_path, CONFIG, METADATA) is None
    begun("other-config", config=CONFIG.model_copy(update={"seed": 1}))
    begun("other-data", metadata=METADATA.model_copy(update={"classes": ("a", "c")}))
    begun("complete").finish({"step": 1})
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("[]")
    assert find_unfinished(tmp_path, CONFIG, METADATA) is None
    older, newer = begun("older"), begun("newer")
    os.utime(older.path / "run.json", (1, 1))
    assert find_unfinished(tmp_path, CONFIG, METADATA) == newer.path
    with newer.locked():
        assert find_unfinished(tmp_path, CONFIG, METADATA) == older.path


def test_runs_that_another_process_removes_meanwhile_are_passed_over(tmp_path):
    runs = [RunDirectory(tmp_path / str(number)) for number in range(100)]
    for run in runs:
        run.path.mkdir()
        run.begin(CONFIG, METADATA)
    stop = threading.Event()

    def move_back_and_forth():
        while not stop.is_set():
            for run in runs[1:]:
                (run.path / "run.json").rename(run.path / "moved")
                (run.path / "moved").rename(run.path / "run.json")

    mover = threading.Thread(target=move_back_and_forth)
    mover.start()
    try:
        for _ in range(30):
            assert find_unfinished(tmp_path, CONFIG, METADATA) is not None
    finally:
        stop.set()
        mover.join()


def test_metadata_is_read_back_as_it_was_written(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, METADATA)
    directory.finish({"step": 3})
    assert directory.metadata().weights == METADATA.weights
    assert directory.metadata().result == {"step": 3}


def test_a_run_that_left_out_very_many_images_is_read_back(tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").write_bytes(b"content")
    many = tuple((f"a/{number:0200}.png", "damaged " * 30) for number in range(50_000))
    source = dataclasses.replace(open_all(str(tmp_path / "images")), skipped=many)
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, run_metadata(CONFIG, Splits(source, source)))
    metadata = directory.metadata()
    assert metadata.skipped_images == 50_000
    assert [image["path"] for image in metadata.skipped] == [name for name, _ in many[:1000]]


def test_a_run_is_continued_with_another_patience(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, METADATA)
    patient = CONFIG.data.model_copy(update={"retry_seconds": 600.0})
    directory.check_same(CONFIG.model_copy(update={"data": patient}), METADATA)


def test_a_run_that_goes_on_with_other_versions_says_so_and_notes_them(tmp_path, caplog):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, METADATA)
    directory.note_versions()
    assert not caplog.text
    now = directory.metadata().versions
    assert now["pillow"] == importlib.metadata.version("Pillow")
    old = now | {"jax": "0.4.1", "python": "3.9.0", "numpy": "1.0"}
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(content | {"versions": old}))
    directory.note_versions()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"this run began with python 3.9.0, now {now['python']}; jax 0.4.1, now {now['jax']}: "
        "its numbers may differ from here on"
    )
    directory.note_versions()  # once
    assert len(caplog.records) == 1
    directory.finish({"step": 3})
    metadata = directory.metadata()
    assert (metadata.versions, metadata.continued) == (old, (now,))


def test_a_complete_run_without_checkpoints_is_not_begun_anew(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, METADATA)
    directory.check_empty()  # it died before its first checkpoint
    directory.finish({"step": 3})
    with pytest.raises(UserError, match="is a complete run without a checkpoint: copy"):
        directory.check_empty()
