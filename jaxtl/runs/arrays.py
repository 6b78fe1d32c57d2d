"""Writes and reads named arrays with Orbax, and refuses those that are damaged or do not fit.

Orbax gets NumPy arrays, and returns such: they need no description of devices on disk, and what is
compared with a digest is what was read.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxtl.errors import UserError
from jaxtl.files import sync, sync_entry
from jaxtl.runs.records import reason

HostArrays = dict[str, np.ndarray]
Digests = Mapping[str, str]
"""A digest of each array, by its name."""

_LISTED = 10  # the most names in a message
_MOST_METADATA = 16_000_000  # bytes of a file that Orbax reads as JSON
_SMALL = 64_000_000  # bytes that arrays may have, however little of them is on disk
_MOST_COMPRESSED = 20  # bytes of weights in a byte on disk; those of a real network are 1.1


class Damaged(UserError):
    """Files of a checkpoint are missing, or are not those that were written."""


def alone() -> ocp.options.MultiprocessingOptions:
    """Lets Orbax write and read in this process, whatever others jax.distributed joined."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


def on_host(arrays: Mapping[str, jax.Array]) -> HostArrays:
    """Copies arrays that are the same on all devices to the host, all of them at once.

    On a CPU they may share the memory of the arrays, so they hold only until those are donated.
    """
    for array in arrays.values():
        array.copy_to_host_async()
    return {name: np.asarray(array) for name, array in arrays.items()}


def digests(arrays: HostArrays) -> dict[str, str]:
    """A digest of each array over its name, type, shape and bits."""
    return {name: _digest(name, array) for name, array in arrays.items()}


def _digest(name: str, array: np.ndarray) -> str:
    digest = hashlib.blake2b(f"{name} {array.dtype} {array.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_arrays(place: Path, arrays: HostArrays) -> None:
    """Writes arrays to a folder, over those that are there; returns when they are on disk.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    with explaining_failed_writes(place):
        with ocp.StandardCheckpointer(multiprocessing_options=alone()) as writer:
            writer.save(place, arrays, force=True)
        sync(place)
        sync_entry(place.parent)


def read_arrays(
    place: Path, like: Mapping[str, Any], expected: Digests | None = None
) -> dict[str, jax.Array]:
    """Reads the arrays of a folder.

    Args:
        place: the folder.
        like: arrays or `jax.ShapeDtypeStruct`s with the names, shapes and types to expect.
        expected: their digests; None for those of version 0.2, which have none.

    Returns:
        The arrays, on the first local device.

    Raises:
        Damaged: the files are damaged or missing.
        UserError: they hold other arrays.
    """
    with refusing_damage(place), _reader() as reader:
        stored = _metadata(reader, place)
        check_same(place, stored, like)
        found = _read(reader, place, stored, expected)
        return jax.device_put(found, jax.local_devices()[0])


def check_arrays(place: Path, expected: Digests) -> None:
    """Reads the arrays of a folder, whatever they are for.

    Raises:
        Damaged: the files are damaged or missing, or hold others than those of the digests.
    """
    if expected:
        with refusing_damage(place), _reader() as reader:
            _read(reader, place, _metadata(reader, place), expected)


def _reader() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=alone())


def _metadata(reader: ocp.StandardCheckpointer, place: Path) -> Mapping[str, Any]:
    """The shapes and types of the arrays in a folder; nothing there is too large to be read.

    Raises:
        ValueError: a file is, or the arrays would be.
    """
    held = 0
    for file in place.rglob("*"):
        if file.is_file():
            size = file.stat().st_size
            if size > _MOST_METADATA and file.parent.name != "d":  # where Orbax keeps the arrays
                raise ValueError(f"{file.name} is of {size:,} bytes")
            held += size
    stored = reader.metadata(place).item_metadata.tree
    wanted = sum(math.prod(one.shape) * one.dtype.itemsize for one in stored.values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > min(_SMALL + _MOST_COMPRESSED * held, memory):
        raise ValueError(f"its files of {held:,} bytes say that they hold {wanted:,}")
    return stored


def _read(
    reader: ocp.StandardCheckpointer,
    place: Path,
    stored: Mapping[str, Any],
    expected: Digests | None,
) -> HostArrays:
    # Arrays without memory of their own; from anything else Orbax would make arrays on a device.
    like = {n: np.broadcast_to(np.zeros((), one.dtype), one.shape) for n, one in stored.items()}
    found = reader.restore(place, like)
    if expected is not None:
        actual = digests(found)
        if wrong := sorted(n for n in {*actual, *expected} if actual.get(n) != expected.get(n)):
            raise ValueError(f"not as it was written: {', '.join(wrong[:_LISTED])}")
    return found


@contextlib.contextmanager
def refusing_damage(place: Any) -> Iterator[None]:
    """Turns whatever is raised on damaged or missing files into `Damaged`, of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Orbax and its libraries raise almost anything
        raise Damaged(f"checkpoint {place} is damaged or incomplete: {reason(error)}") from error


@contextlib.contextmanager
def explaining_failed_writes(place: Any) -> Iterator[None]:
    """Turns what Orbax raises on a full disk, for one, into a `UserError` of one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {place} cannot be written: {reason(error)}") from error


def check_same(place: Any, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compares names, shapes and types: Orbax has been seen to restore a part silently.

    Raises:
        UserError: they differ; it says how.
    """
    names = sorted(stored.keys() ^ expected.keys())
    difference = f"only one of them has {', '.join(names[:_LISTED])}"
    if not names:
        try:
            chex.assert_trees_all_equal_shapes_and_dtypes(_abstract(stored), _abstract(expected))
            return
        except AssertionError as error:
            difference = " ".join(str(error).partition("failed:")[2].split())
    raise UserError(f"checkpoint {place} (tree 0) does not fit this run (tree 1): {difference}")


def _abstract(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(one.shape, one.dtype) for name, one in arrays.items()}
