"""Writes a data set as array_record shards that jaxtl and TensorFlow Datasets read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from rich.console import Console

from jaxtl.console import counter
from jaxtl.data.decoding import as_png, as_small_jpeg
from jaxtl.data.inspection import inspect
from jaxtl.data.reading import patiently
from jaxtl.data.sources import Source, open_parts
from jaxtl.data.tfds import DESCRIPTION
from jaxtl.data.vetting import EncodedSource
from jaxtl.errors import UserError
from jaxtl.files import is_unfinished, read_json, replacing, write_json
from jaxtl.labels import is_multi_label

IMAGES_PER_SHARD = 4096

_JOB = "packing.json"
# Each record can be read by itself. JPEGs get no smaller by compression.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class Packed(NamedTuple):
    """What was packed: how many images each split has, and the bytes of all shards."""

    images: dict[str, int]
    num_bytes: int


class _Shard(NamedTuple):
    """A file of some images of a split, in the order of their source."""

    split: str
    path: Path
    images: range


def pack(
    spec: str,
    out: Path,
    *,
    side: int | None = None,
    quality: int = 90,
    retry: float = 0,
    images_per_shard: int = IMAGES_PER_SHARD,
) -> Packed:
    """Packs a data set, or continues where the same call was stopped.

    Args:
        spec: as for `open_splits`; its splits become `train`, `validation` and `test`.
        out: the folder to write, which `tfds:OUT` names afterwards.
        side: images whose shorter side is longer are scaled to it, in pixels, and encoded as JPEG;
            None keeps the bytes of every image.
        quality: of these JPEGs, 1..100.
        retry: how many seconds to wait for an image that cannot be read.
        images_per_shard: a shard that is finished stays when packing is stopped.

    Raises:
        UserError: the source or one of its images cannot be used, TFDS cannot store the name of a
            class, or `out` holds something else.
        OSError: `out` cannot be written.
    """
    train, val, test = open_parts(spec, retry=retry)
    named = {"train": train, "validation": val, "test": test}
    splits = {name: part for name, part in named.items() if part is not None}
    for source in splits.values():
        _refuse_bad_images(spec, source, retry)
    job = {
        "data": {split: source.fingerprint for split, source in splits.items()},
        "size": side,
        "quality": side and quality,
        "images_per_shard": images_per_shard,
    }
    with _locked(out):
        features = _features(train.classes, several=is_multi_label(train.labels))
        _begin(out, job)
        shards = _shards(out, splits, images_per_shard)
        _write_shards(shards, splits, features, side, quality, retry)
        if not (out / DESCRIPTION).exists():
            _describe(out, shards, features)
    images = {split: len(source) for split, source in splits.items()}
    return Packed(images, sum(shard.path.stat().st_size for shard in shards))


def _refuse_bad_images(spec: str, source: Source, retry: float) -> None:
    """Decodes every image, unless it is known to decode."""
    if not isinstance(source, EncodedSource):
        return
    facts = inspect(source.items(), pixels=True, retry=retry)
    bad = [i for i, known in enumerate(facts) if known.problem is not None]
    if bad:
        more = f", and {len(bad) - 1} more of {len(facts)} images are bad" if bad[1:] else ""
        raise UserError(
            f"{source.describe(bad[0])}: {facts[bad[0]].problem}{more}: remove what `jaxtl check "
            f"--data {spec}` finds"
        )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Makes the folder and keeps other processes out; one that stays empty is removed again."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder")
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process packs into {out}; name another folder") from None
        yield
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            out.rmdir()


def _begin(out: Path, job: dict[str, Any]) -> None:
    """Begins in an empty folder, or goes on in one where this job began.

    Raises:
        UserError: the folder holds something else.
    """
    if not (out / _JOB).exists():
        if any(not is_unfinished(path) for path in out.iterdir()):
            raise UserError(f"{out} has files that jaxtl did not pack; name another folder")
        write_json(out / _JOB, job)
    try:
        known = dict(read_json(out / _JOB))
    except (ValueError, TypeError) as error:
        raise UserError(f"{out / _JOB} is damaged ({error}); remove {out}") from error
    if differing := [key for key in job if known.get(key) != job[key]]:
        what = {"data": "other images"}.get(differing[0], f"another {differing[0]}")
        raise UserError(f"{out} was begun with {what}; remove it, or name another folder")
    for path in filter(is_unfinished, out.iterdir()):  # of a process that was killed
        path.unlink()


def _shards(out: Path, splits: dict[str, Source], images_per_shard: int) -> list[_Shard]:
    shards = []
    for split, source in splits.items():
        count = -(-len(source) // images_per_shard)
        for number in range(count):
            first = number * images_per_shard
            images = range(first, min(first + images_per_shard, len(source)))
            name = f"{_name(out)}-{split}.array_record-{number:05}-of-{count:05}"
            shards.append(_Shard(split, out / name, images))
    return shards


def _name(out: Path) -> str:
    """The name of the data set: a TFDS name has letters, digits and underscores."""
    name = re.sub(r"\W", "_", out.resolve().name.lower(), flags=re.ASCII)
    return name if name[:1].isalpha() else f"packed_{name}"


def _features(classes: tuple[str, ...], *, several: bool) -> Any:
    """What a record holds, for TFDS: an image, and a label or several."""
    import tensorflow_datasets as tfds

    label = tfds.features.ClassLabel(names=classes)
    if unfit := [name for name in classes if name != name.strip() or len(name.split("\n")) > 1]:
        raise UserError(
            f"the class {unfit[0]!r}: TFDS stores no name with a line break, or with a space at "
            "an end: rename it"
        )
    named = {"labels": tfds.features.Sequence(label)} if several else {"label": label}
    return tfds.features.FeaturesDict({"image": tfds.features.Image(), **named})


def _write_shards(
    shards: list[_Shard],
    splits: dict[str, Source],
    features: Any,
    side: int | None,
    quality: int,
    retry: float,
) -> None:
    """Writes the shards that are not there yet, each as a whole."""
    total, done = sum(len(shard.images) for shard in shards), 0
    with counter(Console(stderr=True), "packing", total) as show:
        for shard in shards:
            if not _is_whole(shard):
                source = splits[shard.split]
                records = _records(source, shard.images, features, side, quality, retry)
                with replacing(shard.path) as part, contextlib.closing(records):
                    for number in _written(part, records):
                        show(done + number)
            done += len(shard.images)
            show(done)


def _written(path: Path, records: Iterator[bytes]) -> Iterator[int]:
    """Writes records, and yields how many are written."""
    with _explained(path):
        writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    for number, record in enumerate(records, 1):
        with _explained(path):
            writer.write(record)
        yield number
    with _explained(path):
        writer.close()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what array_record raises where a disk is full into one line."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition(";")[0]
        raise UserError(
            f"{path.parent} cannot be written: {reason}; the same command goes on where it stopped"
        ) from error


def _is_whole(shard: _Shard) -> bool:
    if not shard.path.exists():
        return False
    try:
        with contextlib.closing(ArrayRecordReader(str(shard.path))) as reader:
            return bool(reader.ok()) and reader.num_records() == len(shard.images)
    except (RuntimeError, ValueError):  # a torn file, after a power cut
        return False


def _records(
    source: Source, images: range, features: Any, side: int | None, quality: int, retry: float
) -> Any:
    """Reads, scales and encodes on threads, in order: Pillow releases the GIL while it works."""
    several = is_multi_label(source.labels)

    def record(index: np.int64) -> bytes:
        place = int(index)
        name = source.describe(place)
        try:
            image = patiently(lambda: source[place], name, retry)
            encoded = as_png(image) if isinstance(image, np.ndarray) else image
            if side is not None:
                encoded = as_small_jpeg(encoded, side, quality)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        label = source.labels[place]
        named: dict[str, Any] = (
            {"label": int(label)} if not several else {"labels": label.nonzero()[0].tolist()}
        )
        return features.serialize_example(features.encode_example({"image": encoded, **named}))

    threads = min(16, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    dataset = grain.MapDataset.source(np.asarray(images)).map(record).to_iter_dataset(options)
    return iter(dataset)


def _describe(out: Path, shards: list[_Shard], features: Any) -> None:
    """Writes what TFDS needs to read the shards (its `dataset_info.proto` as JSON).

    Not by `tfds.folder_dataset.write_metadata`, which leaves the name of the data set out.
    """
    splits = []
    for split in dict.fromkeys(shard.split for shard in shards):
        own = [shard for shard in shards if shard.split == split]
        splits.append(
            {
                "name": split,
                "shardLengths": [str(len(shard.images)) for shard in own],
                "numBytes": str(sum(shard.path.stat().st_size for shard in own)),
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    features.save_config(out)
    info = {"name": _name(out), "version": "1.0.0", "fileFormat": "array_record"}
    write_json(out / DESCRIPTION, info | {"splits": splits})
