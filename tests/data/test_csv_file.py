"""Images that a CSV file lists: what is read, and what is refused with the number of its line."""

import csv

import numpy as np
import pytest
from PIL import Image

from jaxtl.config import Data
from jaxtl.data.checking import check
from jaxtl.data.sources import absolute, found_line, open_all
from jaxtl.data.splits import open_splits, skipped, stratified_split
from jaxtl.errors import UserError


@pytest.fixture
def write(tmp_path):
    """A function that writes images and a CSV file of rows, of which the first is the header."""

    def write(*rows, images=True):
        header = [name.strip() for name in rows[0]]
        place = header.index("image") if "image" in header else None
        for number, row in enumerate(rows[1:]):
            if images and place is not None and len(row) > place and row[place].strip():
                path = tmp_path / row[place].strip()
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (6, 6), (number, 0, 0)).save(path)
        with (tmp_path / "list.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return f"csv:{tmp_path}/list.csv"

    return write


def split(spec, **settings):
    return open_splits(Data(source=spec, **{"val_fraction": 0.25} | settings))


def named(source):
    """The names of the labels of each image, by the name of its file."""
    return {
        source.describe(i).rpartition("/")[2]: [
            source.classes[c] for c in np.flatnonzero(source.labels[i])
        ]
        for i in range(len(source))
    }


def refused(spec):
    with pytest.raises(UserError) as caught:
        split(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


LABELS = (
    ("image", "labels", "split", "width"),
    ("a.png", "dog; cat ;", "train", "6"),
    ("deep/b.png", "", "train", "6"),
    ("c.png", "owl;owl", "train", "6"),
    ("d.png", "cat", "val", "6"),
    ("e.png", "owl;cat", "test", "6"),
)


def test_several_labels_are_rows_of_ones_and_zeros(write):
    train, val, test = split(write(*LABELS))
    assert train.classes == val.classes == test.classes == ("cat", "dog", "owl")
    np.testing.assert_array_equal(train.labels, [[1, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert named(train) == {"a.png": ["cat", "dog"], "b.png": [], "c.png": ["owl"]}
    assert named(val) == {"d.png": ["cat"]}
    assert named(test) == {"e.png": ["cat", "owl"]}
    assert found_line(train) == "Found 3 images with 3 labels of 3 classes."


def test_one_label_each_is_a_class(write):
    rows = [(f"{i}.png", ("ant", "bee")[i % 2]) for i in range(8)]
    train, val, test = split(write(("image", "label"), *rows))
    assert train.classes == ("ant", "bee")
    assert (len(train), len(val), test) == (6, 2, None)
    assert sorted(val.labels.tolist()) == [0, 1]


def test_a_test_alone_beside_the_training_images_chooses_nothing(write):
    more = [(f"{name}.png", "cat", "train", "6") for name in "xyz"]
    spec = write(*LABELS[:4], *more, ("d.png", "cat", "test", "6"))
    train, val, test = split(spec)
    assert [len(part) for part in (train, val, test)] == [4, 2, 1]
    assert test.described_in_source(0) == "d.png"
    assert check(spec).images == {"train": 6, "test": 1}


def test_the_fingerprint_is_the_same_elsewhere_and_another_with_other_labels(
    write, tmp_path, monkeypatch
):
    spec = write(*LABELS)
    before = [part.fingerprint for part in split(spec)]
    monkeypatch.chdir(tmp_path)
    assert absolute("csv:list.csv") == spec
    assert [part.fingerprint for part in split("csv:list.csv")] == before
    write(*LABELS[:2], ("deep/b.png", "cat", "train", "6"), *LABELS[3:])
    assert split(spec).train.fingerprint != before[0]
    assert split(spec).val.fingerprint == before[1]


def test_a_list_that_is_a_link_keeps_its_own_path_which_its_images_are_beside(
    write, tmp_path, monkeypatch
):
    spec = write(*LABELS)
    (tmp_path / "lists").mkdir()
    (tmp_path / "list.csv").rename(tmp_path / "lists" / "first.csv")
    (tmp_path / "list.csv").symlink_to("lists/first.csv")
    (tmp_path / "here").symlink_to(".")
    monkeypatch.chdir(tmp_path)
    assert absolute("csv:here/list.csv") == spec
    assert named(split(absolute("csv:list.csv")).train) == named(split("csv:list.csv").train)


def test_absolute_paths_are_read_and_a_mark_of_byte_order_is_passed_over(write, tmp_path):
    spec = write(("image", "labels"), (str(tmp_path / "far" / "a.png"), "cat"), ("b.png", ""))
    file = tmp_path / "list.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    source = open_all(spec)
    assert source.describe(0) == str(tmp_path / "far" / "a.png")
    assert source[0] == (tmp_path / "far" / "a.png").read_bytes()


ROW = ("a.png", "cat", "train")
WRONG = {
    "the image twice": ((*ROW,), "line 3: a.png is in line 2 already: give each image one row"),
    "other split": (("b.png", "cat", "valid"), "line 3: the split 'valid' is none of train, val"),
    "no path": (("", "cat", "train"), "line 3: it names no image"),
    "fields": (("b.png", "cat"), "line 3: it has more or fewer fields than the first line"),
    "unknown": (("b.png", "cat;dgo", "val"), "line 3: no image of the split train is of class"),
}


def test_a_table_without_training_rows_is_refused_unless_all_its_rows_are_measured(write):
    message = refused(write(("image", "labels", "split"), ("a.png", "cat", "test")))
    assert "lists no images of the split train: leave the column split out" in message
    assert len(open_all(write(("image", "labels"), ("a.png", "cat")))) == 1


def test_what_spreadsheets_add_is_passed_over(write):
    header = ("image ", " labels", "", "", "width", "width")
    rows = [("a.png", "cat", "", "", "", ""), ("b.png", "", "", "x", "1", "2")]
    empty = [("",) * 6, (" ",) * 6, ("",) * 3, ("",) * 9]
    source = open_all(write(header, *rows, *empty))
    assert named(source) == {"a.png": ["cat"], "b.png": []}
    after = ("c.png", *rows[0][1:], "surplus")
    message = "line 8: it has more or fewer fields than the first line"
    assert message in refused(write(header, *rows, *empty, after))


@pytest.mark.parametrize("which", WRONG)
def test_a_row_that_is_wrong_is_refused_with_its_line(write, which):
    row, message = WRONG[which]
    assert message in refused(write(("image", "labels", "split"), ROW, row))


def test_an_image_that_is_not_there_is_refused_with_its_line_at_once(write, tmp_path):
    spec = write(("image", "labels"), ("a.png", "cat"), ("b.png", "dog"))
    (tmp_path / "b.png").unlink()
    assert "list.csv, line 3: there is no image b.png" in refused(spec)


def test_a_class_that_is_left_out_is_refused_with_its_line(write):
    spec = write(("image", "label"), ("a.png", "cat"), ("b.png", ""))
    assert "line 3: the image has no label; a column labels may be empty" in refused(spec)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (("file", "labels"), "has the columns file, labels: its first line has to name"),
        (("image", "label", "labels"), "has the columns image, label, labels"),
        (("image", "labels", "labels"), "has two columns 'labels'"),
    ],
)
def test_other_columns_are_refused(write, header, message):
    assert message in refused(write(header, ("a.png", "x", "y")[: len(header)], images=False))


def test_files_that_are_no_csv_files_are_refused(tmp_path):
    file = tmp_path / "list.csv"
    for content, message in (
        (b"", "of an empty file"),
        (b"image,labels\n\xff.png,a\n", "is not UTF-8"),
        (b'image,labels\na.png,"cat\n', "line 2: unexpected end of data"),
        (b"image,labels\n,\n", "list.csv lists no images"),
        (b"image;labels\na.png;cat\n", "has the columns image;labels: its first line has to "),
        (b"image\tlabels\na.png\tcat\n", "image, and label or labels, separated by commas"),
    ):
        file.write_bytes(content)
        assert message in refused(f"csv:{file}")
    assert "there is no data source csv:" in refused(f"csv:{tmp_path}/other.csv")
    assert "has to be on a disk" in refused("csv:gs://bucket/list.csv")
    assert f"or csv:{file} if it lists images" in refused(str(file))


def test_labels_that_tell_nothing_are_refused(write):
    header = ("image", "labels")
    assert "no image of the split train has a label" in refused(write(header, ("a.png", "")))
    rows = [(f"{i}.png", "cat") for i in range(4)]
    message = refused(write(header, *rows))
    assert "has the label 'cat': list images without it too" in message
    assert "a classifier needs at least two" in refused(write(("image", "label"), *rows))


def test_a_split_of_several_labels_is_a_plain_draw_and_of_one_keeps_its_fraction(write):
    rng = np.random.default_rng(0)
    rows = [(f"{i}.png", ";".join(rng.choice(["a", "b", "c"], 2))) for i in range(40)]
    source = open_all(write(("image", "labels"), *rows))
    kept, held_out = stratified_split(source, 0.25, seed=3)
    assert (len(kept), len(held_out)) == (30, 10)
    expected = np.sort(np.random.RandomState(3).permutation(40)[:10])
    np.testing.assert_array_equal(held_out, expected)

    rows = [(f"{i}.png", "rare" if i % 10 == 0 else "") for i in range(40)]
    train, val, _ = split(write(("image", "labels"), *rows))
    assert (int(train.labels.sum()), int(val.labels.sum())) == (3, 1)
    in_folds = [split(write(("image", "labels"), *rows), folds=4, fold=k).val for k in range(4)]
    assert [int(part.labels.sum()) for part in in_folds] == [1] * 4
    assert len({name for part in in_folds for name in named(part)}) == 40


def test_evaluation_maps_labels_by_name_and_refuses_the_other_kind(write):
    spec = write(("image", "labels"), ("a.png", "cat;owl"), ("b.png", "dog"))
    source = open_all(spec, classes=("owl", "emu", "dog", "cat"), multi_label=True)
    np.testing.assert_array_equal(source.labels, [[1, 0, 0, 1], [0, 0, 1, 0]])
    with pytest.raises(UserError, match=r"images of the class 'owl', which the run does not know"):
        open_all(spec, classes=("cat", "dog"), multi_label=True)
    with pytest.raises(UserError, match=r"several labels an image, and the run one class"):
        open_all(spec, classes=("cat", "dog", "owl"))
    header, *rows = LABELS
    unlabelled = write(header, *rows[:3], ("d.png", "", "val", "6"))
    with pytest.raises(UserError, match=r"no image of csv:.* has a label: there is nothing to me"):
        open_all(unlabelled, classes=("cat", "dog", "owl"), multi_label=True)
    with pytest.raises(UserError, match=r"one class an image, and the run several labels"):
        open_all("digits", classes=tuple("0123456789"), multi_label=True)


def test_bad_images_are_left_out_unless_no_other_has_a_label(write, tmp_path):
    rows = [(f"{i}.png", "cat;dog" if i % 2 else "owl") for i in range(8)]
    spec = write(("image", "labels"), *rows)
    (tmp_path / "1.png").write_bytes(b"no image")
    train, val, _ = split(spec, on_bad_image="skip")
    assert len(train) + len(val) == 7
    for number in (3, 5, 7):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"no image of the class 'cat' can be used: .*/1\.png: "):
        split(spec, on_bad_image="skip")


def test_a_check_counts_images_and_labels(write, tmp_path):
    report = check(write(*LABELS))
    assert report.splits["train"] == {"cat": 1, "dog": 1, "owl": 1}
    assert report.images == {"train": 3, "val": 1, "test": 1}
    assert report.refused is None


def test_a_csv_file_is_split_by_its_column_and_the_messages_say_so(write):
    with pytest.raises(UserError, match=r"data\.folds .* the split train in its column split$"):
        split(write(*LABELS), folds=3)
    several = ("image", "labels"), ("a.png", "cat;dog")
    assert "the data set has a single image (" in refused(write(*several))
    one = ("image", "labels"), ("a.png", "cat"), ("b.png", "")
    message = refused(write(*one))
    assert "the part without the label 'cat' has a single image (" in message
    assert message.endswith("or by the column split of a CSV file")


def test_bad_images_are_recorded_by_the_paths_in_the_file(write, tmp_path):
    far = str(tmp_path / "far" / "f.png")
    header, *rows = LABELS
    spec = write(header, *rows, ("bad.png", "cat", "train", "6"), (far, "cat", "val", "6"))
    for path in ("bad.png", far):
        (tmp_path / path).write_bytes(b"no image")
    left_out = skipped(split(spec, on_bad_image="skip"))
    assert [path for path, _ in left_out] == ["bad.png", far]
