"""`jaxtl check`: what it finds, how it shows it, and how it ends."""

import inspect
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from jaxtl.check import main
from jaxtl.data.check_table import check_table
from jaxtl.data.checking import check
from jaxtl.data.duplicates import nearest
from jaxtl.errors import UserError


def noise(seed, size=(64, 48)):
    """Noise that is smooth enough to survive being made smaller."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize(size)


@pytest.fixture
def images(tmp_path):
    """A proper data set: two classes, six images for training and three for validation each."""
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cats", "dogs"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                seed = hash((split == "val", name == "dogs", number)) % 2**32
                noise(seed).save(folder / f"{number}.png")
    return tmp_path


def checked(folder, *more):
    return main(["--data", str(folder), *map(str, more)])


def test_a_proper_data_set_is_counted_and_ends_with_0(images, capsys, tmp_path):
    assert checked(images, "--json", tmp_path / "report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == 1
    assert report["wrong"] is False
    assert report["splits"] == {"train": {"cats": 6, "dogs": 6}, "val": {"cats": 3, "dogs": 3}}
    assert report["widths"] == [64, 64, 64]
    assert report["formats"] == {"PNG": 18}
    assert report["leaks"] == report["near"] == report["duplicates"] == []
    assert "nothing is wrong" in capsys.readouterr().out


def test_a_json_into_a_folder_that_is_not_there_is_refused(images, capsys):
    with pytest.raises(SystemExit) as ended:
        checked(images, "--json", images / "nowhere" / "report.json")
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert f"there is no folder {images / 'nowhere'}" in said.err
    assert said.out == ""  # the images are not looked at first


def test_an_image_that_does_not_decode_is_named_and_ends_with_1(images, capsys):
    path = images / "train" / "cats" / "0.png"
    path.write_bytes(path.read_bytes()[:-200])
    assert checked(images) == 1
    assert f"{path}: damaged" in capsys.readouterr().out


def test_the_same_bytes_in_both_splits_are_wrong_and_the_same_looks_are_only_told(images):
    train, val = images / "train" / "cats", images / "val" / "cats"
    (val / "same.png").write_bytes((train / "1.png").read_bytes())
    Image.open(train / "2.png").resize((50, 40)).save(val / "near.jpg", quality=80)
    report = check(str(images))
    assert report.leaks == [(str(train / "1.png"), str(val / "same.png"))]
    ((*pair, bits),) = report.near_leaks
    assert pair == [str(train / "2.png"), str(val / "near.jpg")]
    assert 0 <= bits <= 5
    assert report.wrong
    (val / "same.png").unlink()
    report = check(str(images))
    assert len(report.near_leaks) == 1
    assert not report.wrong


def test_images_of_nearly_one_colour_are_compared_by_their_bytes_alone(images):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for value in (1, 128, 250):
            pixels = (value + rng.integers(0, 5, (48, 64, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(images / split / "cats" / f"flat{value}.png")
            flat = Image.new(
                "RGB", (64, 48), (value, value, value - 1 if split == "val" else value)
            )
            flat.save(images / split / "dogs" / f"flat{value}.png")
    report = check(str(images))
    assert report.near == report.near_leaks == report.leaks == []


def test_duplicates_inside_a_split_are_told_and_are_not_wrong(images):
    train = images / "train" / "cats"
    (train / "again.png").write_bytes((train / "1.png").read_bytes())
    Image.open(train / "2.png").resize((50, 40)).save(train / "near.jpg", quality=80)
    report = check(str(images))
    assert report.duplicates == [[str(train / "1.png"), str(train / "again.png")]]
    assert [pair[:2] for pair in report.near] == [(str(train / "2.png"), str(train / "near.jpg"))]
    assert not report.wrong


def test_other_files_and_odd_names_are_listed(images):
    train = images / "train" / "cats"
    noise(99).save(train / " space.png")
    noise(98).convert("RGB").save(train / "really.png", "JPEG")
    (train / "notes.txt").write_text("x")
    (train / ".hidden").write_text("x")
    report = check(str(images))
    assert report.odd_names == [str(train / " space.png")]
    assert report.mismatched == [(str(train / "really.png"), "JPEG")]
    assert report.other_files == [str(train / "notes.txt")]
    assert report.hidden == [str(train / ".hidden")]
    assert not report.wrong


def test_an_empty_class_and_a_link_to_a_folder_above_are_wrong_and_do_not_end_the_check(images):
    (images / "train" / "birds").mkdir()
    (images / "train" / "cats" / "up").symlink_to(images / "train")
    report = check(str(images))
    assert report.empty_classes == [str(images / "train" / "birds")]
    assert report.bad == [
        (str(images / "train" / "cats" / "up"), "a link to a folder that holds it")
    ]
    assert report.splits["train"] == {"birds": 0, "cats": 6, "dogs": 6}
    assert report.wrong


def test_a_link_to_itself_among_the_class_folders_does_not_end_the_check(images):
    (images / "train" / "loop").symlink_to("loop")
    report = check(str(images))
    assert report.other_files == [str(images / "train" / "loop")]
    assert not report.wrong


def test_a_folder_may_be_deeper_than_functions_may_call_each_other(images):
    folder = images.joinpath("train", "cats", *["d"] * 400)
    folder.mkdir(parents=True)
    noise(99).save(folder / "deep.png")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 250)
    try:
        report = check(str(images))
    finally:
        sys.setrecursionlimit(before)
    assert report.splits["train"] == {"cats": 7, "dogs": 6}
    assert report.bad == []


def test_a_class_with_too_few_good_images_to_split_is_refused_as_training_does(tmp_path):
    for seed, name in enumerate(("cats", "dogs")):
        (tmp_path / name).mkdir()
        for number in range(2):
            noise(2 * seed + number).save(tmp_path / name / f"{number}.png")
    assert not check(str(tmp_path)).wrong
    (tmp_path / "dogs" / "1.png").write_bytes(b"no image")
    report = check(str(tmp_path))
    assert "the class 'dogs' has a single image" in report.refused
    assert "dogs/0.png" in report.refused
    for image in tmp_path.glob("*/*.png"):
        image.write_bytes(b"no image")
    report = check(str(tmp_path))
    assert (len(report.bad), report.refused) == (4, "there is no image that can be used")


def test_a_class_that_only_validation_has_is_refused_as_training_does(images):
    (images / "val" / "birds").mkdir()
    noise(97).save(images / "val" / "birds" / "0.png")
    assert "has the class 'birds'" in check(str(images)).refused


def test_the_tables_need_no_more_than_80_columns(images):
    out = Console(width=500, file=io.StringIO())
    tables = [
        part for part in check_table(check(str(images))).renderables if isinstance(part, Table)
    ]
    assert len(tables) == 2
    assert max(Measurement.get(out, out.options, table).maximum for table in tables) <= 80


def test_digits_are_those_of_training_also_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    report = check("digits")
    assert sum(report.splits["all"].values()) == 1797
    assert not report.bad


def test_a_source_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="there is no data source"):
        check("nowhere")


def test_a_wrong_flag_ends_with_2():
    with pytest.raises(SystemExit) as ended:
        main(["--date", "x"])
    assert ended.value.code == 2


def test_the_nearest_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300, dtype=np.uint64)
    hashes[200] = hashes[7] ^ np.uint64(0b101)
    bits = np.array([[(int(a) ^ int(b)).bit_count() for b in hashes] for a in hashes])
    index, distance = nearest(hashes)
    assert (index[0], distance[0]) == (-1, 65)
    for i in range(1, 300):
        assert distance[i] == bits[i, :i].min()
        assert index[i] == bits[i, :i].argmin()
    assert (index[200], distance[200]) == (7, 2)
    index, distance = nearest(hashes[:50], hashes[50:])
    np.testing.assert_array_equal(index, bits[:50, 50:].argmin(axis=1))
    np.testing.assert_array_equal(distance, bits[:50, 50:].min(axis=1))
