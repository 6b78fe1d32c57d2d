"""Prepared TFDS data sets, read without TensorFlow."""

import io
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxtl.config import Data
from jaxtl.data.checking import check
from jaxtl.data.decoding import decode
from jaxtl.data.sources import absolute, open_all
from jaxtl.data.splits import open_splits
from jaxtl.errors import UserError

CLASSES = ["ant", "bee", "cow"]


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def examples(count, start=0):
    return [(png(start + i), i % 3) for i in range(count)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "tiny" / "1.0.0"


def split(spec):
    return open_splits(Data(source=f"tfds:{spec}"))


def refused(spec):
    with pytest.raises(UserError) as caught:
        split(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_come_undecoded_with_labels_and_names(write_tfds, folder):
    write_tfds(folder, {"train": examples(9), "validation": examples(4, 100)}, CLASSES)
    train, val, _ = split(folder)
    assert train.classes == val.classes == tuple(CLASSES)
    np.testing.assert_array_equal(train.labels, [0, 1, 2] * 3)
    assert [train[i] for i in range(9)] == [png(i) for i in range(9)]
    assert [val[i] for i in range(4)] == [png(100 + i) for i in range(4)]
    assert (decode(val[3], 4, "stretch") == 103).all()
    assert val.describe(2) == "tiny/1.0.0 validation[2]"
    assert train.fingerprint != val.fingerprint == split(folder).val.fingerprint
    assert open_all(f"tfds:{folder}").fingerprint == val.fingerprint


@pytest.mark.parametrize("val", ["validation", "val"])
def test_a_test_beside_validation(write_tfds, folder, val):
    parts = {"train": examples(6), "test": examples(3), val: examples(4)}
    write_tfds(folder, parts, CLASSES)
    assert [len(part) for part in split(folder)] == [6, 4, 3]


def test_train_alone_is_split_by_class(write_tfds, folder):
    write_tfds(folder, {"train": examples(15)}, CLASSES)
    train, val, _ = split(folder)
    np.testing.assert_array_equal(np.bincount(train.labels), [4, 4, 4])
    np.testing.assert_array_equal(np.bincount(val.labels), [1, 1, 1])
    assert len(open_all(f"tfds:{folder}")) == 15


def test_a_sequence_of_labels_gives_images_several(write_tfds, folder):
    labels = [[2, 0], [], [1], [1]]
    several = [(png(i), own) for i, own in enumerate(labels)]
    write_tfds(folder, {"train": several, "val": several[:2]}, CLASSES)
    for _ in range(2):  # the second time from what is kept of them
        train, val, _ = split(folder)
        np.testing.assert_array_equal(train.labels, [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 0]])
        np.testing.assert_array_equal(val.labels, [[1, 0, 1], [0, 0, 0]])
    source = open_all(f"tfds:{folder}", classes=("cow", "ant"), multi_label=True)
    np.testing.assert_array_equal(source.labels, [[1, 1], [0, 0]])


def test_a_sequence_with_a_label_that_is_missing_is_refused(write_tfds, folder):
    write_tfds(folder, {"train": [(png(0), [0]), (png(1), [1, -1])]}, CLASSES)
    assert "'train' has images without a label" in refused(folder)


def test_evaluation_maps_labels_by_name(write_tfds, folder):
    write_tfds(folder, {"train": examples(3)}, CLASSES)
    source = open_all(f"tfds:{folder}", classes=("cow", "bee", "ant"))
    np.testing.assert_array_equal(source.labels, [2, 1, 0])


def test_a_name_is_found_and_read_without_tensorflow(write_tfds, folder, tmp_path):
    write_tfds(folder, {"train": examples(6), "val": examples(3)}, CLASSES)
    program = """
import sys
from jaxtl.config import Data
from jaxtl.data.loader import Loader
from jaxtl.data.splits import open_splits
assert "tensorflow_datasets" not in sys.modules
train = open_splits(Data(source="tfds:tiny")).train
loader = Loader(train, image_size=4, resize="stretch", batch_size=6, seed=0, shuffle=False,
                memory_bytes=0)
print(next(loader.epoch(0)).inputs[:, 0, 0, 0].tolist())
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"TFDS_DATA_DIR": str(tmp_path), "PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[0, 1, 2, 3, 4, 5]\n", done.stderr


def test_a_data_set_that_is_not_prepared_is_refused_with_the_command_that_prepares_it():
    message = refused("no_such_set")
    assert "pip install 'jaxtl[tfds]'" in message
    assert "tfds build no_such_set --file_format=array_record" in message


def test_a_data_set_in_another_format_is_refused_alike(write_tfds, folder):
    write_tfds(folder, {"train": examples(6)}, CLASSES)
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    for path in folder.glob("*.array_record-*"):
        path.rename(folder / path.name.replace("array_record", "tfrecord"))
    assert "tfds build tiny --file_format=array_record" in refused(folder)


def test_the_folder_above_a_version_is_refused_by_naming_what_is_needed(write_tfds, folder):
    write_tfds(folder, {"train": examples(6)}, CLASSES)
    message = refused(folder.parent)
    assert "has no dataset_info.json" in message
    assert f"tfds:{folder}" in message


def test_a_data_set_without_train_is_refused(write_tfds, folder):
    write_tfds(folder, {"test": examples(3)}, CLASSES)
    assert "has no split 'train', only test" in refused(folder)


def test_two_images_in_an_example_are_refused(write_tfds, folder):
    write_tfds(folder, {"train": examples(3)}, CLASSES, mask=tfds.features.Image())
    assert "has 2 features of the kind image" in refused(folder)


def test_two_labels_in_an_example_are_refused(write_tfds, folder):
    other = tfds.features.ClassLabel(num_classes=2)
    write_tfds(folder, {"train": examples(3)}, CLASSES, coarse=other)
    assert "has 2 features of the kind class label" in refused(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset_info.json", b"{"),
        ("dataset_info.json", b"[" * 100_000),
        ("features.json", None),
        ("features.json", b"\xff"),
        ("tiny-train.array_record-00000-of-00001", None),
        ("tiny-train.array_record-00000-of-00001", b"half"),
    ],
)
def test_a_damaged_or_missing_file_is_told_in_one_line(write_tfds, folder, file, content):
    write_tfds(folder, {"train": examples(6)}, CLASSES)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    message = refused(folder)
    assert message.startswith(f"tfds:{folder}")
    if content == b"half":
        assert "train[0] cannot be read: ArrayRecord file" in message
    else:
        assert " is damaged or incomplete: " in message


def test_an_empty_split_is_refused_by_its_name(write_tfds, folder):
    write_tfds(folder, {"train": examples(6), "validation": []}, CLASSES)
    assert refused(folder) == f"tfds:{folder} has no images in 'validation'"


def test_records_that_cannot_be_read_for_a_while_are_waited_for(write_tfds, folder, caplog):
    write_tfds(folder, {"train": examples(6)}, CLASSES)
    (path,) = folder.glob("*.array_record-*")
    whole = path.read_bytes()
    path.write_bytes(b"half")

    def mend():
        end = time.monotonic() + 60
        while "trying again" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)
        path.write_bytes(whole)

    other = threading.Thread(target=mend)
    other.start()
    splits = open_splits(Data(source=f"tfds:{folder}"))
    other.join()
    assert sum(map(len, splits.named.values())) == 6
    assert "tiny/1.0.0 train[0]: cannot be read: ArrayRecord file" in caplog.text


EVIL = "evil_feature.Feature"


@pytest.mark.parametrize(
    "feature",
    [
        {"pythonClassName": EVIL, "jsonFeature": {"json": "{}"}},
        {"python_class_name": EVIL},
        {"type": EVIL, "content": {}},
        {
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": json.dumps({"image": {"type": EVIL, "content": "{}"}})},
        },
    ],
)
@pytest.mark.parametrize("by_name", [False, True])
def test_a_data_set_cannot_have_code_run(
    write_tfds, folder, tmp_path, monkeypatch, feature, by_name
):
    write_tfds(folder, {"train": examples(6)}, CLASSES)
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["more"] = feature
    (folder / "features.json").write_text(json.dumps(features))
    (tmp_path / "evil_feature.py").write_text(
        f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = folder
    if by_name:
        monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
        spec = "tiny"
    assert f"would run code of its own ('{EVIL}')" in refused(spec)
    assert not (tmp_path / "ran").exists()


def test_records_have_no_names_that_could_be_those_of_another_format(write_tfds, folder):
    write_tfds(folder, {"train": examples(9)}, CLASSES)
    report = check(f"tfds:{folder}")
    assert report.splits == {"all": {"ant": 3, "bee": 3, "cow": 3}}
    assert report.mismatched == report.odd_names == report.bad == []
    assert not report.wrong


def test_a_description_that_would_fill_the_memory_is_refused(write_tfds, folder):
    write_tfds(folder, {"train": examples(6)}, CLASSES)
    with (folder / "features.json").open("ab") as file:
        file.write(b" " * 17_000_000)
    assert refused(folder).endswith("it is larger than 16 MB")


def test_a_folder_with_the_name_of_a_data_set_is_not_taken_for_it(write_tfds, folder, monkeypatch):
    write_tfds(folder, {"train": examples(6)}, CLASSES)
    monkeypatch.chdir(folder.parents[1])
    assert absolute("tfds:tiny") == "tfds:tiny"
    assert absolute("tfds:tiny/1.0.0") == f"tfds:{folder}"


def test_images_without_a_label_are_refused(write_tfds, folder):
    write_tfds(folder, {"train": examples(6), "val": [(png(0), -1)]}, CLASSES)
    assert "'val' has images without a label" in refused(folder)


@pytest.mark.parametrize("others", [{"validation": examples(4)}, {}], ids=["validation", "none"])
def test_a_test_without_labels_is_ignored(write_tfds, folder, caplog, others):
    write_tfds(folder, {"train": examples(6), "test": [(png(0), -1)]} | others, CLASSES)
    assert open_splits(Data(source=f"tfds:{folder}")).test is None
    assert "'test' has images without a label: it is ignored" in caplog.text
