"""The store on disk: an array is complete or not there, and there is never more than the limit."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from full_disk import files_no_longer_than

from jaxtl.training.feature_store import FeatureStore

DAY = 24 * 60 * 60
ROW = (2, 5)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "below" / "store"


@pytest.fixture
def store(folder):
    return FeatureStore(folder, 1e6)


def rows(count, seed=0, dtype="float32"):
    drawn = np.random.default_rng(seed).normal(size=(count, *ROW))
    return drawn.astype(jnp.dtype(dtype))


def put(store, name, array):
    with store.writing({"name": name}, array.shape, array.dtype) as write:
        for part in np.array_split(array, 3):
            write(part)


def six_rows():
    return {"name": "a"}, (6, *ROW), np.dtype("float32")


def find(store, name):
    return store.find({"name": name})


def places(folder):
    """The folders of complete arrays by their name."""
    found = {path: json.loads((path / "about.json").read_text()) for path in folder.glob("*/")}
    return {about["metadata"]["name"]: path for path, about in found.items()}


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_array_is_found_again_by_what_it_was_made_from(store, folder, dtype):
    array = rows(7, dtype=dtype)
    metadata = {"a": [1, None, "x"], "b": {"c": 0.5}}
    assert store.find(metadata) is None
    with store.writing(metadata, array.shape, array.dtype) as write:
        write(array[:3])
        assert store.find(metadata) is None
        write(array[3:])
    found = FeatureStore(folder, 1e6).find({"b": {"c": 0.5}, "a": [1, None, "x"]})
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()
    assert found.shape == array.shape
    assert store.find(metadata | {"a": [1, None, "y"]}) is None


def test_a_write_that_fails_leaves_nothing(store, folder):
    with contextlib.suppress(ZeroDivisionError), store.writing(*six_rows()) as write:
        write(rows(3))
        write(1 / 0)
    assert find(store, "a") is None
    assert list(folder.iterdir()) == []


def test_an_array_with_rows_missing_is_refused(store, folder):
    with pytest.raises(RuntimeError, match="120 bytes"), store.writing(*six_rows()) as write:
        write(rows(3))
    assert list(folder.iterdir()) == []


DIES = """
import os, signal, sys
import numpy as np
from pathlib import Path
from jaxtl.training.feature_store import FeatureStore
store = FeatureStore(Path(sys.argv[1]), 1e6)
with store.writing({"name": "a"}, (6,), np.dtype("float32")) as write:
    write(np.zeros(3, np.float32))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_what_is_not_found_and_goes_after_a_day(store, folder):
    died = subprocess.run([sys.executable, "-c", DIES, str(folder)], check=False)
    assert died.returncode == -signal.SIGKILL
    (part,) = folder.iterdir()
    assert find(store, "a") is None
    put(store, "b", rows(2))
    assert part.exists()  # it may be that of a process that is at it
    age(part, DAY + 60)
    put(store, "c", rows(2))
    assert not part.exists()
    assert places(folder).keys() == {"b", "c"}


def test_what_was_used_longest_ago_makes_room(folder):
    each = rows(10).nbytes
    store = FeatureStore(folder, 3.5 * each)
    for name in "abc":
        put(store, name, rows(10))
    for name, seconds in {"a": 300, "b": 200, "c": 100}.items():
        age(places(folder)[name], seconds)
    assert find(store, "a") is not None  # used now
    put(store, "d", rows(10))
    assert places(folder).keys() == {"a", "c", "d"}
    put(store, "e", rows(20))
    assert places(folder).keys() == {"d", "e"}


