"""What is found out about images before training starts, and kept."""

import contextlib
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxtl.config import Data
from jaxtl.data.inspection import inspect
from jaxtl.data.loader import Loader
from jaxtl.data.reading import ReadError, read_file
from jaxtl.data.sources import open_all
from jaxtl.data.splits import open_splits, skipped
from jaxtl.errors import UserError


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of two classes with ten noisy images each, that count as settled; an empty cache."""
    monkeypatch.setattr("jaxtl.data.facts._SETTLED", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
            path = tmp_path / "images" / name / f"{number}.png"
            Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def opened(folder, on_bad_image="error"):
    return open_splits(Data(source=str(folder), on_bad_image=on_bad_image))


def prints(folder, on_bad_image="error"):
    return [part.fingerprint for part in opened(folder, on_bad_image).named.values()]


def cut(path):
    """Cuts an image in its pixels: its header says nothing of it."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def bytes_read():
    """What this process has read from files and anything else."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_a_second_start_reads_no_image(images):
    big = np.random.default_rng(1).integers(0, 256, (600, 600, 3)).astype(np.uint8)
    Image.fromarray(big).save(images / "a" / "big.png")
    before = bytes_read()
    first = prints(images)
    between = bytes_read()
    assert prints(images) == first
    after = bytes_read()
    assert between - before > 10**6
    assert after - between < 10**5


@pytest.mark.parametrize("replaced", [False, True])
def test_an_image_that_is_rewritten_with_the_same_size_and_time_is_noticed(images, replaced):
    path = images / "a" / "0.png"
    os.utime(path, (1e9, 1e9))
    before = prints(images)
    data = path.read_bytes()
    if replaced:
        path.unlink()  # the file system may give its inode to the new file
    path.write_bytes(data[:-1] + b"?")
    os.utime(path, (1e9, 1e9))
    assert prints(images) != before


def test_images_that_changed_since_the_last_start_are_named(images, caplog):
    opened(images)
    for name in ("a/7.png", "b/2.png"):
        path = images / name
        path.write_bytes(path.read_bytes() + b"more")
    os.utime(images / "a" / "0.png")  # was touched alone
    opened(images)
    opened(images)
    expected = f"images changed since they were last read: {images}/a/7.png, and 1 more"
    assert caplog.messages == [expected]


def test_facts_about_an_image_that_changed_just_now_are_not_kept(images, monkeypatch):
    monkeypatch.setattr("jaxtl.data.facts._SETTLED", 3600 * 10**9)
    path = images / "a" / "0.png"
    os.utime(path, (1e9, 1e9))  # its contents may be as old, but were put there just now
    assert next(open_all(str(images)).items()).stamp is None


def test_a_cache_that_is_damaged_or_cannot_be_written_only_costs_time(images, caplog):
    before = prints(images)
    database = images.parent / "cache" / "jaxtl" / "images.sqlite"
    database.write_bytes(b"no database" * 1000)
    assert prints(images) == before
    assert "images.sqlite cannot be used" in caplog.text
    database.unlink()
    database.mkdir()
    assert prints(images) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"<html>", "not a JPEG"), (b"GIF89a", "not a JPEG|dam")],
)
def test_a_bad_header_is_refused_before_training_with_the_number_of_bad_ones(
    images, content, reason
):
    (images / "a" / "3.png").write_bytes(content)
    (images / "b" / "3.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"a/3\.png: .*({reason}).*2 of 20 images are bad"):
        opened(images)


def test_only_skip_finds_before_training_what_only_decoding_shows(images, caplog):
    cut(images / "a" / "3.png")
    whole = opened(images)
    with pytest.raises(UserError, match=r"a/3\.png: damaged"):
        list(loader(open_all(str(images))).epoch(0))
    caplog.clear()
    splits = opened(images, "skip")
    assert sum(map(len, splits.named.values())) == 19
    assert [path for path, _ in skipped(splits)] == ["a/3.png"]
    assert "skipped 1 of 20 images that cannot be used" in caplog.text
    named = {part.describe(i) for part in splits.named.values() for i in range(len(part))}
    assert f"{images}/a/3.png" not in named
    assert whole.train.fingerprint != splits.train.fingerprint


def test_the_fingerprint_says_what_was_skipped(images):
    cut(images / "a" / "3.png")
    with_bad = prints(images, "skip")
    assert prints(images, "skip") == with_bad  # from the cache
    (images / "a" / "3.png").unlink()
    assert prints(images, "skip") != with_bad


def test_the_fingerprint_does_not_say_why(images):
    cut(images / "a" / "3.png")
    before = prints(images, "skip")
    (images / "a" / "3.png").write_bytes(b"damaged in another way, or by another Pillow")
    assert prints(images, "skip") == before


def test_what_was_skipped_is_named_with_its_split(images):
    for split in ("train", "val"):
        for name in "ab":
            shutil.copytree(images / name, images / split / name)
        cut(images / split / "a" / "3.png")
    for name in "ab":
        shutil.rmtree(images / name)
    named = [path for path, _ in skipped(opened(images, "skip"))]
    assert named == ["train/a/3.png", "val/a/3.png"]


def test_one_bad_image_is_one_in_the_message(images):
    (images / "a" / "3.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        opened(images)
    assert str(caught.value) == (
        f"{images}/a/3.png: the file is empty (0 bytes): remove it, or let training leave it out: "
        "--cfg.data.on_bad_image=skip"
    )


def fail_to_read(path):
    """Makes reading a file fail as a failing disk does: by EIO."""
    path.unlink()
    path.symlink_to("/proc/self/mem")  # whose first page nobody has


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_an_image_that_cannot_be_read_is_never_left_out(images, on_bad_image):
    for number in range(3):
        fail_to_read(images / "b" / f"{number}.png")
    with pytest.raises(UserError) as caught:
        open_splits(Data(source=str(images), on_bad_image=on_bad_image, retry_seconds=0.2))
    assert str(caught.value) == (
        f"{images}/b/0.png: cannot be read: Input/output error; 3 of 20 images cannot be read: "
        "remove them, or make them readable"
    )


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_start_waits_for_images_that_cannot_be_read_for_a_while(images, on_bad_image, caplog):
    before = prints(images, on_bad_image)
    failing = [images / "b" / f"{number}.png" for number in range(3)]
    whole = [path.read_bytes() for path in failing]
    for path in failing:
        fail_to_read(path)

    def mend():
        wait_for("trying again", caplog)
        for path, data in zip(failing, whole, strict=True):
            path.unlink()
            path.write_bytes(data)

    with meanwhile(mend):
        splits = open_splits(Data(source=str(images), on_bad_image=on_bad_image))
    assert [part.fingerprint for part in splits.named.values()] == before


def test_a_class_that_loses_all_its_images_is_an_error(images):
    for path in (images / "b").iterdir():
        cut(path)
    with pytest.raises(UserError, match=r"no image of the class 'b' can be used: .*b/0\.png"):
        opened(images, "skip")


def test_the_first_image_in_both_splits_is_named_by_both_paths_and_they_are_counted(images, caplog):
    for name in "ab":
        (images / "train").mkdir(exist_ok=True)
        (images / name).rename(images / "train" / name)
        (images / "val" / name).mkdir(parents=True)
        for number in range(2):
            data = (images / "train" / name / f"{number}.png").read_bytes()
            (images / "val" / name / f"copy{number}.png").write_bytes(data)
    opened(images)
    (message,) = [m for m in caplog.messages if "among the training" in m]
    assert message.startswith("4 validation images")
    assert f"{images}/val/a/copy0.png" in message
    assert f"{images}/train/a/0.png" in message


def loader(source, retry_seconds=0.0):
    return Loader(
        source,
        image_size=20,
        resize="stretch",
        batch_size=4,
        seed=0,
        shuffle=False,
        memory_bytes=0,
        retry_seconds=retry_seconds,
    )


def wait_for(text, caplog):
    """Waits until a message has the text, for a minute at most."""
    end = time.monotonic() + 60
    while text not in caplog.text:
        assert time.monotonic() < end, caplog.text
        time.sleep(0.01)


@contextlib.contextmanager
def meanwhile(act):
    """Does something on a thread while the block runs."""
    other = threading.Thread(target=act)
    other.start()
    yield
    other.join()


def test_an_image_that_vanishes_and_comes_back_gives_the_same_batches(images, caplog):
    source = open_all(str(images))
    expected = [batch.inputs for batch in loader(source).epoch(0)]
    path, away = images / "b" / "5.png", images.parent / "away.png"
    path.rename(away)

    def bring_back():
        wait_for("trying again", caplog)
        away.rename(path)

    with meanwhile(bring_back), caplog.at_level(logging.WARNING, "jaxtl"):
        found = [batch.inputs for batch in loader(source, 60).epoch(0)]
    np.testing.assert_array_equal(found, expected)
    (message,) = [m for m in caplog.messages if "trying again" in m]
    assert message.startswith(f"{path}: cannot be read: No such file")


def test_an_image_that_does_not_come_back_is_named_once_the_time_is_over(images):
    source = open_all(str(images))
    (images / "b" / "5.png").unlink()
    with pytest.raises(UserError, match=r"b/5\.png: cannot be read: No such file"):
        list(loader(source, 0.3).epoch(0))


def test_waiting_ends_soon_once_it_is_asked_to_stop(images, caplog):
    source = open_all(str(images))
    (images / "b" / "5.png").unlink()
    stop, ended = threading.Event(), threading.Event()

    def read():
        list(loader(source, 600).epoch(0, stop=stop.is_set))
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    wait_for("trying again", caplog)
    stop.set()
    assert ended.wait(30)


def test_a_fifo_is_not_waited_for(images):
    source = open_all(str(images))
    (images / "a" / "0.png").unlink()
    os.mkfifo(images / "a" / "0.png")
    with pytest.raises(UserError, match="not a regular file"):
        source[0]


def test_images_that_come_back_together_are_read_and_kept(images, caplog):
    items = list(open_all(str(images)).items())
    folder, away = images / "b", images.parent / "away"
    folder.rename(away)
    assert [facts.sha256 for facts in inspect(items)][10:] == [""] * 10

    def bring_back():
        wait_for("trying again", caplog)
        away.rename(folder)

    with meanwhile(bring_back):
        found = inspect(items, retry=60)
    assert [facts.problem for facts in found] == [None] * 20
    assert caplog.text.count("trying again") == 1
    folder.rename(away)
    assert inspect(items) == found


@pytest.mark.parametrize("fault", ["leads nowhere", "no folder", "forbidden"])
def test_a_fault_that_lasts_is_not_waited_for(images, fault):
    path, user = images / "a" / "0.png", os.geteuid()
    if fault == "leads nowhere":
        path.unlink()
        path.symlink_to("nowhere.png")
    elif fault == "no folder":
        path = path / "0.png"
    else:
        path.chmod(0)
    try:
        if fault == "forbidden" and user == 0:
            os.seteuid(65534)
        with pytest.raises(UserError) as caught:
            read_file(path)
    finally:
        os.seteuid(user)
    assert not isinstance(caught.value, ReadError)


def test_facts_that_cannot_be_kept_are_told_once(images, monkeypatch, caplog):
    before = prints(images)
    with (
        contextlib.closing(
            sqlite3.connect(images.parent / "cache" / "jaxtl" / "images.sqlite")
        ) as database,
        database,
    ):
        database.execute("DELETE FROM images")
        refuse = "BEFORE INSERT ON images BEGIN SELECT RAISE(ABORT, 'nothing goes in'); END"
        database.execute(f"CREATE TRIGGER refuse {refuse}")
    monkeypatch.setattr("jaxtl.data.inspection._BLOCK", 4)
    assert prints(images) == before
    (message,) = caplog.messages
    assert message.startswith("nothing more is kept: ")
    assert message.endswith("images.sqlite cannot be written (nothing goes in)")


@pytest.mark.parametrize("damage", ["no database", "a page"])
def test_a_damaged_file_of_facts_is_begun_anew(images, caplog, damage):
    before, path = prints(images), images.parent / "cache" / "jaxtl" / "images.sqlite"
    contents = path.read_bytes()
    junk = bytes(4096)[::-1].replace(b"\0", b"\x55")
    path.write_bytes(junk * 4 if damage == "no database" else contents[:4096] + junk * 2)
    journal = path.with_name("images.sqlite-journal")
    journal.write_bytes(b"of the damaged one")
    assert prints(images) == before
    assert not journal.exists()
    assert len(caplog.messages) == 1
    caplog.clear()
    assert prints(images) == before  # writes another one
    assert prints(images) == before
    assert path.read_bytes().startswith(b"SQLite format 3")
    assert not caplog.messages


@pytest.mark.parametrize("kind", ["folder", "tfds"])
def test_data_that_were_read_before_and_are_away_at_the_start_are_waited_for(
    images, write_tfds, caplog, kind
):
    data, away = images, images.parent / "away"
    if kind == "tfds":
        data = images.parent / "tiny" / "1.0.0"
        examples = [(path.read_bytes(), i % 2) for i, path in enumerate(images.rglob("*.png"))]
        write_tfds(data, {"train": examples}, ["ant", "bee"])
    spec = f"tfds:{data}" if kind == "tfds" else str(data)
    before = open_all(spec).fingerprint
    data.rename(away)

    def bring_back():
        wait_for("trying again", caplog)
        away.rename(data)

    with meanwhile(bring_back):
        assert open_all(spec, retry_seconds=60).fingerprint == before


def test_data_that_nobody_ever_read_are_not_waited_for(images):
    begun = time.monotonic()
    for spec in (f"{images}-misspelt", f"tfds:{images}-misspelt"):
        with pytest.raises(UserError):
            open_all(spec, retry_seconds=600)
    assert time.monotonic() - begun < 300


def known_names(images):
    with contextlib.closing(
        sqlite3.connect(images.parent / "cache" / "jaxtl" / "images.sqlite")
    ) as database:
        rows = database.execute("SELECT key FROM images ORDER BY key").fetchall()
    return [os.fsdecode(key).removeprefix(f"{images}/") for (key,) in rows]


def test_what_is_known_of_removed_images_is_forgotten_and_of_others_kept(images):
    other = images.with_name(f"{images.name}-2")
    shutil.copytree(images, other)
    prints(images)
    prints(other)
    shutil.rmtree(other)
    for name in ("a/3.png", "b/0.png"):
        (images / name).unlink()
    prints(images)
    left = [name for name in known_names(images) if not name.startswith(str(other))]
    assert left == sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))


def test_a_link_whose_disk_is_away_for_a_while_is_waited_for(images, caplog):
    disk, away = images.parent / "disk", images.parent / "away"
    (images / "b").rename(disk)
    (images / "b").mkdir()
    for path in disk.iterdir():
        (images / "b" / path.name).symlink_to(path)
    source = open_all(str(images))
    expected = [source[i] for i in range(20)]
    assert source.fingerprint
    disk.rename(away)

    def bring_back():
        wait_for("trying again", caplog)
        away.rename(disk)

    with meanwhile(bring_back):
        read = sum(int(batch.valid.sum()) for batch in loader(source, 60).epoch(0))
    assert read == 20
    assert [source[i] for i in range(20)] == expected


def test_an_image_that_becomes_another_one_is_not_trained_on(images):
    source = open_all(str(images))
    first, second = source[0], source[1]
    assert source.fingerprint
    (images / "a" / "0.png").write_bytes(second)
    with pytest.raises(UserError, match="its contents changed since the command began"):
        source[0]
    (images / "a" / "0.png").write_bytes(first)
    assert source[0] == first


def test_a_data_set_is_read_once_to_learn_its_labels(write_tfds, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    noise = np.random.default_rng(0).integers(0, 256, (40, 100, 100, 3)).astype(np.uint8)
    examples = []
    for i, pixels in enumerate(noise):
        path = tmp_path / "one.png"
        Image.fromarray(pixels).save(path)
        examples.append((path.read_bytes(), i % 2))
    folder = tmp_path / "tiny" / "1.0.0"
    write_tfds(folder, {"train": examples}, ["ant", "bee"])
    program = (
        "import sys; from jaxtl.data import facts; facts._SETTLED = 0; "
        "bytes_read = lambda: int(open('/proc/self/io').read().split()[1]); "
        "from jaxtl.data.sources import open_all; import tensorflow_datasets, array_record; "
        "before = bytes_read(); labels = open_all(sys.argv[1]).labels; "
        "print(bytes_read() - before, *labels)"
    )
    ends = [
        subprocess.run(
            [sys.executable, "-c", program, f"tfds:{folder}"],
            env=os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    (first, *labels), (second, *again) = ends
    assert labels == again == ["0", "1"] * 20
    assert int(first) - int(second) > 0.9 * sum(len(image) for image, _ in examples)


def test_a_bad_record_is_skipped_by_its_place(write_tfds, tmp_path):
    good = [Image.new("RGB", (8, 8), (i * 20, 0, 0)) for i in range(8)]
    examples = []
    for i, image in enumerate(good):
        image.save(tmp_path / "one.png")
        examples.append(((tmp_path / "one.png").read_bytes(), i % 2))
    examples[3] = (b"no image", 1)
    folder = tmp_path / "tiny" / "1.0.0"
    write_tfds(folder, {"train": examples}, ["ant", "bee"])
    spec = f"tfds:{folder}"
    with pytest.raises(UserError, match=r"tiny/1\.0\.0 train\[3\]: not a JPEG"):
        open_splits(Data(source=spec))
    splits = open_splits(Data(source=spec, on_bad_image="skip"))
    assert sum(map(len, splits.named.values())) == 7
    assert skipped(splits) == (
        ("tiny/1.0.0 train[3]", "not a JPEG, PNG, WebP, BMP, GIF or TIFF image"),
    )
    assert all(
        isinstance(part[i], bytes) for part in splits.named.values() for i in range(len(part))
    )
