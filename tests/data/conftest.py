"""A prepared TFDS data set in the array_record format, written without TensorFlow."""

import json
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

Examples = list[tuple[bytes, int | list[int]]]


@pytest.fixture
def write_tfds():
    """A function that writes a small data set; see `_write_tfds`."""
    return _write_tfds


def _write_tfds(folder: Path, splits: dict[str, Examples], classes: list[str], **more_features):
    """Writes `folder` as one version of a data set: encoded images and labels of every split, of
    which an image may have a list."""
    folder.mkdir(parents=True)
    label = tfds.features.ClassLabel(names=classes)
    several = isinstance(next(iter(splits.values()))[0][1], list)
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.Sequence(label) if several else label,
        **more_features,
    }
    tfds.features.FeaturesDict(features).save_config(folder)
    info = {"name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "splits": []}
    for split, examples in splits.items():
        path = folder / f"tiny-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for image, label in examples:
            writer.write(_example(image, label).SerializeToString())
        writer.close()
        info["splits"].append(
            {
                "name": split,
                "shardLengths": [str(len(examples))],
                "numBytes": str(sum(len(image) for image, _ in examples)),
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    (folder / "dataset_info.json").write_text(json.dumps(info))


def _example(image: bytes, label: int | list[int]) -> tf_example_pb2.Example:
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(image)
    labels = label if isinstance(label, list) else [label]
    example.features.feature["label"].int64_list.value.extend(labels)
    return example
