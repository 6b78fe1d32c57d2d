"""Packed data: the same images, labels and classes as the source, for jaxtl and for TFDS."""

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from full_disk import files_no_longer_than
from PIL import Image

from jaxtl.config import Data
from jaxtl.data.decoding import decode
from jaxtl.data.packing import pack
from jaxtl.data.sources import open_all
from jaxtl.data.splits import open_splits
from jaxtl.errors import UserError


@pytest.fixture
def images(tmp_path, monkeypatch):
    """23 JPEG and PNG images of several sizes in three classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "images", 23)
    return tmp_path / "images"


def write_images(folder, count):
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("ant", "bee", "cow d'or")[number % 3] / f"{number:02}"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 256, (4, 5, 3)).astype(np.uint8)
        size = [int(side) for side in random.integers(20, 60, 2)]
        suffix = ".png" if number % 5 == 0 else ".jpg"
        Image.fromarray(small).resize(size).save(path.with_suffix(suffix))


def split(spec):
    return open_splits(Data(source=str(spec)))


def everything(source):
    return [(source[i], source.classes[source.labels[i]]) for i in range(len(source))]


def test_packed_bytes_labels_and_splits_are_those_of_the_folder(images, tmp_path):
    packed = pack(str(images), tmp_path / "packed", images_per_shard=10)
    assert packed.images == {"train": 23}
    assert len(list((tmp_path / "packed").glob("*.array_record-*-of-00003"))) == 3
    for part, other in zip(split(images)[:2], split(f"tfds:{tmp_path}/packed")[:2], strict=True):
        assert everything(part) == everything(other)
        assert part.classes == other.classes


def test_several_labels_of_an_image_stay_together(images, tmp_path):
    files = sorted(images.rglob("*.*"))
    lines = [f"{path},{'ant;bee' if i % 3 else ''}\n" for i, path in enumerate(files)]
    (tmp_path / "list.csv").write_text("".join(["image,labels\n", *lines]))
    pack(f"csv:{tmp_path}/list.csv", tmp_path / "packed", images_per_shard=10)
    source, packed = (open_all(s) for s in (f"csv:{tmp_path}/list.csv", f"tfds:{tmp_path}/packed"))
    assert source.classes == packed.classes == ("ant", "bee")
    np.testing.assert_array_equal(packed.labels, source.labels)
    assert [packed[i] for i in range(23)] == [source[i] for i in range(23)]


def test_folders_for_validation_stay_apart(images, tmp_path):
    (tmp_path / "data").mkdir()
    images.rename(tmp_path / "data" / "train")
    write_images(tmp_path / "data" / "val", 4)
    packed = pack(str(tmp_path / "data"), tmp_path / "packed")
    assert packed.images == {"train": 23, "validation": 4}
    train, val, _ = split(f"tfds:{tmp_path}/packed")
    assert (len(train), len(val)) == (23, 4)


def test_tfds_reads_what_was_packed_without_tensorflow(images, tmp_path):
    pack(str(images), tmp_path / "packed", images_per_shard=10)
    program = f"""
import sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(tmp_path / "packed")!r})
label = builder.info.features["label"]
for example in builder.as_data_source(split="train"):
    print(label.int2str(example["label"]), example["image"].shape, int(example["image"].sum()))
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    expected = []
    for path in sorted(images.rglob("*.*")):
        pixels = np.asarray(Image.open(path))
        expected.append(f"{path.parent.name} {pixels.shape} {int(pixels.astype(int).sum())}")
    assert done.stdout.splitlines() == expected, done.stderr


def test_images_are_scaled_to_the_shorter_side_and_small_ones_keep_their_bytes(images, tmp_path):
    pack(str(images), tmp_path / "packed", side=32, quality=95)
    whole, packed = open_all(str(images)), open_all(f"tfds:{tmp_path}/packed")
    scaled = 0
    for i in range(23):
        width, height = Image.open(io.BytesIO(whole[i])).size
        if min(width, height) <= 32:
            assert packed[i] == whole[i]
            continue
        scaled += 1
        image = Image.open(io.BytesIO(packed[i]))
        assert image.format == "JPEG"
        assert min(image.size) == 32
        assert abs(image.width / image.height - width / height) < 0.05
        difference = decode(packed[i], 16, "stretch").astype(int) - decode(whole[i], 16, "stretch")
        assert np.abs(difference).mean() < 8
    assert 5 < scaled < 23


