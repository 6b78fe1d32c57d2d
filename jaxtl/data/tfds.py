"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow.

Only files in the array_record format allow random access. Writing them does need TensorFlow, once:
`tfds build NAME --file_format=array_record`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from jaxtl.errors import UserError

DESCRIPTION = "dataset_info.json"
"""The file that makes a folder a prepared version of a data set."""

VALIDATION_SPLITS = ("validation", "val", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """One split of a prepared data set.

    Attributes:
        name: the full name of the data set and its split, `NAME/VERSION SPLIT`.
        num_bytes: size of the split, as the data set states it.
        read: gives the encoded image of an index.
        labels: the class of each image, an index into `classes`.
        classes: the names of the classes.
    """

    name: str
    num_bytes: int
    read: Callable[[int], bytes]
    labels: Int32[np.ndarray, " images"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> bytes:
        """Reads the encoded image."""
        return self.read(index)

    def describe(self, index: int) -> str:
        """The name of an image: `NAME/VERSION SPLIT[INDEX]`."""
        return f"{self.name}[{index}]"

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over name, version, split and its size in bytes, labels and class names."""
        known = [self.name, self.num_bytes, self.classes, self.labels.tolist()]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    @property
    def version(self) -> str:
        """The fingerprint: a prepared version of a data set never changes."""
        return self.fingerprint


def open_tfds(name: str) -> tuple[TfdsSource, TfdsSource | None]:
    """Opens the split `train` of a data set and the first of `validation`, `val` and `test`.

    Args:
        name: what TFDS calls it (`NAME`, `NAME/CONFIG`, `NAME:VERSION`), looked for in
            TFDS_DATA_DIR or `~/tensorflow_datasets`, or the folder of one version of a data set.

    Returns:
        The training images, and the validation images or None where there is no such split.

    Raises:
        UserError: TFDS is not installed, the data set is not prepared in this format, it has no
            `train`, it has not exactly one image and one class label, or an image has no label.
    """
    with _readable(name):
        builder = _builder(name)
    if "train" not in builder.info.splits:
        raise UserError(f"tfds:{name} has no split 'train', only {', '.join(builder.info.splits)}")
    second = next((s for s in VALIDATION_SPLITS if s in builder.info.splits), None)
    train = _source(builder, "train", name)
    return train, None if second is None else _source(builder, second, name)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns what TFDS and array_record raise on damaged or missing files into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # their errors are of every kind
        reason = textwrap.shorten(str(error), 300) or type(error).__name__
        raise UserError(f"tfds:{name} is damaged or incomplete: {reason}") from error


def _builder(name: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"tfds:{name} needs TensorFlow Datasets: pip install 'jaxtl[tfds]'"
        ) from error
    folder = Path(os.path.expanduser(name))
    if (folder / DESCRIPTION).is_file():
        return tfds.builder_from_directory(folder)
    try:
        # Not `tfds.builder`: that runs the data set's own code, which may want TensorFlow.
        return tfds.core.read_only_builder.builder_from_files(name)
    except ValueError as error:  # DatasetNotFoundError is one, and so are names that make no sense
        if folder.is_dir():
            raise UserError(
                f"tfds:{name} has no {DESCRIPTION}: give the folder of one version of a "
                f"prepared data set, such as tfds:{folder / '1.0.0'}"
            ) from error
        raise UserError(_not_prepared(name)) from error


def _not_prepared(name: str) -> str:
    return (
        f"tfds:{name} is not prepared for random access: pip install 'jaxtl[tfds]', "
        f"then tfds build {name} --file_format=array_record"
    )


def _source(builder: Any, split: str, name: str) -> TfdsSource:
    import tensorflow_datasets as tfds

    features = builder.info.features
    image_key = _only_key(features, tfds.features.Image, "image", name)
    label_key = _only_key(features, tfds.features.ClassLabel, "class label", name)
    try:
        records = builder.as_data_source(
            split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except (NotImplementedError, ValueError) as error:
        raise UserError(_not_prepared(builder.name)) from error
    # Data sources take no `PartialDecoding`: parse the one feature that is wanted.
    image_alone = tfds.features.FeaturesDict({image_key: features[image_key]})
    label_alone = tfds.features.FeaturesDict({label_key: features[label_key]})
    undecoded = {image_key: tfds.decode.SkipDecoding()}

    def read(index: int) -> bytes:
        with _readable(name):
            record = records[index]
            return image_alone.deserialize_example_np(record, decoders=undecoded)[image_key]

    with _readable(name):
        parsed = [label_alone.deserialize_example_np(record) for record in records]
    labels = np.asarray([example[label_key] for example in parsed], np.int32)
    if labels.size == 0 or labels.min() < 0:
        raise UserError(f"tfds:{name}: {split!r} has images without a label, or no images")
    info = builder.info.splits[split]
    classes = tuple(features[label_key].names)
    full_name = f"{builder.info.full_name} {split}"
    return TfdsSource(full_name, info.num_bytes, read, labels, classes)


def _only_key(features: Any, kind: type, what: str, name: str) -> str:
    keys = [key for key, feature in features.items() if type(feature) is kind]
    if len(keys) != 1:
        raise UserError(
            f"tfds:{name} has {len(keys)} features of the kind {what}, and must have exactly one"
        )
    return keys[0]
