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

from jaxtl.data.inspection import Facts, Item, inspect
from jaxtl.data.reading import ReadError
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
        all_items: every record of the split, to be looked at by `inspect`.
        numbers: the records that are images of this source.
        labels: the class of each image, an index into `classes`.
        classes: the names of the classes.
        skipped: records that were left out: what they are called, and the reasons.
    """

    name: str
    num_bytes: int
    all_items: tuple[Item, ...]
    numbers: tuple[int, ...]
    labels: Int32[np.ndarray, " images"]
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> bytes:
        """Reads the encoded image."""
        return self.all_items[self.numbers[index]].read()[0]

    def describe(self, index: int) -> str:
        """The name of an image: `NAME/VERSION SPLIT[RECORD]`."""
        return f"{self.name}[{self.numbers[index]}]"

    described_in_source = describe

    @property
    def items(self) -> list[Item]:
        """The images, to be looked at by `inspect`."""
        return [self.all_items[number] for number in self.numbers]

    @functools.cached_property
    def facts(self) -> list[Facts]:
        """What contents and headers of the images say."""
        return inspect(self.items)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over name, version, split, contents, labels, class names and what was skipped."""
        contents = [facts.sha256 for facts in self.facts]
        known = [self.name, self.num_bytes, self.classes, self.labels.tolist(), contents]
        return hashlib.sha256(json.dumps([*known, self.skipped]).encode()).hexdigest()

    @property
    def version(self) -> str:
        """The fingerprint: it covers every image."""
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
        raise UserError(_damaged(name, error)) from error


def _damaged(name: str, error: Exception) -> str:
    reason = textwrap.shorten(str(error), 300) or type(error).__name__
    return f"tfds:{name} is damaged or incomplete: {reason}"


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
    # Data sources take no `PartialDecoding`: parse the features that are wanted.
    wanted = tfds.features.FeaturesDict({k: features[k] for k in (image_key, label_key)})
    undecoded = {image_key: tfds.decode.SkipDecoding()}

    def read(index: int) -> tuple[bytes, int]:
        with _readable(name):
            try:
                record = records[index]
            except Exception as error:  # array_record has no class for a failing disk
                raise ReadError(_damaged(name, error)) from error
            example = wanted.deserialize_example_np(record, decoders=undecoded)
            return example[image_key], int(example[label_key])

    full_name = f"{builder.info.full_name} {split}"
    with _readable(name):
        items = _items(full_name, builder.info.splits[split], len(records), read)
        facts = inspect(items)
    for known in facts:
        if not known.sha256:
            raise UserError(known.problem)
    labels = np.asarray([known.label for known in facts], np.int32)
    if labels.size == 0 or (labels < 0).any():
        raise UserError(f"tfds:{name}: {split!r} has images without a label, or no images")
    info, numbers = builder.info.splits[split], tuple(range(len(items)))
    classes = tuple(features[label_key].names)
    return TfdsSource(full_name, info.num_bytes, items, numbers, labels, classes)


def _items(
    name: str, info: Any, count: int, read: Callable[[int], tuple[bytes, int]]
) -> tuple[Item, ...]:
    """The records, known by the split and by name, size and time of change of its files.

    A record is read as a whole, its image included, and array_record gives no part of one: so
    labels are learnt in the one pass that looks at the images, and kept with what it finds.
    """
    files = [Path(file.filename) for file in info.file_instructions]
    status = [(str(path.resolve()), path.stat()) for path in files]
    stamped = [name, [(path, s.st_size, s.st_mtime_ns, s.st_ino) for path, s in status]]
    stamp = hashlib.sha256(json.dumps(stamped).encode()).hexdigest()
    place = str(files[0].resolve().parent)
    return tuple(
        Item(
            os.fsencode(f"tfds:{place} {name}[{i}]"),
            stamp,
            f"{name}[{i}]",
            functools.partial(read, i),
        )
        for i in range(count)
    )


def _only_key(features: Any, kind: type, what: str, name: str) -> str:
    keys = [key for key, feature in features.items() if type(feature) is kind]
    if len(keys) != 1:
        raise UserError(
            f"tfds:{name} has {len(keys)} features of the kind {what}, and must have exactly one"
        )
    return keys[0]
