"""The store on disk: an array is found once it is complete, rows that are on disk are not written
again, one process at a time fills an array, and there is never more than the limit."""

import contextlib
import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from full_disk import files_no_longer_than

from jaxtl.training.feature_store import FeatureStore

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


def filling(store, name, array):
    return store.filling({"name": name}, array.shape, array.dtype)


def put(store, name, array):
    """Stores what is missing of an array; returns how many rows were there."""
    with filling(store, name, array) as part:
        there = part.rows
        for missing in np.array_split(array[there:], 3):
            part.write(missing)
    return there


def put_around(store, name, array, meanwhile):
    """Stores an array, and lets something happen between its rows."""
    with filling(store, name, array) as part:
        part.write(array[:3])
        meanwhile()
        part.write(array[3:])


def find(store, name):
    return store.find({"name": name})


def places(folder):
    """The folders of arrays, complete or not, by their name."""
    found = {path: json.loads((path / "about.json").read_text()) for path in folder.glob("*/")}
    return {about["metadata"]["name"]: path for path, about in found.items()}


def left(folder):
    """The arrays, complete or not, by the names of their folders."""
    return [path.name for path in folder.glob("*/")]


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_array_is_found_again_by_what_it_was_made_from(store, folder, dtype):
    array = rows(7, dtype=dtype)
    metadata = {"a": [1, None, "x"], "b": {"c": 0.5}}
    assert store.find(metadata) is None
    with store.filling(metadata, array.shape, array.dtype) as part:
        part.write(array[:3])
        assert store.find(metadata) is None
        part.write(array[3:])
    found = FeatureStore(folder, 1e6).find({"b": {"c": 0.5}, "a": [1, None, "x"]})
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()
    assert found.shape == array.shape
    assert store.find(metadata | {"a": [1, None, "y"]}) is None


def test_rows_that_were_written_before_an_error_are_kept_and_the_rest_follows(store):
    array = rows(6)
    with contextlib.suppress(ZeroDivisionError), filling(store, "a", array) as part:
        part.write(array[:4])
        part.write(1 / 0)
    assert find(store, "a") is None
    assert put(store, "a", array) == 4
    assert find(store, "a").tobytes() == array.tobytes()


def test_an_array_that_is_complete_is_not_written_again(store, folder):
    array = rows(6)
    put(store, "a", array)
    before = [path.stat().st_ino for path in sorted(folder.rglob("*.*"))]
    assert put(store, "a", array) == 6
    assert [path.stat().st_ino for path in sorted(folder.rglob("*.*"))] == before
    assert find(store, "a").tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("length", "trusted"), [(160, 4), (161, 4), (200, 4), (240, 4), (159, 0), (120, 0), (0, 0)]
)
def test_what_a_power_cut_may_leave_beyond_or_short_of_the_known_rows_is_not_trusted(
    store, folder, length, trusted
):
    """As if rows were lost that were on disk, or came there before they were known to be."""
    array = rows(6)
    with filling(store, "a", array) as part:
        part.write(array[:4])
    (file,) = folder.rglob("rows.bin")
    file.write_bytes((array[:4].tobytes() + b"\xff" * 80)[:length])
    assert find(store, "a") is None
    assert put(store, "a", array) == trusted
    assert find(store, "a").tobytes() == array.tobytes()


def test_rows_of_another_shape_or_type_are_not_continued(store):
    for array in (rows(6), rows(7), rows(7, dtype="bfloat16")):
        with filling(store, "a", array) as part:
            assert part.rows == 0
            part.write(array[:4])
    assert put(store, "a", array) == 4


