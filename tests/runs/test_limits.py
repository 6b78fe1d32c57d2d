"""Files of a run directory that somebody made up: refused in one line, and without much memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorstore

from jaxtl.errors import UserError
from jaxtl.files import read_json, sealed, unsealed
from jaxtl.runs.arrays import Damaged, check_arrays, read_arrays, write_arrays
from jaxtl.runs.metrics_log import read_metrics

LINE = b'{"phase": "p", "epoch": 1, "step": 1, "split": "val", "loss": 1.0, "accuracy": 0.5}\n'


def sparse(path, size, start=b""):
    """A file that seems to be that large, and takes no space."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def test_metrics_that_are_too_large_are_refused(tmp_path):
    file = tmp_path / "metrics.jsonl"
    sparse(file, 10_000_000_000, LINE)
    with pytest.raises(UserError, match="is larger than"):
        read_metrics(file)
    sparse(file, 200_000_000, LINE)
    with pytest.raises(UserError, match="a line has more than"):
        read_metrics(file)
    file.write_bytes(LINE + b" " * 20_000 + LINE)
    with pytest.raises(UserError, match="a line has more than"):
        read_metrics(file)
    file.write_bytes(LINE * 3)
    assert len(read_metrics(file)) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"[" * 30 + b"]" * 30, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b"1" * 5000, "an integer of 5000 digits"),
        (b'{"step": -1234567890123456789}', "an integer of 20 digits"),
    ],
)
def test_json_that_takes_too_much_is_refused(tmp_path, text, words):
    file = tmp_path / "run.json"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=words):
        read_json(file)


def test_large_json_is_refused_before_it_is_read(tmp_path):
    sparse(tmp_path / "run.json", 100_000_000_000)
    with pytest.raises(ValueError, match="larger than 16 MB"):
        read_json(tmp_path / "run.json")


def test_json_within_the_limits_is_read(tmp_path):
    content = {"a": [1, -2.5, None, {"b": [[[10**17]]]}], "c": float("inf")}
    (tmp_path / "a.json").write_text(json.dumps(sealed(content)))
    assert unsealed(read_json(tmp_path / "a.json")) == content
    for changed in ({"a": []}, {"d": 1}, {"sha256": "0" * 64}):
        with pytest.raises(ValueError, match="checksum"):
            unsealed(sealed(content) | changed)


def declaring(place, shape):
    """Writes arrays of which one says that it has another shape; there are no numbers of it."""
    write_arrays(place, {"a": np.ones((2, 2), np.float32)})
    kvstore = {"driver": "ocdbt", "base": f"file://{place}/", "path": "a/"}
    metadata = {"shape": shape, "chunks": shape, "dtype": "<f4", "compressor": None}
    tensorstore.open(
        {"driver": "zarr", "kvstore": kvstore, "metadata": metadata},
        create=True,
        delete_existing=True,
    ).result()


def test_arrays_of_terabytes_that_are_not_there_are_not_made(tmp_path):
    place = tmp_path / "arrays"
    declaring(place, [1_000_000, 1_000_000])
    with pytest.raises(Damaged, match="say that they hold 4,000,000,000,000") as error:
        check_arrays(place, {"a": "0" * 32})
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="say that they hold"):
        read_arrays(place, {"a": np.ones((2, 2), np.float32)})


def test_metadata_of_gigabytes_is_not_read(tmp_path):
    place = tmp_path / "arrays"
    write_arrays(place, {"a": np.ones((2, 2), np.float32)})
    sparse(place / "_METADATA", 50_000_000_000)
    with pytest.raises(Damaged, match="_METADATA is of 50,000,000,000 bytes"):
        check_arrays(place, {"a": "0" * 32})


def test_made_up_run_directories_take_little_memory(tmp_path):
    """A process that may have 3 GB reads all of them."""
    for name, text in (
        ("config.json", b'{"phases": ' + b"[" * 5_000_000),
        ("run.json", b"[" + b"[]," * 5_000_000 + b"[]]"),
        ("metrics.jsonl", LINE[:-2] + b', "a": "' + b"x" * 200_000_000),
    ):
        (tmp_path / name).write_bytes(text)
    program = """if True:
        import resource, sys
        from pathlib import Path
        resource.setrlimit(resource.RLIMIT_DATA, (3_000_000_000,) * 2)
        from jaxtl.errors import UserError
        from jaxtl.runs.directory import RunDirectory
        from jaxtl.runs.metrics_log import read_metrics
        run = RunDirectory(Path(sys.argv[1]))
        for read in (run.config, run.metadata, lambda: read_metrics(run.metrics)):
            try:
                read()
            except UserError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3
    assert done.stdout.count("is damaged") == 3
