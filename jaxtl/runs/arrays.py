"""Arrays by name on disk, by Orbax; what is damaged or does not fit is refused."""

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

_LISTED = 10  # names in a message


def write_arrays(place: Path, arrays: Mapping[str, jax.Array]) -> None:
    """Writes arrays to a folder, over those that are there; returns when they are on disk."""
    with ocp.StandardCheckpointer() as writer:
        writer.save(place, dict(arrays), force=True)


def read_arrays(place: Path, like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Reads the arrays of a folder.

    Args:
        place: the folder.
        like: arrays with the same names, shapes and types, or their shapes.

    Raises:
        UserError: the files are damaged or missing, or hold other arrays.
    """
    with readable(place), ocp.StandardCheckpointer() as reader:
        check_same(place, reader.metadata(place).item_metadata.tree, like)
        return reader.restore(place, abstract(like))


def abstract(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and types of arrays, as Orbax takes them to restore arrays."""
    # On a device of this machine: the run may have been saved by one with other devices.
    here = SingleDeviceSharding(jax.local_devices()[0])
    return {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for n, a in arrays.items()}


@contextlib.contextmanager
def readable(place: Any) -> Iterator[None]:
    """Turns whatever Orbax raises on damaged or missing files into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {place} is damaged or incomplete: {reason}") from error


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
