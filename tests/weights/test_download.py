"""A download is whole or it is not there, and what has come is not fetched twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from file_server import CONTENT, Server, refused_address, serving

from jaxtl.errors import UserError
from jaxtl.weights.download import download
from jaxtl.weights.unavailable import Unavailable


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "cache" / "weights.h5"


def left(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()} - {"weights.h5.lock"}


def begin(path: Path, content: bytes) -> None:
    """Leaves what an earlier download of version 1 would have left."""
    path.parent.mkdir()
    path.with_name("weights.h5.part").write_bytes(content)
    path.with_name("weights.h5.part.etag").write_text('"v1"')


def test_a_file_is_fetched_once_and_then_served_from_the_cache(server, path):
    assert download(server.address + "weights.h5", path) == path
    assert path.read_bytes() == CONTENT
    assert left(path) == {"weights.h5"}

    download(server.address + "weights.h5", path)
    assert server.ranges_asked == [None]


def test_a_download_that_is_cut_off_goes_on_from_there(server, path):
    server.cuts = 2

    download(server.address + "weights.h5", path)

    assert path.read_bytes() == CONTENT
    assert server.ranges_asked == [None, "bytes=400000-", "bytes=800000-"]
    assert left(path) == {"weights.h5"}


def test_a_later_call_goes_on_from_where_an_earlier_one_gave_up(server, path):
    server.cuts, server.cut_at = 4, 100_000
    with pytest.raises(Unavailable, match="cut off after 400000 of 1048576 bytes, 4 attempts"):
        download(server.address + "weights.h5", path)
    assert not path.exists()

    download(server.address + "weights.h5", path)

    assert server.ranges_asked[4:] == ["bytes=400000-"]
    assert path.read_bytes() == CONTENT


def test_a_server_without_ranges_is_asked_for_all_of_the_file(server, path):
    server.ranges, server.cuts = False, 1

    download(server.address + "weights.h5", path)

    assert server.ranges_asked == [None, "bytes=400000-"]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ['"v2"', None])
def test_a_file_that_changed_in_between_is_not_mixed_with_the_old_one(server, path, etag):
    begin(path, CONTENT[:1000])
    server.content, server.etag = CONTENT[::-1], etag

    download(server.address + "weights.h5", path)

    assert server.ranges_asked == ["bytes=1000-"]
    assert path.read_bytes() == CONTENT[::-1]


def test_a_part_that_is_longer_than_the_file_is_dropped(server, path):
    begin(path, b"?" * (len(CONTENT) + 1))

    download(server.address + "weights.h5", path)

    assert path.read_bytes() == CONTENT


def test_a_stalled_download_is_taken_up_again(server, path):
    server.stall, server.cuts = True, 1

    download(server.address + "weights.h5", path, stall_timeout=0.3)

    assert server.ranges_asked == [None, "bytes=400000-"]
    assert path.read_bytes() == CONTENT


def test_a_server_that_fails_for_a_moment_is_asked_again(server, path):
    server.failures = 1

    download(server.address + "weights.h5", path)

    assert path.read_bytes() == CONTENT


def test_a_file_that_does_not_exist_is_named(server, path):
    server.missing = True
    with pytest.raises(Unavailable, match=r"has no such file \(.*/weights\.h5 answered 404\)"):
        download(server.address + "weights.h5", path)
    assert len(server.ranges_asked) == 1


def test_a_server_that_never_answers_costs_the_time_for_an_answer_once(server, path):
    server.silent = True
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1 timed out after 0\.3 s"):
        download(server.address + "weights.h5", path, answer_timeout=0.3)
    assert time.monotonic() - began < 2


def test_a_refused_connection_is_not_tried_again(path):
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1 Connection refused"):
        download(refused_address() + "weights.h5", path)
    assert time.monotonic() - began < 2


def test_a_known_checksum_is_checked(server, path):
    with pytest.raises(UserError, match="wrong checksum: md5 is"):
        download(server.address + "weights.h5", path, md5="0" * 32)
    assert left(path) <= {"weights.h5.part.etag"}

    download(server.address + "weights.h5", path, md5=hashlib.md5(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT


def test_several_that_want_the_same_file_fetch_it_once(server, path):
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(download, server.address + "weights.h5", path) for _ in range(4)]
        assert {job.result() for job in jobs} == {path}
    assert server.ranges_asked == [None]
    assert path.read_bytes() == CONTENT
