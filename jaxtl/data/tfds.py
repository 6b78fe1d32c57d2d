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
import logging
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import platformdirs
from jaxtyping import Int64

from jaxtl.data.facts import Item, KeptFacts, StoredLabel, stamp
from jaxtl.data.inspection import inspect
from jaxtl.data.reading import ReadError
from jaxtl.data.vetting import EncodedSource
from jaxtl.errors import UserError
from jaxtl.files import read_json, replacing
from jaxtl.labels import Labels
from jaxtl.objects import Unreachable, is_remote, list_folder

_log = logging.getLogger("jaxtl")

DESCRIPTION = "dataset_info.json"
"""The file that makes a folder a prepared version of a data set."""

VALIDATION_SPLITS = ("validation", "val")

# What `features.json` calls the class of a feature: protobuf's two spellings, and TFDS before 4.3.
_CLASS = ("pythonClassName", "python_class_name", "type")


class Unlabelled(UserError):
    """A split has images without a label."""


class Records(NamedTuple):
    """The records of a split.

    A record is read as a whole, its image included, and array_record gives no part of one: so
    labels are learnt in the one pass that looks at the images, and kept with what it finds.

    Attributes:
        name: of the data set and its split.
        folder: where its files are, and by which its images are found in the cache.
        stamp: changes with its files; None if what is known may not be kept.
        read: gives the encoded image and the label of a record.
    """

    name: str
    folder: Path
    stamp: str | None
    read: Callable[[int], tuple[bytes, StoredLabel]]

    def items(self, numbers: Int64[np.ndarray, " images"]) -> Iterator[Item]:
        """Some records, to be looked at by `inspect`."""
        for i in numbers.tolist():
            name = f"{self.name}[{i}]"
            key = os.fsencode(f"{self.folder}/tfds:{name}")
            yield Item(key, self.stamp, name, functools.partial(self.read, i))


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource(EncodedSource):
    """One split of a prepared data set.

    Attributes:
        name: the full name of the data set and its split, `NAME/VERSION SPLIT`.
        num_bytes: size of the split, as the data set states it.
        records: every record of the split.
        numbers: the records that are images of this source.
        labels: the class of each image, an index into `classes`, or all its classes.
        classes: the names of the classes.
        skipped: records that were left out: what they are called, and the reasons.
    """

    name: str
    num_bytes: int
    records: Records
    numbers: Int64[np.ndarray, " images"]
    labels: Labels
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, index: int) -> bytes:
        """Reads the encoded image."""
        return self.records.read(int(self.numbers[index]))[0]

    def describe(self, index: int) -> str:
        """The name of an image: `NAME/VERSION SPLIT[RECORD]`."""
        return f"{self.name}[{self.numbers[index]}]"

    described_in_source = describe

    def items(self) -> Iterator[Item]:
        """The images, to be looked at by `inspect`."""
        return self.records.items(self.numbers)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over name, version, split, contents, labels, class names and what was skipped."""
        contents = [facts.sha256 for facts in self.facts]
        skipped = [name for name, _ in self.skipped]
        known = [self.name, self.num_bytes, self.classes, self.labels.tolist(), contents, skipped]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def only(self, kept: Sequence[int], skipped: tuple[tuple[str, str], ...]) -> TfdsSource:
        """The images of some indices."""
        numbers, labels = self.numbers[list(kept)], self.labels[list(kept)]
        return dataclasses.replace(self, numbers=numbers, labels=labels, skipped=skipped)


def open_tfds(
    name: str, *, pixels: bool = False, retry: float = 0
) -> tuple[TfdsSource, TfdsSource | None, TfdsSource | None]:
    """Opens the split `train` of a data set, the first of `validation` and `val`, and `test`.

    A sequence of class labels gives images several labels.

    Args:
        name: what TFDS calls it (`NAME`, `NAME/CONFIG`, `NAME:VERSION`), looked for in
            TFDS_DATA_DIR or `~/tensorflow_datasets`, or the folder of one version of a data set;
            one on an object store is copied to the user's cache directory, once.
        pixels, retry: as for `inspect`, which reads the labels.

    Returns:
        The images to train on, those for validation and those for the test; None without such a
        split. A test without labels is ignored; a warning says so.

    Raises:
        UserError: TFDS is not installed, the data set is not prepared in this format, it is
            damaged or has code of its own, it has no `train`, it has not exactly one image and one
            class label or sequence of these, an image has no label, or a record cannot be read.
    """
    found = str(_local_copy(name)) if is_remote(name) else name
    with _explained(f"tfds:{name} is damaged or incomplete"):
        builder = _builder(found)
    if "train" not in builder.info.splits:
        raise UserError(f"tfds:{name} has no split 'train', only {', '.join(builder.info.splits)}")
    there = [split for split in VALIDATION_SPLITS if split in builder.info.splits]
    val, test = None, None
    train = _source(builder, "train", name, pixels, retry)
    if there:
        val = _source(builder, there[0], name, pixels, retry)
    if "test" in builder.info.splits:
        try:
            test = _source(builder, "test", name, pixels, retry)
        except Unlabelled as error:
            _log.warning("%s: it is ignored", error)
    return train, val, test


def _local_copy(url: str) -> Path:
    """Copies a folder of an object store, whose files array_record cannot read there.

    Raises:
        UserError: the folder has no data set, or the store refuses it.
        ReadError: the store cannot be reached now.
    """
    try:
        folder = list_folder(url)
        if f"{folder.key}/{DESCRIPTION}" not in folder.stamps:
            raise UserError(f"tfds:{url} has no {DESCRIPTION}: give a folder that was packed")
        known = json.dumps([url, folder.stamps])
        name = hashlib.sha256(known.encode()).hexdigest()[:32]
        target = platformdirs.user_cache_path("jaxtl") / "packed" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{target}.lock"):  # processes of one machine copy it once
            if not target.exists():
                _log.info("copying %s to %s, once", url, target)
                with replacing(target) as part:
                    part.mkdir()
                    for path in folder.files():
                        folder.copy(path, part / Path(path).name)
    except FileNotFoundError as error:
        raise UserError(f"there is no tfds:{url}: no such bucket or folder") from error
    except Unreachable as error:
        raise ReadError(str(error)) from error
    return target


@contextlib.contextmanager
def _explained(what: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Turns what TFDS and array_record raise on damaged or missing files into one line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # their errors are of every kind
        reason = textwrap.shorten(str(error), 300) or type(error).__name__
        raise kind(f"{what}: {reason}") from error


def _builder(name: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"tfds:{name} needs TensorFlow Datasets: pip install 'jaxtl[tfds]'"
        ) from error
    folder = Path(os.path.expanduser(name))
    if not (folder / DESCRIPTION).is_file():
        found = None
        # Not `tfds.builder`: that runs the data set's own code, which may want TensorFlow. Nor
        # `builder_from_files`, which looks for the folder alike, but opens it at once.
        tell = tfds.core.utils.error_utils.record_error_context()
        with tell, contextlib.suppress(ValueError):  # names that make no sense
            found = tfds.core.read_only_builder._find_builder_dir(name)
        with KeptFacts() as kept:
            if found is None and not folder.exists() and kept.has_below(folder):
                raise ReadError(f"{folder} is not there any more")
        if found is None and folder.is_dir():
            raise UserError(
                f"tfds:{name} has no {DESCRIPTION}: give the folder of one version of a "
                f"prepared data set, such as tfds:{folder / '1.0.0'}"
            )
        if found is None:
            raise UserError(_not_prepared(name))
        folder = Path(found)
    read_json(folder / DESCRIPTION)  # refuses what would take all memory
    for kind in _classes(read_json(folder / "features.json")):
        if not kind.startswith("tensorflow_datasets."):  # TFDS imports the module that is named
            raise UserError(
                f"tfds:{name} would run code of its own ({kind!r}), which is refused: prepare it "
                "with features of TensorFlow Datasets alone"
            )
    return tfds.builder_from_directory(folder)


def _classes(features: Any) -> Iterator[str]:
    """The names of classes in a `features.json`, where JSON may be text inside of JSON."""
    if isinstance(features, str):
        with contextlib.suppress(ValueError):
            yield from _classes(json.loads(features))
    elif isinstance(features, list):
        for each in features:
            yield from _classes(each)
    elif isinstance(features, dict):
        for key, value in features.items():
            if key in _CLASS and isinstance(value, str):
                yield value
            else:
                yield from _classes(value)


def _not_prepared(name: str) -> str:
    return (
        f"tfds:{name} is not prepared for random access: pip install 'jaxtl[tfds]', "
        f"then tfds build {name} --file_format=array_record"
    )


def _source(builder: Any, split: str, name: str, pixels: bool, retry: float) -> TfdsSource:
    import tensorflow_datasets as tfds

    features = builder.info.features
    several = tfds.features.Sequence
    kinds = {k: f.feature if type(f) is several else f for k, f in features.items()}
    image_key = _only_key(features, tfds.features.Image, "image", name)
    label_key = _only_key(kinds, tfds.features.ClassLabel, "class label", name)
    info = builder.info.splits[split]
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise UserError(_not_prepared(builder.name))
    if not info.num_examples:
        raise UserError(f"tfds:{name} has no images in {split!r}")
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    opened = functools.partial(builder.as_data_source, split=split, deserialize_method=raw)
    with _explained(f"tfds:{name} is damaged or incomplete"):
        records = opened()
    # Data sources take no `PartialDecoding`: parse the features that are wanted.
    wanted = tfds.features.FeaturesDict({k: features[k] for k in (image_key, label_key)})
    undecoded = {image_key: tfds.decode.SkipDecoding()}

    def read(index: int) -> tuple[bytes, StoredLabel]:
        nonlocal records
        with _explained("cannot be read", ReadError):  # array_record tells no failing disk apart
            try:
                record = records[index]
            except Exception:
                records = opened()  # a reader that failed once always fails
                raise
        with _explained("damaged"):
            example = wanted.deserialize_example_np(record, decoders=undecoded)
            label = np.asarray(example[label_key], np.int64).tolist()  # a number, or several
            return example[image_key], label

    full_name = f"{builder.info.full_name} {split}"
    with _explained(f"tfds:{name} is damaged or incomplete"):
        known = _records(full_name, info, read)
    numbers = np.arange(len(records))
    facts = inspect(known.items(numbers), pixels=pixels, retry=retry)
    for number, each in enumerate(facts):
        if not each.sha256:
            raise UserError(f"tfds:{name}: {split}[{number}] {each.problem}")
    classes = tuple(kinds[label_key].names)
    is_several = type(features[label_key]) is several
    labels = _as_labels([each.label for each in facts], len(classes), is_several)
    if (labels < 0).any():
        raise Unlabelled(f"tfds:{name}: {split!r} has images without a label")
    source = TfdsSource(full_name, info.num_bytes, known, numbers, labels, classes)
    source.__dict__["facts"] = facts  # of the cached property
    return source


def _as_labels(stored: Sequence[Any], classes: int, several: bool) -> Labels:
    if not several:
        return np.asarray(stored, np.int32)
    labels = np.zeros((len(stored), classes), np.int32)
    for row, own in zip(labels, stored, strict=True):
        row[own] = 1 if min(own, default=0) >= 0 else -1  # which is refused
    return labels


def _records(name: str, info: Any, read: Callable[[int], tuple[bytes, StoredLabel]]) -> Records:
    """The records, known by the split and by path and `stamp` of its files."""
    files = [Path(file.filename).resolve() for file in info.file_instructions]
    stamps = [(str(path), stamp(path.stat())) for path in files]
    settled = all(known for _, known in stamps)
    together = hashlib.sha256(json.dumps([name, stamps]).encode()).hexdigest()
    return Records(name, files[0].parent, together if settled else None, read)


def _only_key(features: Any, kind: type, what: str, name: str) -> str:
    keys = [key for key, feature in features.items() if type(feature) is kind]
    if len(keys) != 1:
        raise UserError(
            f"tfds:{name} has {len(keys)} features of the kind {what}, and must have exactly one"
        )
    return keys[0]
