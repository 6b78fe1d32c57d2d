"""Batches of decoded images, in an order that is a pure function of the seed and the epoch."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int32, Int64, Num, UInt8

from jaxtl.data.decoding import Resize, decode
from jaxtl.data.reading import ReadError, patiently
from jaxtl.data.sources import Source
from jaxtl.errors import UserError

_Order = tuple[Int64[np.ndarray, " images"], Int64[np.ndarray, " images"]]  # and how often before
_TOGETHER = 8  # images that a thread decodes for Grain at a time, which costs 0.3 ms each time


class Batch(NamedTuple):
    """A batch on the host.

    Attributes:
        inputs: images, RGB, 0..255, uint8 (B, H, W, 3); or their activations (B, ...); or the
            rows of these in a table (B,).
        labels: the class of each image, an index into the classes of the source, or all of them.
        valid: False for the zeros that fill up the last batch of an epoch.
        indices: the index of each image in the source.
        views: the number that picks the random changes to each image: the same number, the same
            changes.
    """

    inputs: Num[np.ndarray, "batch ..."]
    labels: Int32[np.ndarray, "batch *classes"]
    valid: Bool[np.ndarray, " batch"]
    indices: Int32[np.ndarray, " batch"]
    views: Int32[np.ndarray, " batch"]


class Loader:
    """Reads, decodes and batches the images of a source.

    Every image comes exactly once an epoch, unless `balanced`. Images that fit into `memory_bytes`
    are decoded at the first use and kept; others are decoded on threads in every epoch. Both give
    the same batches, bit for bit. Several hosts which shuffle keep all images each, since any may
    come next; without shuffling a host decodes those of its parts of the batches alone.

    Args:
        source: the images.
        image_size: the side of a decoded image, in pixels.
        resize: how images are brought to that size, see `decode`.
        batch_size: images a batch.
        seed: seeds the shuffling, at least 0.
        shuffle: draw a new order for every epoch; otherwise the order is that of the source.
        balanced: draw each class equally often, in as many images as the source has, see
            `balanced_order`; otherwise every image comes once an epoch.
        memory_bytes: how many bytes decoded images may take.
        retry_seconds: how long to try again where an image cannot be read.
        part: (h, H) for the h-th of H equal parts of every batch, as one of H hosts reads it. The
            order does not depend on it.

    Attributes:
        source, image_size, batch_size: as given.
        parts: H.
        part_size: images in the part of a batch.
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
        retry_seconds: float = 0,
        balanced: bool = False,
        part: tuple[int, int] = (0, 1),
    ):
        self.source = source
        self.image_size = image_size
        self.batch_size = batch_size
        self.part_size = batch_size // part[1]
        self.parts = part[1]
        self._part = part[0]
        self._images = range(len(source))
        self._resize = resize
        self._seed = seed
        self._shuffle = shuffle
        self._balanced = balanced
        self._retry_seconds = retry_seconds
        order = np.arange(len(source))
        self._kept = order if shuffle else np.concatenate([order[:0], *self._groups(order, 0)])
        self._fits = len(self._kept) * image_size * image_size * 3 <= memory_bytes
        self._decoded: UInt8[np.ndarray, "images size size 3"] | None = None

    def __len__(self) -> int:
        """The number of images."""
        return len(self.source)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, 3

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch, the last one included, which may be short."""
        return -(-len(self) // self.batch_size)

    def once_through(self, batch_size: int, images: range | None = None) -> Loader:
        """A loader of the same images, or of some, in the order of the source, which does not keep
        them. It reads the whole of each batch."""
        loader = Loader(
            self.source,
            image_size=self.image_size,
            resize=self._resize,
            batch_size=batch_size,
            seed=self._seed,
            shuffle=False,
            memory_bytes=0,
            retry_seconds=self._retry_seconds,
        )
        if images is not None:
            loader._images = images
        return loader

    def epoch(
        self,
        epoch: int,
        start_step: int = 0,
        *,
        views: int = 0,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Batch]:
        """Yields the batches of an epoch, or the tail of the same sequence from `start_step` on.

        Args:
            epoch: the number of the epoch since the run began.
            start_step: the number of batches to leave out.
            views: how many views of an image there are, see `rows`.
            stop: a function that returns True to end the sequence, asked for each image that is
                decoded, and while an image that cannot be read is tried again.

        Raises:
            UserError: an image cannot be read or decoded; the message names it.
        """
        if self._fits:
            if self._decoded is None:
                self._decoded = self._decode_all(stop)
                if self._decoded is None:
                    return
            for batch in self.rows(epoch, start_step, views=views):
                places = np.searchsorted(self._kept, batch.indices[batch.valid])
                images = self._decoded[places]
                yield batch._replace(inputs=_filled_up(images, self.part_size))
        else:
            groups = self._groups(self._order(epoch)[0], start_step)
            order = np.concatenate([np.zeros(0, np.int64), *groups])
            with contextlib.closing(self._stream(order, stop)) as images:
                for batch in self.rows(epoch, start_step, views=views):
                    decoded = list(itertools.islice(images, int(batch.valid.sum())))
                    if len(decoded) < batch.valid.sum():
                        return
                    found = np.array(decoded, np.uint8).reshape(-1, *self._shape)
                    yield batch._replace(inputs=_filled_up(found, self.part_size))

    def rows(self, epoch: int, start_step: int = 0, *, views: int = 0) -> Iterator[Batch]:
        """Yields the same batches with the images' indices instead of the images.

        Image i that came n times before shows view (i + n) mod `views`: after `views` times every
        view of an image has come once, and each epoch mixes views. With 0 the number of the view is
        n. Where every image comes once an epoch, n is the epoch.
        """
        parts = (self._groups(each.astype(np.int32), start_step) for each in self._order(epoch))
        for group, before in zip(*parts, strict=True):
            indices, times = (_filled_up(part, self.part_size) for part in (group, before))
            yield Batch(
                inputs=indices,
                labels=_filled_up(self.source.labels[group], self.part_size),
                valid=np.arange(self.part_size) < len(group),
                indices=indices,
                views=(indices + times) % views if views else times,
            )

    def _groups(self, order: np.ndarray, start_step: int) -> Iterator[np.ndarray]:
        """The part of each batch, which may be short or empty in the last one."""
        begin = self._part * self.part_size
        for first in range(start_step * self.batch_size, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            yield batch[begin : begin + self.part_size]

    def _order(self, epoch: int) -> _Order:
        """The order of an epoch, drawn by `RandomState`, whose numbers NumPy promises to keep.

        Grain's own shuffle would give epoch e of seed 1 the order of epoch e + 1 of seed 0, and
        takes some 20 ms an epoch however few images there are.
        """
        if self._balanced:
            return balanced_order(self.source.labels, self._seed, epoch)
        if self._shuffle:
            order = np.random.RandomState([self._seed, epoch]).permutation(len(self))
        else:
            order = np.arange(self._images.start, self._images.stop)
        return order, np.full_like(order, epoch)

    def _decode_all(
        self, stop: Callable[[], bool]
    ) -> UInt8[np.ndarray, "images size size 3"] | None:
        """The images to keep, in the order of the source; None if `stop` ended it."""
        decoded = np.empty((len(self._kept), *self._shape), np.uint8)
        done = 0
        for image in self._stream(self._kept, stop):
            decoded[done] = image
            done += 1
        return decoded if done == len(self._kept) else None

    def _stream(
        self, order: Int64[np.ndarray, " images"], stop: Callable[[], bool]
    ) -> Generator[UInt8[np.ndarray, "size size 3"]]:
        """Decodes on threads, in order: Pillow releases the GIL while it works."""
        threads = min(16, os.cpu_count() or 1)
        ahead = max(-(-2 * self.part_size // _TOGETHER), threads)
        closed = threading.Event()  # threads that read ahead do not outlive the sequence

        def read(number: int) -> list[UInt8[np.ndarray, "size size 3"]]:
            group = order[number * _TOGETHER : (number + 1) * _TOGETHER]
            return [self._read(index, lambda: stop() or closed.is_set()) for index in group]

        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        groups = grain.MapDataset.range(-(-len(order) // _TOGETHER)).map(read)
        iterator = iter(groups.to_iter_dataset(options))
        try:
            images = itertools.chain.from_iterable(iterator)
            yield from itertools.takewhile(lambda _: not stop(), images)
        except ReadError:
            if not stop():
                raise
        finally:
            closed.set()
            iterator.close()

    def _read(self, index: np.int64, stop: Callable[[], bool]) -> UInt8[np.ndarray, "size size 3"]:
        place = int(index)
        name = self.source.describe(place)
        try:
            image = patiently(lambda: self.source[place], name, self._retry_seconds, stop)
            return decode(image, self.image_size, self._resize)
        except ReadError as error:
            raise ReadError(f"{name}: {error}") from error
        except UserError as error:
            raise UserError(f"{name}: {error}") from error


def balanced_order(labels: Int32[np.ndarray, "images"], seed: int, epoch: int) -> _Order:
    """The images of an epoch, in which the classes that have images come equally often, to one.

    The images of a class come one after the other in an order that is drawn anew each time that all
    of them have come, so over epochs they come equally often.

    Args:
        labels: the class of each image.
        seed: at least 0.
        epoch: at least 0. The order depends on nothing else.

    Returns:
        The images, and how often each came before, in this epoch and in those before.
    """
    classes, chosen, before = np.unique(labels), [], []
    for place, label in enumerate(classes):
        images = np.flatnonzero(labels == label)
        # Places are dealt out to one class after the other, over all epochs.
        begin, end = (-((place - n * len(labels)) // len(classes)) for n in (epoch, epoch + 1))
        rounds = range(begin // len(images), -(-end // len(images)))
        drawn = [np.random.RandomState([seed, label, n]).permutation(images) for n in rounds]
        skipped = begin - rounds.start * len(images)
        chosen.append(np.concatenate(drawn)[skipped : skipped + end - begin])
        before.append(np.arange(begin, end) // len(images))
    order = np.random.RandomState([seed, epoch]).permutation(len(labels))
    return np.concatenate(chosen)[order], np.concatenate(before)[order]


def _filled_up(array: np.ndarray, length: int) -> np.ndarray:
    missing = length - len(array)
    if not missing:
        return array
    return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