FILLS_SLOWLY = """
import errno, sys, time
from pathlib import Path
import numpy as np
from jaxtl.training.feature_store import FeatureStore
folder, limit, name, count, wait = sys.argv[1:]
try:
    with FeatureStore(Path(folder), float(limit)).filling(
        {"name": name}, (int(count), 2, 5), np.dtype("float32")
    ) as part:
        print("fills from", part.rows, flush=True)
        while part.rows < int(count):
            part.write(np.full((1, 2, 5), part.rows, np.float32))
            time.sleep(float(wait))
except OSError as error:
    print(errno.errorcode[error.errno], error.strerror, flush=True)
"""


@contextlib.contextmanager
def fills_slowly(folder, name, count, *, limit=1e6, wait=0.05):
    """A process that fills an array with the numbers of its rows."""
    arguments = [str(folder), str(limit), name, str(count), str(wait)]
    command = [sys.executable, "-c", FILLS_SLOWLY, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def numbered(count):
    return np.broadcast_to(np.arange(count, dtype=np.float32)[:, None, None], (count, *ROW)).copy()


def until(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within a minute")


def done(folder):
    """How many rows of the only array are known to be on disk."""
    (about,) = folder.rglob("about.json")
    return json.loads(about.read_text())["done"]


def size(folder):
    """The bytes of all rows."""
    taken = 0
    for path in folder.rglob("rows.bin"):
        with contextlib.suppress(OSError):  # another process removed it
            taken += path.stat().st_size
    return taken


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_its_rows_to_the_next_one(store, folder):
    with fills_slowly(folder, "a", 10_000, wait=0.01) as process:
        assert process.stdout.readline() == "fills from 0\n"
        until(lambda: done(folder) > 0)
        process.kill()
        process.wait()
    assert find(store, "a") is None
    there = done(folder)
    assert put(store, "a", numbered(10_000)) == there
    assert find(store, "a").tobytes() == numbered(10_000).tobytes()


@pytest.mark.slow
def test_a_process_that_is_interrupted_leaves_all_its_rows(store, folder):
    with fills_slowly(folder, "a", 10_000, wait=0.01) as process:
        assert process.stdout.readline() == "fills from 0\n"
        until(lambda: size(folder) > 400)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    there = done(folder)
    assert put(store, "a", numbered(10_000)) == there >= 10
    assert find(store, "a").tobytes() == numbered(10_000).tobytes()


def test_one_process_at_a_time_fills_an_array_and_its_death_lets_another_one(store, folder):
    array = numbered(10_000)
    with fills_slowly(folder, "a", 10_000, wait=1) as process:
        assert process.stdout.readline() == "fills from 0\n"
        for _ in range(3):
            with pytest.raises(BlockingIOError), filling(store, "a", array):
                pytest.fail("two fill it")
        put(store, "b", rows(3))  # others are free
        process.kill()
        process.wait()
    put(store, "a", array)
    assert find(store, "a").tobytes() == array.tobytes()


@pytest.mark.slow
def test_what_processes_fill_at_once_never_takes_more_than_the_limit(folder):
    limit, most = 1000, 0  # an array of 20 rows takes 800
    with contextlib.ExitStack() as stack:
        fillers = [
            stack.enter_context(fills_slowly(folder, name, 20, limit=limit)) for name in "abcd"
        ]
        while any(filler.poll() is None for filler in fillers):
            most = max(most, size(folder))
            time.sleep(0.005)
        said = [filler.stdout.read().split()[0] for filler in fillers]
    # Others met it while it filled, or came to the lock of the store at the same moment, or came
    # later and removed its array.
    assert "fills" in said
    assert set(said) <= {"fills", "ENOSPC", "EAGAIN"}
    assert most <= limit
    assert size(folder) == 800


@pytest.mark.slow
def test_an_array_counts_as_a_whole_while_it_is_filled_and_makes_room_once_it_is_not(folder):
    store = FeatureStore(folder, 1000)
    with fills_slowly(folder, "a", 20, limit=1000, wait=60) as process:
        assert process.stdout.readline() == "fills from 0\n"
        put(store, "b", rows(5))
        until(lambda: size(folder) == 240)  # there is room, but not once "a" is whole
        with pytest.raises(OSError, match="no room beside") as caught:
            put(store, "c", rows(6))
        assert caught.value.errno == errno.ENOSPC
        assert places(folder).keys() == {"a", "b"}
        process.kill()
        process.wait()
    age(places(folder)["a"], 100)  # of the two it was used longest ago
    put(store, "c", rows(20))
    assert places(folder).keys() == {"b", "c"}


NO_LOCKS = """
import ctypes, errno, struct, sys
# A seccomp filter: the system call flock fails as it does on a file system without locks.
allow, refuse = 0x7FFF0000, 0x00050000 | errno.ENOLCK
lines = (0x20, 0, 0, 0), (0x15, 0, 1, 73), (0x06, 0, 0, refuse), (0x06, 0, 0, allow)
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack("HP", len(lines), ctypes.addressof(code)))
prctl = ctypes.CDLL(None).prctl
prctl(38, 1, 0, 0, 0)
if prctl(22, 2, program, 0, 0):
    sys.exit(77)
"""


FINDS = """
from pathlib import Path
from jaxtl.training.feature_store import FeatureStore
print(FeatureStore(Path(sys.argv[1]), 1e6).find({"name": "whole"}) is not None)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flock has another number")
def test_on_a_file_system_without_locks_arrays_are_found_but_not_filled(store, folder):
    put(store, "whole", numbered(20))
    script, arguments = NO_LOCKS + FINDS + FILLS_SLOWLY, [str(folder), "1e6", "a", "20", "0"]
    command = [sys.executable, "-c", script, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode == 77:
        pytest.skip("this system has no seccomp filters")
    found, refused = ended.stdout.splitlines()
    assert found == "True"
    assert refused.startswith("ENOLCK No locks available: a cache needs")
    assert places(folder).keys() == {"whole"}


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
        assert size(folder) == sum(sizes[other] for other in order) <= limit
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
        '{"shape": [7, 2, 5], "dtype": "float32", "done": -1}',
        '{"shape": [7, 2, 5], "dtype": "float32", "done": 8}',
        '{"shape": [7, 2, 5], "dtype": "float32", "done": "7"}',
        '{"shape": [-7, -2, 5], "dtype": "float32", "done": 7}',
        pytest.param("[" * 100_000, id="nested deeply"),
    ],
)
def test_an_array_whose_description_is_damaged_is_not_there_and_can_be_made_anew(
    store, folder, about
):
    put(store, "a", rows(7))
    (place,) = folder.glob("*/")
    (place / "about.json").write_text(about)
    assert find(store, "a") is None
    put(store, "a", rows(7, seed=1))
    assert find(store, "a").tobytes() == rows(7, seed=1).tobytes()


@pytest.mark.parametrize("change", [-1, -40, -280, 40])
def test_an_array_of_the_wrong_length_is_not_there(store, folder, change):
    put(store, "a", rows(7))
    (place,) = folder.glob("*/")
    with (place / "rows.bin").open("r+b") as file:
        file.truncate(280 + change)
    assert find(store, "a") is None
    assert put(store, "a", rows(7, seed=1)) == 0
    assert find(store, "a").tobytes() == rows(7, seed=1).tobytes()


@pytest.mark.parametrize("missing", ["about.json", "rows.bin"])
def test_an_array_without_one_of_its_files_is_not_there(store, folder, missing):
    put(store, "a", rows(7))
    (path,) = folder.rglob(missing)
    path.unlink()
    assert find(store, "a") is None


def test_the_leftovers_of_an_earlier_version_are_removed_in_their_order(folder):
    """It filled a folder of another name."""
    store, array = FeatureStore(folder, 1000), rows(10)
    put(store, "a", array)
    part = folder / f"{64 * '0'}.1a2b3c4d.part"
    part.mkdir()
    (part / "rows.bin").write_bytes(bytes(400))
    age(part, 100)
    assert find(store, "a").tobytes() == array.tobytes()
    put(store, "b", rows(6))
    assert (part.exists(), places(folder).keys()) == (False, {"a", "b"})


def test_rows_in_use_are_not_removed_and_count_as_taken(folder):
    store = FeatureStore(folder, 500)
    put(store, "a", rows(10))
    held = find(store, "a")
    with pytest.raises(OSError, match="leaves no room beside what is being filled or read"):
        put(store, "b", rows(10))
    assert held.tobytes() == rows(10).tobytes()
    del held
    put(store, "b", rows(10))
    assert places(folder).keys() == {"b"}


def test_rows_in_use_outlive_the_folder(folder):
    store = FeatureStore(folder, 500)
    put(store, "a", rows(10))
    held = find(store, "a")
    shutil.rmtree(folder)
    assert held.tobytes() == rows(10).tobytes()


def test_what_is_larger_than_the_disk_is_refused_and_nothing_makes_room_in_vain(folder):
    store = FeatureStore(folder, 1e30)
    put(store, "a", rows(10))
    with (
        pytest.raises(OSError, match="No space left") as caught,
        store.filling({"name": "b"}, (10**18,), np.dtype("float32")),
    ):
        pytest.fail("it must not begin")
    assert caught.value.errno == errno.ENOSPC
    assert places(folder).keys() == {"a"}


def test_a_disk_that_is_full_half_way_is_an_error_that_leaves_nothing(store, folder):
    array = rows(10_000)
    with pytest.raises(OSError, match="too large"), files_no_longer_than(100_000):
        put(store, "a", array)
    assert left(folder) == []
    assert find(store, "a") is None


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_others_fill_meanwhile_is_an_error_that_gives_the_space_back(small_disk):
    store, array = FeatureStore(small_disk / "store", 1e6), rows(3000)  # 120 kB

    def fill_the_disk():
        with contextlib.suppress(OSError), (small_disk / "other").open("wb", buffering=0) as other:
            while True:
                other.write(bytes(4096))

    with pytest.raises(OSError, match="No space left"):
        put_around(store, "a", array, fill_the_disk)
    assert find(store, "a") is None
    assert left(small_disk / "store") == []
    (small_disk / "other").unlink()
    assert put(store, "a", array) == 0
    assert find(store, "a").tobytes() == array.tobytes()


def test_a_folder_that_vanishes_is_an_error_and_the_array_in_its_place_stays_whole(store, folder):
    array = rows(6)

    def vanish():
        shutil.rmtree(folder)
        put(store, "a", array)

    with pytest.raises(OSError, match="No such file") as caught:
        put_around(store, "a", rows(6, seed=1), vanish)
    assert caught.value.filename.startswith(str(folder))
    assert find(store, "a").tobytes() == array.tobytes()


def test_a_file_in_place_of_the_folder_is_an_error(store, folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("")
    assert find(store, "a") is None
    with pytest.raises(OSError, match=r"store"):
        put(store, "a", rows(3))


FILLS_AGAIN_AND_AGAIN = """
import sys, time
from pathlib import Path
import numpy as np
from jaxtl.training.feature_store import FeatureStore
store, rows = FeatureStore(Path(sys.argv[1]), 1e9), np.ones((4, 5), np.float32)
for number in range(40):
    sys.stdin.readline()
    while (found := store.find({"number": number})) is None:
        try:
            with store.filling({"number": number}, rows.shape, rows.dtype) as part:
                part.write(rows[part.rows:])
        except BlockingIOError:
            time.sleep(0.01)
    print(found.tobytes() == rows.tobytes(), flush=True)
"""


@pytest.mark.slow
def test_processes_that_store_the_same_array_at_once_all_find_it(folder):
    command = [sys.executable, "-c", FILLS_AGAIN_AND_AGAIN, str(folder)]
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
    assert len(left(folder)) == 40
