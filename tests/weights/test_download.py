"""A download is whole, checked and in place, or it is not there; nobody waits for minutes."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from file_server import CONTENT, Server, refused_address, serving

from jaxtl.errors import UserError
from jaxtl.weights.download import cached, download
from jaxtl.weights.unavailable import Unavailable

MD5 = hashlib.md5(CONTENT).hexdigest()
PROXIES = [f"{scheme}_proxy" for scheme in ("http", "https", "all", "no")]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "cache" / "weights.h5"


def left(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


@pytest.mark.parametrize("md5", [None, MD5])
def test_a_file_is_fetched_once_and_then_served_from_the_cache(server, path, md5):
    assert download(server.address + "weights.h5", path, md5=md5) == path
    assert path.read_bytes() == CONTENT
    assert left(path) == {"weights.h5"}

    download(server.address + "weights.h5", path, md5=md5)
    assert server.gets == ["/weights.h5"]


@pytest.mark.parametrize("says_length", [True, False])
def test_a_download_that_is_cut_off_is_begun_again(server, path, says_length):
    server.cuts, server.says_length = 2, says_length

    download(server.address + "weights.h5", path)

    assert path.read_bytes() == CONTENT
    assert len(server.gets) == 3
    assert left(path) == {"weights.h5"}


def test_an_answer_that_is_shorter_than_the_file_is_not_taken_for_it(server, path):
    server.cuts, server.closes_early = 1, True

    download(server.address + "weights.h5", path)

    assert path.read_bytes() == CONTENT


def test_nothing_is_left_of_a_download_that_is_cut_off_each_time(server, path):
    server.cuts = 3
    with pytest.raises(Unavailable, match=r"could not be downloaded \(.*, 3 attempts; run it"):
        download(server.address + "weights.h5", path)
    assert left(path) == set()


def test_a_stalled_download_is_begun_again(server, path):
    server.stall, server.cuts = True, 1

    download(server.address + "weights.h5", path, stall_timeout=0.3)

    assert len(server.gets) == 2
    assert path.read_bytes() == CONTENT


def test_a_server_that_fails_for_a_moment_is_asked_again(server, path):
    server.failures = 1

    download(server.address + "weights.h5", path)

    assert path.read_bytes() == CONTENT


def test_a_file_that_does_not_exist_is_named(server, path):
    server.missing = True
    with pytest.raises(Unavailable, match=r"has no such file \(.*/weights\.h5 answered 404\)"):
        download(server.address + "weights.h5", path)
    assert server.gets == []


def test_a_server_that_refuses_is_named_with_its_answer(server, path):
    server.forbidden = True
    with pytest.raises(Unavailable, match=r"could not be reached \(.*/weights\.h5 answered 403\)"):
        download(server.address + "weights.h5", path)


def test_a_server_that_never_answers_costs_the_time_for_an_answer_once(server, path):
    server.silent = True
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1 timed out after 0\.3 s"):
        download(server.address + "weights.h5", path, answer_timeout=0.3)
    assert time.monotonic() - began < 2
    assert left(path) == set()


def test_a_refused_connection_is_not_tried_again(path):
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1 Connection refused"):
        download(refused_address() + "weights.h5", path)
    assert time.monotonic() - began < 2


def test_a_host_without_an_address_is_named(path):
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"could not be reached \(weights\.invalid "):
        download("http://weights.invalid/weights.h5", path)
    assert time.monotonic() - began < 5


def test_a_proxy_of_the_environment_is_asked(server, path, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    download("http://weights.invalid/weights.h5", path)
    assert path.read_bytes() == CONTENT
    assert server.gets == ["http://weights.invalid/weights.h5"]


def test_a_download_with_another_checksum_is_not_kept(server, path):
    with pytest.raises(
        UserError, match=f"wrong checksum: MD5 .* expected md5:{'0' * 32} but got {MD5}"
    ):
        download(server.address + "weights.h5", path, md5="0" * 32)
    assert left(path) == set()

    download(server.address + "weights.h5", path, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_a_cached_file_that_is_damaged_is_named_and_replaced(server, path, caplog):
    download(server.address + "weights.h5", path, md5=MD5)
    path.write_bytes(CONTENT[:-1] + b"?")

    download(server.address + "weights.h5", path, md5=MD5)

    assert path.read_bytes() == CONTENT
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [f"weights: {path} has the wrong checksum and is replaced"]


def test_a_cached_file_that_is_damaged_is_not_used_where_there_is_no_network(path):
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(Unavailable, match="Connection refused"):
        download(refused_address() + "weights.h5", path, md5=MD5)
    assert left(path) == {"weights.h5"}


def test_a_file_that_another_process_put_in_place_stays_when_this_one_is_cut_off(path):
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1] + b"?")

    def fetch(part: str) -> None:
        path.write_bytes(CONTENT)  # the other process
        raise requests.ConnectionError("cut off")

    with pytest.raises(requests.ConnectionError):
        cached(path, "source", fetch, checksum=f"md5:{MD5}", retries=1)
    assert path.read_bytes() == CONTENT


def test_threads_that_want_the_same_file_all_have_it_whole(server, path):
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(download, server.address + "weights.h5", path) for _ in range(4)]
        assert {job.result() for job in jobs} == {path}
    assert path.read_bytes() == CONTENT
    assert left(path) == {"weights.h5"}


DOWNLOAD = """
import pathlib, sys
from jaxtl.weights.download import download
print(len(download(sys.argv[1], pathlib.Path(sys.argv[2])).read_bytes()))
"""


def command(server: Server, path: Path) -> list[str]:
    return [sys.executable, "-c", DOWNLOAD, server.address + "weights.h5", str(path)]


def test_a_process_that_is_killed_leaves_no_file_and_another_one_gets_it_whole(server, path):
    server.pause = 30
    killed = subprocess.Popen(command(server, path))
    other = subprocess.Popen(command(server, path), stdout=subprocess.PIPE, text=True)
    while len(server.gets) < 2:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert not path.exists()
    server.closing.set()
    assert other.communicate(timeout=60)[0].strip() == str(len(CONTENT))
    assert path.read_bytes() == CONTENT


def test_a_terminal_sees_how_far_it_is(server, path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run(command(server, path), stderr=theirs, stdout=subprocess.DEVNULL, check=True)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(ours, 4096):
            seen += part
    os.close(ours)
    assert b"100%" in seen


def test_a_pipe_sees_no_bar(server, path):
    done = subprocess.run(command(server, path), capture_output=True, text=True, check=True)
    assert done.stderr == ""
