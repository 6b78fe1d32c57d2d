"""Batches of decoded pictures, in an order that is a pure function of the seed and the epoch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from jaxtl.data.pictures import Resize, decode
from jaxtl.data.sources import Source
from jaxtl.errors import UserError


class Batch(NamedTuple):
    """A batch on the host.

    Attributes:
        images: RGB, 0..255.
        labels: indices into the classes of the source.
        valid: False for the zeros that fill up the last batch of an epoch.
    """

    images: UInt8[np.ndarray, "batch size size 3"]
    labels: Int32[np.ndarray, " batch"]
    valid: Bool[np.ndarray, " batch"]


class Loader:
    """Reads, decodes and batches the pictures of a source.

    Every picture comes exactly once an epoch. Data that fit into `memory_bytes` once decoded are
    decoded at the first use and kept; larger data are decoded anew every epoch, on threads. Both
    give the same batches, bit for bit.

    Args:
        source: the pictures.
        image_size: the side of a decoded picture, in pixels.
        resize: how pictures are brought to that size, see `decode`.
        batch_size: pictures a batch.
        seed: of the order, at least 0.
        shuffle: draw a new order for every epoch; otherwise the order is that of the source.
        memory_bytes: how many bytes decoded pictures may take.
    """

    def __init__(
        self,
        source: Source,
        *,
        image_size: int,
        resize: Resize,
        batch_size: int,
        seed: int,
        shuffle: bool,
        memory_bytes: float,
    ):
        self._source = source
        self._image_size = image_size
        self._resize = resize
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._fits = len(source) * image_size * image_size * 3 <= memory_bytes
        self._decoded: UInt8[np.ndarray, "pictures size size 3"] | None = None

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self._source)

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch, the last and perhaps short one included."""
        return -(-len(self) // self._batch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch, or the tail of the same sequence from `start_step` on.

        Raises:
            UserError: a picture cannot be read or decoded; the message names it.
        """
        order = self._order(epoch)
        first = start_step * self._batch_size
        with contextlib.closing(self._pictures(order, first)) as pictures:
            for start in range(first, len(self), self._batch_size):
                batch = self._empty_batch()
                for row in range(min(self._batch_size, len(self) - start)):
                    index, batch.images[row] = next(pictures)
                    batch.labels[row] = self._source.labels[index]
                    batch.valid[row] = True
                yield batch

    def _order(self, epoch: int) -> grain.MapDataset[int]:
        indices = grain.MapDataset.range(len(self))
        if not self._shuffle:
            return indices
        # Grain's own `seed + epoch` would give seed 1 the epochs of seed 0, one later.
        seed = np.random.SeedSequence((self._seed, epoch)).generate_state(1)[0]
        return indices.shuffle(int(seed))

    def _pictures(
        self, order: grain.MapDataset[int], first: int
    ) -> Generator[tuple[int, UInt8[np.ndarray, "size size 3"]]]:
        if not self._fits:
            yield from self._stream(order, first)
            return
        if self._decoded is None:
            self._decoded = self._decode_all()
        for position in range(first, len(self)):
            index = order[position]
            yield index, self._decoded[index]

    def _decode_all(self) -> UInt8[np.ndarray, "pictures size size 3"]:
        shape = (len(self), self._image_size, self._image_size, 3)
        decoded = np.empty(shape, np.uint8)
        for index, picture in self._stream(grain.MapDataset.range(len(self)), 0):
            decoded[index] = picture
        return decoded

    def _stream(
        self, order: grain.MapDataset[int], first: int
    ) -> Generator[tuple[int, UInt8[np.ndarray, "size size 3"]]]:
        """Decodes on threads, in order: Pillow lets go of the interpreter's lock while it works."""
        if first >= len(order):
            return
        threads = min(16, os.cpu_count() or 1)
        ahead = 2 * max(self._batch_size, threads)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        with contextlib.closing(
            iter(order[first:].map(self._read).to_iter_dataset(options))
        ) as pictures:
            yield from pictures

    def _read(self, index: int) -> tuple[int, UInt8[np.ndarray, "size size 3"]]:
        try:
            return index, decode(self._source[index], self._image_size, self._resize)
        except UserError as error:
            raise UserError(f"{self._source.describe(index)}: {error}") from error

    def _empty_batch(self) -> Batch:
        size = self._image_size
        return Batch(
            np.zeros((self._batch_size, size, size, 3), np.uint8),
            np.zeros(self._batch_size, np.int32),
            np.zeros(self._batch_size, np.bool_),
        )
