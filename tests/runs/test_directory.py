"""The run directory as a place of its own."""

import subprocess
import sys

import pytest

from jaxtl.config.config_file import check
from jaxtl.errors import UserError
from jaxtl.runs.directory import RunDirectory

CONFIG = check({"phases": ({"name": "p", "epochs": 1, "train": {"head/.*": 1.0}},)})


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


def test_what_a_run_left_that_died_before_its_first_checkpoint_is_no_hindrance(tmp_path):
    for name in ("config.json", "config.json.part", "run.json.part", "metrics.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoints").mkdir()
    RunDirectory(tmp_path).check_empty()
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        RunDirectory(tmp_path).check_empty()


def test_numbers_that_are_none_are_never_written(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, {"classes": ["a"]})
    with pytest.raises(ValueError, match="JSON"):
        directory.finish({"loss": float("nan")})
    assert "result" not in directory.metadata()


def test_a_damaged_run_is_refused_in_one_line(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.begin(CONFIG, {"classes": ["a"]})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json is damaged"):
        directory.metadata()
    (tmp_path / "config.json").write_text('{"phases": 3}')
    with pytest.raises(UserError, match="is no config of this version") as error:
        directory.config()
    assert "\n" not in str(error.value)
