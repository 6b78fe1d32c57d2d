"""What the processes of a run on several hosts agree on, and what only the first of them does.

Each of them runs the same program on its part of every batch. All of them call each function here
at the same point, so none waits for ever: an error of one is an error of all
(docs/decisions/0050-hosts-agree-before-each-step.md). In a single process they cost nothing.
"""

from __future__ import annotations

import errno
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from flax import serialization
from jax import lax
from jax.experimental import multihost_utils
from jaxtyping import Num

from jaxtl.errors import Interrupted, UserError, one_line
from jaxtl.training.parallel import AXIS, all_devices, data_parallel, lagging, shard

T = TypeVar("T")

_RECORD = 4096  # bytes, of what a host says when it fails
_PIECE = 2**26  # bytes that are sent at a time
_SHARED = "every host fails with it, at the same point"


def several() -> bool:
    """Whether this process is one of several that train together."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process reads and writes the run directory, as a single one does."""
    return jax.process_index() == 0


def is_shared(error: BaseException) -> bool:
    """Whether all hosts fail with this error at the same point, so they can still act together."""
    return not several() or _SHARED in getattr(error, "__notes__", ())


def together(work: Callable[[], T]) -> T:
    """Runs a function on every host; if it fails on one, it fails on all.

    Raises:
        Interrupted, OSError, UserError: what the first host that failed raised, or its like.
    """
    if not several():
        return work()
    result, failure = None, None
    try:
        result = work()
    except (Exception, Interrupted) as error:
        failure = error
    _share(failure)
    return result  # type: ignore[return-value]


def from_first(work: Callable[[], T]) -> T:
    """Runs a function on the first host, and returns on every host what it returned.

    Args:
        work: returns arrays, numbers, booleans or text, alone or in dicts and lists.

    Raises:
        Interrupted, OSError, UserError: what the first host raised, or its like.
    """
    if not several():
        return work()
    result = together(work if is_first() else lambda: None)
    message = serialization.msgpack_serialize({"": jax.device_get(result)}) if is_first() else b""
    pieces, rest = multihost_utils.broadcast_one_to_all(
        np.array(divmod(len(message), _PIECE), np.int32)
    ).tolist()
    received = bytearray()
    for number, size in enumerate([_PIECE] * pieces + [rest]):
        sent = message[number * _PIECE :][:size]
        # Of few lengths, for each of which a program is compiled.
        padded = np.zeros(1 << max(10, (size - 1).bit_length()), np.uint8)
        padded[: len(sent)] = np.frombuffer(sent, np.uint8)
        received += multihost_utils.broadcast_one_to_all(padded)[:size].tobytes()
    return serialization.msgpack_restore(bytes(received))[""]


def gather(array: np.ndarray) -> np.ndarray:
    """Stacks an array from every host, in the order of the hosts, bit for bit.

    Args:
        array: of the same shape and type on each host.

    Returns:
        H such arrays (H, ...), on every host.
    """
    if not several():
        return array[None]
    sent = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    received = multihost_utils.process_allgather(sent)
    return np.ascontiguousarray(received).view(array.dtype).reshape(-1, *array.shape)


def split_up(count: int, part: int, parts: int) -> range:
    """The part of a range that one of several hosts has: equal parts, but for the last ones."""
    each = -(-count // parts)
    first = min(part * each, count)
    return range(first, min(first + each, count))


def concatenate(rows: Num[np.ndarray, "part ..."], count: int) -> Num[np.ndarray, "rows ..."]:
    """Sends the rows of every host to all others, some of them at a time.

    Args:
        rows: those of this host, of `split_up`.
        count: the number of rows of all hosts.
    """
    longest = len(split_up(count, 0, jax.process_count()))
    row_bytes = math.prod(rows.shape[1:]) * rows.itemsize  # also where this host has no row
    length = max(1, _PIECE // (jax.process_count() * row_bytes))
    whole = np.empty((jax.process_count(), longest, *rows.shape[1:]), rows.dtype)
    for first in range(0, longest, length):
        piece = np.zeros((min(length, longest - first), *rows.shape[1:]), rows.dtype)
        own = rows[first : first + length]
        piece[: len(own)] = own
        whole[:, first : first + length] = gather(piece)
    return whole.reshape(-1, *rows.shape[1:])[:count]


def on_any(condition: bool) -> bool:
    """Whether a condition holds on at least one host."""
    return bool(gather(np.asarray(condition)).any())


def in_step(
    items: Iterable[T], due: Callable[[], bool] = lambda: False
) -> Iterator[tuple[T, Callable[[], bool]]]:
    """Yields items as `lagging` does, each once every host has its own.

    Hosts that make an item also vote whether all go on, and read the result when the item is
    yielded. So the vote of a step overlaps with the steps before it.

    Args:
        items: the items of this host, as many as on every other.
        due: whether this host wants to pause after an item.

    Yields:
        An item, and a function that says whether any host wants to pause after it.

    Raises:
        Interrupted, OSError, UserError: what the first host raised that could not make its item,
            or its like, on every host in place of the same item.
    """
    if not several():
        yield from ((item, due) for item in lagging(items))
        return
    for item, failure, votes in lagging(_voting(items, due)):
        failed, pause, more = np.asarray(votes).tolist()
        if failed:
            _share(failure)
        if not more:
            return
        yield item, functools.partial(bool, pause)


def _voting(
    items: Iterable[T], due: Callable[[], bool]
) -> Iterator[tuple[Any, BaseException | None, jax.Array]]:
    """Yields items with votes, and votes alone after the last: the other hosts look ahead too."""
    devices, iterator = jax.local_devices(), iter(items)
    item, failure, more = None, None, True
    while True:
        if more:
            try:
                item = next(iterator)
            except StopIteration:
                item, more = None, False
            except (Exception, Interrupted) as error:
                item, failure, more = None, error, False
        votes = np.array([[failure is not None, due(), more]] * len(devices), np.int32)
        yield item, failure, _maximum()(shard(votes, devices))


@functools.cache
def _maximum() -> Callable[[jax.Array], jax.Array]:
    """Compiles the maximum, over all devices of all hosts, of what each device has."""
    maximum = functools.partial(lax.pmax, axis_name=AXIS)
    devices = all_devices()
    return data_parallel(lambda votes: maximum(votes)[0], devices, in_axes=(0,), out_axes=None)


def _share(failure: BaseException | None) -> None:
    """Raises, on every host, the error of the first host that has one."""
    record = np.zeros(_RECORD, np.uint8)
    if failure is not None:
        said = json.dumps(_as_json(failure)).encode()
        record[: len(said)] = np.frombuffer(said, np.uint8)
    for host, one in enumerate(gather(record)):
        if one.any():
            own = host == jax.process_index()
            error = failure if own and failure else _from_json(host, one.tobytes().rstrip(b"\0"))
            error.add_note(_SHARED)
            raise error


def _as_json(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Interrupted):
        return {"signal": error.signal}
    text = one_line(error)[: _RECORD // 8]  # a character takes up to six bytes
    return {"says": text, "errno": error.errno if isinstance(error, OSError) else None}


def _from_json(host: int, record: bytes) -> Exception | Interrupted:
    said = json.loads(record)
    if "signal" in said:
        return Interrupted(said["signal"])
    text = f"on host {host}: {said['says']}"
    if said["errno"] is not None:
        return OSError(said["errno"] or errno.EIO, text)
    return UserError(text)
