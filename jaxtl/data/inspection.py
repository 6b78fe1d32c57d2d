"""Looks at each encoded image: its SHA-256, header and whether it decodes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from PIL import Image
from rich.console import Console

from jaxtl.console import counter
from jaxtl.data.decoding import decode, header
from jaxtl.data.facts import Facts, Item, KeptFacts, StoredLabel, stamp
from jaxtl.data.reading import ReadError, patiently
from jaxtl.errors import UserError

_log = logging.getLogger("jaxtl")

_BLOCK = 512  # images between two writes
_CONSTANT_BELOW = 3.0  # standard deviation of grey values, 0..255

CONSTANT = "constant"
"""Stands for the perceptual hash of an image of nearly one colour, whose bits would be noise."""


def file_item(path: str, read: Callable[[], tuple[bytes, StoredLabel]]) -> Item:
    """A file, known by its absolute path and `stamp`."""
    try:
        return Item(os.fsencode(path), stamp(os.stat(path)), path, read)
    except OSError:
        return Item(os.fsencode(path), None, path, read)


def inspect(
    items: Iterable[Item], *, pixels: bool = False, perceptual: bool = False, retry: float = 0
) -> list[Facts]:
    """Looks at every image: on threads, with a progress bar, and only at those not known already.

    Args:
        items: the images.
        pixels: decode them, instead of only reading their headers.
        perceptual: compute perceptual hashes too, which includes `pixels`.
        retry: how many seconds all images together may be waited for that cannot be read.
    """
    found: list[Facts | None] = []
    missing: dict[int, Item] = {}
    with KeptFacts() as kept:
        left = iter(items)
        while block := list(itertools.islice(left, _BLOCK)):
            known = kept.find(block)
            for item in block:
                facts = known.get(item.key)
                if not (facts and _enough(facts, pixels, perceptual)):
                    missing[len(found)], facts = item, None
                found.append(facts)
        if missing:
            look = functools.partial(_look, pixels=pixels, perceptual=perceptual)
            for i, facts in _on_threads(look, missing, retry, kept).items():
                found[i] = facts
        before = {i: kept.outdated.get(item.key) for i, item in missing.items()}
    all_found = [facts for facts in found if facts is not None]
    looked = ((item.name, all_found[i].sha256, before[i]) for i, item in missing.items())
    changed = [name for name, now, old in looked if now and old not in (None, now)]
    if changed:
        more = f", and {len(changed) - 1} more" if changed[1:] else ""
        _log.warning("images changed since they were last read: %s%s", changed[0], more)
    return all_found


def _enough(facts: Facts, pixels: bool, perceptual: bool) -> bool:
    if facts.problem is not None:
        return True
    return (facts.decoded or not (pixels or perceptual)) and bool(
        facts.perceptual or not perceptual
    )


def _on_threads(
    look: Callable[[tuple[bytes, StoredLabel]], Facts],
    missing: Mapping[int, Item],
    retry: float,
    kept: KeptFacts,
) -> dict[int, Facts]:
    """Looks at images; once one that cannot be read comes back, at all of them that could not."""
    found, unread = _one_pass(look, missing, kept)
    end = time.monotonic() + retry
    while unread and (left := end - time.monotonic()) > 0:
        first = missing[next(iter(unread))]
        with contextlib.suppress(UserError):  # the pass says of each image what is wrong with it
            patiently(first.read, first.name, left)
        more, unread = _one_pass(look, {i: missing[i] for i in unread}, kept)
        found |= more
    return found | unread


def _one_pass(
    look: Callable[[tuple[bytes, StoredLabel]], Facts],
    missing: Mapping[int, Item],
    kept: KeptFacts,
) -> tuple[dict[int, Facts], dict[int, Facts]]:
    """What is found, and apart from it the images that another try may read."""

    def look_at(index: int) -> tuple[Facts, bool]:
        try:
            return look(missing[index].read()), False
        except UserError as error:
            return Facts("", str(error)), isinstance(error, ReadError)

    found: dict[int, Facts] = {}
    unread: dict[int, Facts] = {}
    threads = concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    with threads, counter(Console(stderr=True), "looking at images", len(missing)) as show:
        left = iter(missing)
        while block := list(itertools.islice(left, _BLOCK)):
            for i, (facts, again) in zip(block, threads.map(look_at, block), strict=True):
                (unread if again else found)[i] = facts
            kept.keep([(missing[i], found[i]) for i in block if i in found])
            show(len(found) + len(unread))
    return found, unread


def _look(read: tuple[bytes, StoredLabel], *, pixels: bool, perceptual: bool) -> Facts:
    encoded, label = read
    facts = Facts(hashlib.sha256(encoded).hexdigest(), label=label)
    try:
        facts = facts._replace(**header(encoded)._asdict())
        if pixels or perceptual:
            small = decode(encoded, 32, "stretch")
            facts = facts._replace(decoded=True)
            if perceptual:
                facts = facts._replace(perceptual=_perceptual(Image.fromarray(small)))
    except UserError as error:
        return facts._replace(problem=str(error))
    return facts


def _perceptual(image: Image.Image) -> str:
    import imagehash

    flat = float(np.std(np.asarray(image.convert("L")))) < _CONSTANT_BELOW
    return CONSTANT if flat else str(imagehash.phash(image))