def test_the_limit_holds_through_any_sequence_of_writes(folder):
    """Against a list in order of use."""
    limit, order = 1000, []
    store, rng = FeatureStore(folder, limit), np.random.default_rng(0)
    sizes = dict.fromkeys("abcdefgh", 0)
    for now in range(60):
        name = str(rng.choice(list(sizes)))
        known = find(store, name)
        assert (known is not None) == (name in order)
        if known is None:
            sizes[name] = 40 * int(rng.integers(1, 16))
            put(store, name, rows(sizes[name] // 40))
            while sum(sizes[other] for other in order) + sizes[name] > limit:
                order.pop(0)
        order = [other for other in order if other != name] + [name]
        place = places(folder)[name]
        os.utime(place, (now, now))  # a clock without ties
        files = sum(path.stat().st_size for path in folder.rglob("rows.bin"))
        assert files == sum(sizes[other] for other in order) <= limit
        assert places(folder).keys() == set(order)


@pytest.mark.parametrize(
    "about",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"shape": [7, 2, 5]}',
        '{"shape": [7, 2, 5], "dtype": "float33"}',
        '{"shape": [7, 2, 5], "dtype": null, "metadata": {}}',
        '{"shape": 7, "dtype": "float32"}',
        '{"shape": [8, 2, 5], "dtype": "float32"}',
        '{"shape": [6, 2, 5], "dtype": "float32"}',
        '{"shape": [7, 2, "x"], "dtype": "float32"}',
    ],
)
def test_an_array_whose_description_is_damaged_is_not_there_and_can_be_made_anew(
    store, folder, about
):
    put(store, "a", rows(7))
    (place,) = folder.iterdir()
    (place / "about.json").write_text(about)
    assert find(store, "a") is None
    put(store, "a", rows(7, seed=1))
    assert find(store, "a").tobytes() == rows(7, seed=1).tobytes()


@pytest.mark.parametrize("change", [-1, -40, -280, 40])
def test_an_array_of_the_wrong_length_is_not_there(store, folder, change):
    put(store, "a", rows(7))
    (place,) = folder.iterdir()
    with (place / "rows.bin").open("r+b") as file:
        file.truncate(280 + change)
    assert find(store, "a") is None


@pytest.mark.parametrize("missing", ["about.json", "rows.bin"])
def test_an_array_without_one_of_its_files_is_not_there(store, folder, missing):
    put(store, "a", rows(7))
    (path,) = folder.rglob(missing)
    path.unlink()
    assert find(store, "a") is None


def test_an_array_that_two_make_at_once_is_there(store):
    array = rows(6)
    with store.writing({"name": "a"}, array.shape, array.dtype) as one:
        one(array[:2])
        put(store, "a", array)
        one(array[2:])
    assert find(store, "a").tobytes() == array.tobytes()


def test_rows_in_use_outlive_their_removal(folder):
    store = FeatureStore(folder, 500)
    put(store, "a", rows(10))
    held = find(store, "a")
    put(store, "b", rows(10))
    assert find(store, "a") is None
    assert held.tobytes() == rows(10).tobytes()


def test_what_is_larger_than_the_disk_is_refused_and_nothing_makes_room_in_vain(folder):
    store = FeatureStore(folder, 1e30)
    put(store, "a", rows(10))
    with (
        pytest.raises(OSError, match="No space left") as caught,
        store.writing({"name": "b"}, (10**18,), np.dtype("float32")),
    ):
        pytest.fail("it must not begin")
    assert caught.value.errno == errno.ENOSPC
    assert places(folder).keys() == {"a"}


def test_a_disk_that_is_full_half_way_is_an_error_that_leaves_nothing(store, folder):
    array = rows(10_000)
    with pytest.raises(OSError, match="too large"), files_no_longer_than(100_000):
        put(store, "a", array)
    assert list(folder.iterdir()) == []
    assert find(store, "a") is None


def test_a_file_in_place_of_the_folder_is_an_error(store, folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("")
    assert find(store, "a") is None
    with pytest.raises(OSError, match=r"store"):
        put(store, "a", rows(3))


WRITES_AGAIN_AND_AGAIN = """
import sys
from pathlib import Path
import numpy as np
from jaxtl.training.feature_store import FeatureStore
store, rows = FeatureStore(Path(sys.argv[1]), 1e9), np.ones((4, 5), np.float32)
for number in range(40):
    sys.stdin.readline()
    with store.writing({"number": number}, rows.shape, rows.dtype) as write:
        write(rows)
    found = store.find({"number": number})
    print(found is not None and found.tobytes() == rows.tobytes(), flush=True)
"""


@pytest.mark.slow
def test_processes_that_store_the_same_array_at_once_all_find_it(folder):
    command = [sys.executable, "-c", WRITES_AGAIN_AND_AGAIN, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(3)]
        for number in range(40):
            for writer in writers:
                writer.stdin.write("\n")
            answers = [writer.stdout.readline() for writer in writers]
            if answers != ["True\n"] * 3:
                for writer in writers:
                    writer.kill()
                pytest.fail(f"array {number}: {answers}")
    assert len(list(folder.iterdir())) == 40
