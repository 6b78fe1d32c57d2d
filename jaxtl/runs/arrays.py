"""Writes and reads named arrays with Orbax, and refuses those that are damaged or do not fit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import chex
import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from jaxtl.errors import UserError

_LISTED = 10  # the most names in a message


def write_arrays(place: Path, arrays: Mapping[str, jax.Array]) -> None:
    """Writes arrays to a folder, over those that are there; returns when they are on disk.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    with explaining_failed_writes(place), ocp.StandardCheckpointer() as writer:
        writer.save(place, dict(arrays), force=True)


def read_arrays(place: Path, like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Reads the arrays of a folder.

    Args:
        place: the folder.
        like: arrays or `jax.ShapeDtypeStruct`s with the names, shapes and types to expect.

    Returns:
        The arrays, on the first local device.

    Raises:
        UserError: the files are damaged or missing, or hold other arrays.
    """
    with refusing_damage(place), ocp.StandardCheckpointer() as reader:
        check_same(place, reader.metadata(place).item_metadata.tree, like)
        return reader.restore(place, abstract(like))


def abstract(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """What Orbax needs to restore arrays on the first local device: their shapes and types."""
    # Without a device, Orbax takes that of the machine which saved the run.
    here = SingleDeviceSharding(jax.local_devices()[0])
    return {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for n, a in arrays.items()}


@contextlib.contextmanager
def refusing_damage(place: Any) -> Iterator[None]:
    """Turns whatever Orbax raises on damaged or missing files into a `UserError` of one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"checkpoint {place} is damaged or incomplete: {_reason(error)}") from error


@contextlib.contextmanager
def explaining_failed_writes(place: Any) -> Iterator[None]:
    """Turns what Orbax raises on a full disk, for one, into a `UserError` of one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {place} cannot be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def check_same(place: Any, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compares names, shapes and types: Orbax has been seen to restore a part silently.

    Raises:
        UserError: they differ; it says how.
    """
    names = sorted(stored.keys() ^ expected.keys())
    reason = f"only one of them has {', '.join(names[:_LISTED])}"
    if not names:
        try:
            chex.assert_trees_all_equal_shapes_and_dtypes(abstract(stored), abstract(expected))
            return
        except AssertionError as error:
            reason = " ".join(str(error).partition("failed:")[2].split())
    raise UserError(f"checkpoint {place} (tree 0) does not fit this run (tree 1): {reason}")