def test_a_grey_image_with_an_orientation_is_upright_and_rgb_once_scaled(tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        ramp = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (60, 1))
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees to see it upright
        Image.fromarray(ramp).save(tmp_path / "images" / name / "1.jpg", exif=exif, quality=95)
    pack(str(tmp_path / "images"), tmp_path / "packed", side=20, quality=95)
    image = Image.open(io.BytesIO(open_all(f"tfds:{tmp_path}/packed")[0]))
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert 0x0112 not in image.getexif()
    column = np.asarray(image)[:, 15, 0].astype(int)
    assert (np.diff(column) > 0).all()


def test_digits_are_packed_without_loss(tmp_path):
    pack("digits", tmp_path / "packed", images_per_shard=1000)
    digits, packed = open_all("digits"), open_all(f"tfds:{tmp_path}/packed")
    np.testing.assert_array_equal(packed.labels, digits.labels)
    assert packed.classes == digits.classes
    for i in (0, 999, 1000, 1796):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(packed[i]))), digits[i])


def stat(folder):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_packing_again_keeps_what_is_finished_and_mends_what_is_not(images, tmp_path):
    out = tmp_path / "packed"
    pack(str(images), out, images_per_shard=10)
    before, bytes_before = stat(out), {p.name: p.read_bytes() for p in out.iterdir()}
    pack(str(images), out, images_per_shard=10)
    assert stat(out) == before
    (out / "dataset_info.json").unlink()
    first, torn, missing = sorted(out.glob("*.array_record-*"))
    torn.write_bytes(torn.read_bytes()[:100])
    missing.unlink()
    (out / "half.part").write_bytes(b"of a process that was killed")
    pack(str(images), out, images_per_shard=10)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == bytes_before
    assert stat(out)[first.name] == before[first.name]


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_shards_that_it_finished(tmp_path):
    write_images(tmp_path / "images", 300)
    program = (
        "import sys; from jaxtl.data import packing; from pathlib import Path; "
        "packing.pack('images', Path(sys.argv[1]), side=16, images_per_shard=7)"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))}

    def start(out):
        return subprocess.Popen([sys.executable, "-c", program, out], cwd=tmp_path, env=environment)

    assert start("undisturbed").wait() == 0
    process = start("packed")
    while process.poll() is None and not list(tmp_path.glob("packed/*-00002-of-?????")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = stat(tmp_path / "packed")
    assert start("packed").wait() == 0
    now = stat(tmp_path / "packed")
    shards = [name for name in finished if "array_record" in name and not name.endswith(".part")]
    assert 2 < len(shards) < 43
    assert [finished[name] for name in shards] == [now[name] for name in shards]
    # Not the files: protobuf writes the two fields of a record in any order.
    packed, undisturbed = (open_all(f"tfds:{tmp_path}/{n}") for n in ("packed", "undisturbed"))
    assert everything(packed) == everything(undisturbed)
    assert len(packed) == 300


def refused(*arguments, **options):
    with pytest.raises(UserError) as caught:
        pack(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_images_and_other_settings_are_refused(images, tmp_path):
    out = tmp_path / "packed"
    pack(str(images), out)
    assert f"{out} was begun with another size" in refused(str(images), out, side=32)
    path = next(images.rglob("*.jpg"))
    path.write_bytes(path.read_bytes() + b"more")
    assert f"{out} was begun with other images" in refused(str(images), out)


def test_a_folder_with_other_files_is_refused_and_left_alone(images, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    assert "has files that jaxtl did not pack" in refused(str(images), out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_an_image_that_does_not_decode_is_named_before_anything_is_written(images, tmp_path):
    path = next(images.rglob("*.jpg"))
    path.write_bytes(path.read_bytes()[:-200])
    assert refused(str(images), tmp_path / "packed").startswith(f"{path}: damaged")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("name", ["two\nlines", " space"])
def test_a_class_that_tfds_cannot_name_is_refused(images, tmp_path, name):
    (images / "ant").rename(images / name)
    assert "TFDS stores no name" in refused(str(images), tmp_path / "packed")


def test_a_full_disk_is_told_and_the_same_call_goes_on(images, tmp_path):
    out = tmp_path / "packed"
    with files_no_longer_than(2000):
        assert "cannot be written: write() failed: File too large" in refused(str(images), out)
    assert not list(out.glob("*.part"))
    assert pack(str(images), out).images == {"train": 23}
    assert len(open_all(f"tfds:{out}")) == 23


def test_the_description_is_one_that_tfds_knows(images, tmp_path):
    pack(str(images), tmp_path / "My pictures (1)", images_per_shard=10)
    info = tfds.builder_from_directory(tmp_path / "My pictures (1)").info
    assert info.full_name == "my_pictures__1_/1.0.0"
    assert info.splits["train"].shard_lengths == [10, 10, 3]
    assert info.features["label"].names == ["ant", "bee", "cow d'or"]
