"""Folders, digits and splits: what is found, what is refused, and in which words."""

import dataclasses
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jaxtl.config import Data
from jaxtl.data.folders import image_files
from jaxtl.data.sources import absolute, found_line, open_all, open_parts
from jaxtl.data.splits import as_splits, stratified_split
from jaxtl.errors import UserError


def make(root, *paths):
    """Writes a file for each path; each has its own content, which need not be an image here."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"image %d" % number)
    return str(root)


def cats_and_dogs(root, each=5, under="."):
    names = [f"{under}/{c}/{i}.jpg" for c in ("cats", "dogs") for i in range(each)]
    return make(root, *names)


def split(spec, val_fraction=0.2, seed=0):
    data = Data(source=str(spec), val_fraction=val_fraction, seed=seed)
    return as_splits(open_parts(str(spec)), data)  # no matter whether the images are any


def names(source):
    return [Path(source.describe(i)).name for i in range(len(source))]


def contents(source):
    return [source[i] for i in range(len(source))]


def refused(spec):
    with pytest.raises(UserError) as caught:
        split(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_digits_are_scaled_to_bytes_and_split_by_class():
    train, val, _ = split("digits")
    whole = open_all("digits")
    assert (len(whole), len(train) + len(val)) == (1797, 1797)
    assert whole.classes == train.classes == tuple("0123456789")
    assert whole[0].dtype == np.uint8
    raw = load_digits()
    np.testing.assert_array_equal(whole[17], np.round(raw.images[17] / 16 * 255))
    np.testing.assert_array_equal(whole.labels, raw.target)
    assert whole.labels.dtype == np.int32
    assert whole.describe(17) == "digits[17]"
    for label in range(10):
        total = (whole.labels == label).sum()
        assert (val.labels == label).sum() == round(0.2 * total)


def test_class_folders_are_classes_sorted_by_name(tmp_path):
    make(tmp_path, "zebra/1.jpg", "zebra/0.png", "Ant/a.webp", "bee/deep/er/b.GIF", "bee/a.TIFF")
    source = open_all(str(tmp_path))
    assert source.classes == ("Ant", "bee", "zebra")
    assert [source.describe(i).removeprefix(f"{tmp_path}/") for i in range(5)] == [
        "Ant/a.webp",
        "bee/a.TIFF",
        "bee/deep/er/b.GIF",
        "zebra/0.png",
        "zebra/1.jpg",
    ]
    np.testing.assert_array_equal(source.labels, [0, 1, 1, 2, 2])
    assert source[3] == b"image 1"
    assert found_line(source) == "Found 5 images belonging to 3 classes."


@pytest.mark.parametrize(
    "ending",
    ["jpg", "jpeg", "jpe", "png", "webp", "bmp", "gif", "tif", "tiff", "JPG", "Png"],
)
def test_every_ending_of_an_image_is_known(tmp_path, ending):
    make(tmp_path, f"a/x.{ending}", "b/y.jpg")
    assert len(open_all(str(tmp_path))) == 2


def test_hidden_files_and_folders_are_passed_over_without_a_word(tmp_path, caplog):
    make(tmp_path, "a/1.jpg", "b/1.jpg", "a/.2.jpg", "a/.thumbs/3.jpg", ".cache/4.jpg")
    assert len(open_all(str(tmp_path))) == 2
    assert not caplog.records


def test_files_that_are_not_images_are_reported_in_one_line(tmp_path, caplog):
    make(tmp_path, "a/1.jpg", "a/notes.txt", "a/noending", "b/1.jpg", "b/x.heic", "README.md")
    with caplog.at_level(logging.WARNING, "jaxtl"):
        assert len(open_all(str(tmp_path))) == 2
    message = f"skipped 3 files that are not images, the first is {tmp_path}/a/noending"
    assert caplog.messages == [message]


def test_images_beside_the_class_folders_are_reported(tmp_path, caplog):
    make(tmp_path, "a/1.jpg", "b/1.jpg", "loose.jpg")
    open_all(str(tmp_path))
    message = f"skipped 1 images outside of the class folders, the first is {tmp_path}/loose.jpg"
    assert caplog.messages == [message]


def test_train_and_val_folders_are_the_split(tmp_path):
    cats_and_dogs(tmp_path, 3, "train")
    cats_and_dogs(tmp_path, 2, "val")
    train, val, _ = split(tmp_path)
    assert (len(train), len(val)) == (6, 4)
    assert train.classes == val.classes == ("cats", "dogs")
    assert len(open_all(str(tmp_path))) == 4


def test_the_first_of_val_valid_and_validation_is_taken(tmp_path):
    cats_and_dogs(tmp_path, 3, "train")
    for size, name in [(1, "validation"), (2, "valid"), (3, "val")]:
        cats_and_dogs(tmp_path, size, name)
        assert len(split(tmp_path).val) == 2 * size


def test_train_alone_is_split(tmp_path):
    cats_and_dogs(tmp_path, 5, "train")
    train, val, _ = split(tmp_path)
    assert (len(train), len(val)) == (8, 2)
    assert len(open_all(str(tmp_path))) == 10


@pytest.mark.parametrize("names", [("val", "test"), ("training", "validation")])
def test_folders_that_are_splits_are_not_taken_for_classes(tmp_path, names):
    make(tmp_path, *(f"{name}/{kind}/{n}.jpg" for name in names for kind in "ab" for n in "12"))
    with pytest.raises(UserError, match="no train/ with class folders"):
        open_all(str(tmp_path))


def test_folders_beside_a_split_that_are_not_looked_at_are_named(tmp_path, caplog):
    make(tmp_path, *(f"{part}/{kind}/1.jpg" for part in ("train", "val", "valid") for kind in "ab"))
    split(tmp_path)
    assert caplog.messages == [f"{tmp_path}: ignored: valid"]


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, "train/1.jpg", "train/2.jpg", "bus/1.jpg", "bus/2.jpg")
    assert open_all(str(tmp_path)).classes == ("bus", "train")


def test_labels_of_val_follow_the_classes_of_train(tmp_path, caplog):
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/c/1.jpg", "val/b/1.jpg")
    val = split(tmp_path).val
    assert val.classes == ("a", "b", "c")
    np.testing.assert_array_equal(val.labels, [1, 2])
    assert caplog.messages == [f"{tmp_path}/val has no images of the class a"]


def test_a_class_of_val_that_train_lacks_is_refused(tmp_path):
    make(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/birds/1.jpg")
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path}/val has the class 'birds', which {tmp_path}/train lacks")


def test_a_missing_path_is_refused_with_the_alternatives(tmp_path):
    message = refused(tmp_path / "nowhere")
    assert "nowhere" in message
    assert "No such file" in message
    assert all(word in message for word in ("digits", "folder", "tfds:NAME"))


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    make(tmp_path, "cat.jpg")
    assert "is a file: give the path of a folder" in refused(tmp_path / "cat.jpg")


def test_an_empty_folder_is_refused(tmp_path):
    assert f"{tmp_path} is empty" in refused(tmp_path)


def test_images_without_class_folders_are_refused(tmp_path):
    make(tmp_path, "1.jpg", "2.jpg")
    assert f"{tmp_path} has images but no class folders" in refused(tmp_path)


@pytest.mark.parametrize("names", [("\udcff", r"\xff"), ("\udcff" + r"\xfe", r"\xff" + "\udcfe")])
def test_two_class_folders_that_would_be_one_class_are_refused(tmp_path, names):
    make(tmp_path, "a/1.png", *(f"{name}/1.png" for name in names))
    assert r"two class folders that are both written \xff" in refused(tmp_path)


def test_the_home_folder_of_nobody_is_a_path_that_is_not_there():
    assert "there is no data source '~no-such-user/images'" in refused("~no-such-user/images")
    assert "is not prepared" in refused("tfds:~no-such-user/images")
    assert absolute("~no-such-user/images") == "~no-such-user/images"


def test_a_class_folder_without_images_is_refused(tmp_path):
    make(tmp_path, "a/1.jpg", "b/readme.txt")
    message = refused(tmp_path)
    assert "no images (jpg, jpeg" in message
    assert f"{tmp_path}/b: add some or remove the folder" in message


def test_a_single_class_is_refused_for_training_but_not_for_evaluation(tmp_path):
    make(tmp_path, "only/1.jpg", "only/2.jpg")
    assert "one class only, 'only'" in refused(tmp_path)
    assert len(open_all(str(tmp_path), classes=("only", "other"))) == 2


def test_a_class_with_a_single_image_cannot_be_split(tmp_path):
    make(tmp_path, "a/1.jpg", "a/2.jpg", "rare/it.jpg")
    message = refused(tmp_path)
    assert "the class 'rare' has a single image" in message
    assert f"{tmp_path}/rare/it.jpg" in message


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    # By a relative path, since other users may not look into the folders above.
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    make(Path("images"), "a/1.jpg", "b/1.jpg")
    Path("images/b").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        assert refused("images") == "cannot read images/b: Permission denied"
    finally:
        os.seteuid(user)
        Path("images/b").chmod(0o755)


def test_a_link_to_a_folder_above_is_refused_and_other_links_are_followed(tmp_path):
    make(tmp_path, "data/a/1.jpg", "elsewhere/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    assert len(open_all(str(tmp_path / "data"))) == 3
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "elsewhere")
    assert "is a link to a folder that holds it" in refused(tmp_path / "data")


def test_an_image_that_vanished_is_reported_when_it_is_read(tmp_path):
    source = open_all(cats_and_dogs(tmp_path, 2))
    (tmp_path / "cats/1.jpg").unlink()
    with pytest.raises(UserError, match="cannot be read: No such file"):
        source[1]
    fresh = dataclasses.replace(source)  # Python 3.11 asks for a fingerprint to check types
    with pytest.raises(UserError, match=re.escape(f"cannot read {tmp_path}/cats/1.jpg")):
        _ = fresh.fingerprint


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("counts", [(2, 2), (2, 50), (3, 7), (10, 10)])
def test_a_split_divides_every_class_and_loses_nothing(tmp_path, counts, fraction):
    paths = [f"{c}/{i}.jpg" for c, n in zip("ab", counts, strict=True) for i in range(n)]
    source = open_all(make(tmp_path, *paths))
    train, val = stratified_split(source, fraction, 3)
    assert sorted([*train, *val]) == list(range(sum(counts)))
    for label, count in enumerate(counts):
        held_out = int((source.labels[val] == label).sum())
        assert 1 <= held_out <= count - 1
        assert abs(held_out - fraction * count) <= 1


def test_a_split_is_a_function_of_its_seed(tmp_path):
    cats_and_dogs(tmp_path, 20)
    first, again, other = split(tmp_path), split(tmp_path), split(tmp_path, seed=1)
    assert contents(first.val) == contents(again.val)
    assert contents(first.val) != contents(other.val)
    assert set(contents(first.val)).isdisjoint(contents(first.train))
    assert len(first.val) == 8


def test_a_split_and_the_fingerprint_depend_neither_on_the_place_nor_on_the_order_of_files(
    tmp_path,
):
    paths = [f"{c}/{i}.jpg" for c in "ab" for i in range(10)]
    here, there = tmp_path / "here", tmp_path / "there"
    make(here, *paths)
    for path in reversed(paths):
        (there / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here / path, there / path)
    one, two = split(here), split(there)
    assert names(one.val) == names(two.val)
    assert one.val.fingerprint == two.val.fingerprint
    assert one.train.fingerprint == two.train.fingerprint != one.val.fingerprint


def test_the_fingerprint_changes_with_a_path_a_size_or_a_class(tmp_path):
    cats_and_dogs(tmp_path, 3)

    def now():
        return open_all(str(tmp_path)).fingerprint

    seen = {now()}
    assert re.fullmatch("[0-9a-f]{64}", now())
    (tmp_path / "cats/0.jpg").rename(tmp_path / "cats/9.jpg")
    seen.add(now())
    (tmp_path / "cats/9.jpg").write_bytes(b"longer than it was")
    seen.add(now())
    (tmp_path / "cats").rename(tmp_path / "cows")
    seen.add(now())
    (tmp_path / "cows/9.jpg").rename(tmp_path / "dogs/9.jpg")
    seen.add(now())
    assert len(seen) == 5


def test_the_fingerprint_follows_the_contents_and_neither_the_place_nor_the_time(tmp_path):
    cats_and_dogs(tmp_path / "here", 3)

    def now(folder="here"):
        return open_all(str(tmp_path / folder)).fingerprint

    image = tmp_path / "here" / "cats" / "0.jpg"
    os.utime(image, (1e9, 1e9))
    before = now()
    assert now() == before
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert now("there") == before
    os.utime(image, ns=(0, 1))
    assert now() == before
    image.write_bytes(image.read_bytes()[::-1])  # of the same size
    assert now() != before
    assert len({part.fingerprint for part in split(tmp_path / "here").named.values()}) == 2


def test_the_fingerprint_of_digits_follows_the_split():
    prints = [
        open_all("digits").fingerprint,
        *(split("digits", seed=s).val.fingerprint for s in (0, 1)),
    ]
    assert len(set(prints)) == 3
    assert prints[1] == split("digits").val.fingerprint


def test_evaluation_maps_labels_to_the_classes_of_the_run(tmp_path):
    make(tmp_path, "a/1.jpg", "c/1.jpg", "c/2.jpg")
    source = open_all(str(tmp_path), classes=("c", "b", "a"))
    assert source.classes == ("c", "b", "a")
    np.testing.assert_array_equal(source.labels, [2, 0, 0])
    assert source.describe(2) == f"{tmp_path}/c/2.jpg"
    assert source[2] == b"image 2"


def test_evaluation_refuses_a_class_that_the_run_does_not_know(tmp_path):
    make(tmp_path, "a/1.jpg", "wolf/1.jpg")
    with pytest.raises(UserError, match="class 'wolf', which the run does not know: take them out"):
        open_all(str(tmp_path), classes=("a", "b"))


def test_real_images_come_back_as_the_bytes_of_their_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder in "ab":
        Image.new("RGB", (3, 3)).save(tmp_path / folder / "x.png")
    assert open_all(str(tmp_path))[0] == (tmp_path / "a/x.png").read_bytes()


def test_a_name_that_is_not_utf8_is_text_as_a_class_and_bytes_as_a_path(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff.jpg", "wb") as file:
        file.write(b"an image")
    source = open_all(str(tmp_path))
    assert source.classes == (r"caf\xe9",)
    assert source[0] == b"an image"
    assert os.fsencode(source.describe(0)) == folder + b"/\xff.jpg"
    assert len(source.fingerprint) == 64


def test_image_files_are_the_files_given_and_the_images_in_folders_given(tmp_path):
    make(tmp_path, "b/2.jpg", "b/deep/1.PNG", "b/a[b].gif", "b/.3.jpg", "b/.c/4.jpg", "b/x.txt")
    make(tmp_path, "note.txt", "empty/x.txt")
    found = image_files([tmp_path / "note.txt", tmp_path / "b"])
    names = ("note.txt", "b/2.jpg", "b/a[b].gif", "b/deep/1.PNG")
    assert found == [tmp_path / name for name in names]
    with pytest.raises(UserError, match="no images in"):
        image_files([tmp_path / "empty"])
    with pytest.raises(UserError, match="no file"):
        image_files([tmp_path / "missing.jpg"])
