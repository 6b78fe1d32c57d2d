"""The measurements of a run, as JSON lines and for TensorBoard."""

import json
import os
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxtl.errors import UserError
from jaxtl.runs.metrics_log import MetricsLog, read_metrics


@pytest.fixture
def open_log(tmp_path):
    """A function that opens the log of a run that was saved at a step."""
    return lambda until: MetricsLog(
        tmp_path / "metrics.jsonl", tmp_path / "tensorboard", until=until
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(log, *steps):
    for step in steps:
        log.write("head", step // 10, step, "train", {"loss": 1 / step, "accuracy": 0.5})
        log.write("head", step // 10, step, "val", {"loss": 2 / step, "accuracy": 0.25})
    log.close()


def events(folder):
    """The events of TensorBoard's files: records of length, checksum, data, checksum."""
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_every_measurement_is_one_json_object_a_line(open_log, path):
    write(open_log(0), 10)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    place = {"phase": "head", "epoch": 1, "step": 10}
    assert first == place | {"split": "train", "loss": 0.1, "accuracy": 0.5}
    assert second == place | {"split": "val", "loss": 0.2, "accuracy": 0.25}


def test_measurements_are_on_disk_as_soon_as_they_are_written(open_log, path):
    log = open_log(0)
    log.write("head", 1, 10, "train", {"loss": 1.0, "accuracy": 0.5})
    assert len(read_metrics(path)) == 1
    log.close()


def test_what_came_after_the_last_checkpoint_is_dropped(open_log, path):
    write(open_log(0), 10, 20, 30)
    before = path.read_text().splitlines()
    open_log(20).close()
    assert path.read_text().splitlines() == before[:4]


def test_a_continued_log_goes_on_where_the_checkpoint_was(open_log, path):
    write(open_log(0), 10, 20)
    write(open_log(10), 20, 30)
    assert [line["step"] for line in read_metrics(path)] == [10, 10, 20, 20, 30, 30]


@pytest.mark.parametrize("cut", ['{"phase": "he', "", '{"phase": "head", "epoch": 2, "step": 5}'])
def test_a_last_line_that_a_crash_cut_off_does_not_count(open_log, path, cut):
    write(open_log(0), 10)
    whole = path.read_text()
    path.write_text(whole + cut)
    assert len(read_metrics(path)) == 2
    open_log(10).close()
    assert path.read_text() == whole


@pytest.mark.parametrize(
    "line",
    [
        b"[1, 2]",
        b"\xff\xfe",
        b"",
        b'{"phase": "head", "epoch": 1, "step": 1, "split": "val", "loss": 1.0}',
        b'{"phase": "head", "epoch": 1, "step": 1, "split": "x", "loss": 1.0, "accuracy": 1.0}',
    ],
)
def test_a_damaged_line_is_refused_in_one_line(open_log, path, line):
    write(open_log(0), 10)
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged: ") as error:
        read_metrics(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", [0, 1, 3, 4])
@pytest.mark.parametrize("size", [100, 10_000, 30_123])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_torn_log_loses_no_more_than_the_lines_that_are_damaged(
    open_log, path, caplog, place, size, end
):
    """A power cut may leave zeros in place of what was not on disk yet."""
    write(open_log(0), 10, 20)
    lines = path.read_bytes().splitlines(keepends=True)
    torn = [*lines[:place], bytes(size) + end, *lines[place + 1 :]]
    path.write_bytes(b"".join(torn))
    open_log(20).close()
    kept = path.read_bytes().splitlines(keepends=True)
    assert set(kept) <= set(lines)
    assert len(kept) >= 4 - 2  # without an end the zeros run into the next line
    cut_off = place >= 3 and not end and size < 10_000
    assert ("metrics.jsonl is damaged: " in caplog.text) == (not cut_off)
    caplog.clear()
    open_log(20).close()
    assert not caplog.text
    assert path.read_bytes() == b"".join(kept)


def test_nothing_stays_open_after_a_log_that_could_not_be_opened_again(open_log, path):
    log = open_log(0)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        log.forget(0)
    log.close()
    log.close()
    opened = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.exists()]
    assert not [file for file in opened if str(path.parent) in file]


def test_tensorboard_gets_the_same_numbers(open_log, path, tmp_path):
    write(open_log(0), 10, 20)
    found = {
        (value.tag, event.step): value.simple_value
        for event in events(tmp_path / "tensorboard")
        for value in event.summary.value
    }
    expected = {
        (f"{line['split']}/{name}", line["step"]): line[name]
        for line in read_metrics(path)
        for name in ("loss", "accuracy")
    }
    assert len(expected) == 8
    assert found == pytest.approx(expected)


def test_tensorboard_is_told_to_forget_what_came_after_the_last_checkpoint(open_log, tmp_path):
    write(open_log(0), 10, 20)
    for file in (tmp_path / "tensorboard").iterdir():
        file.unlink()
    write(open_log(10), 20)
    starts = [e for e in events(tmp_path / "tensorboard") if e.HasField("session_log")]
    assert [event.step for event in starts] == [11]


def test_a_run_that_goes_back_forgets_what_it_measured_since(open_log, path, tmp_path):
    log = open_log(0)
    for step in (10, 20, 30):
        log.write("head", step // 10, step, "val", {"loss": 1.0, "accuracy": 0.5})
    log.forget(10)
    log.write("head", 2, 20, "val", {"loss": 2.0, "accuracy": 0.5})
    log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(10, 1.0), (20, 2.0)]
    restarts = [
        event.step for event in events(tmp_path / "tensorboard") if event.session_log.status
    ]
    assert restarts == [1, 11]
