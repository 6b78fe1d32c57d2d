"""What to do about images that cannot be used, before training starts."""

from __future__ import annotations

import abc
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from jaxtl.data.facts import Facts, Item
from jaxtl.data.inspection import inspect
from jaxtl.errors import UserError
from jaxtl.labels import Labels, class_counts, members

_log = logging.getLogger("jaxtl")

OnBadImage = Literal["error", "skip"]

_SPLITS = {"train": "training", "val": "validation", "test": "test"}


class EncodedSource(abc.ABC):
    """A `Source` of encoded images, each of which is looked at before training starts.

    Attributes:
        labels: the class of each image, an index into `classes`, or all its classes.
        classes: the names of the classes.
        skipped: images that were left out: their names in the source, and the reasons.
    """

    labels: Labels
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def __getitem__(self, index: int) -> bytes:
        """Reads an encoded image, on any thread; raises `ReadError` where another try may help."""

    @abc.abstractmethod
    def describe(self, index: int) -> str:
        """What to call an image in messages."""

    @abc.abstractmethod
    def described_in_source(self, index: int) -> str:
        """What to call an image: the same wherever the source is stored."""

    @abc.abstractmethod
    def items(self) -> Iterator[Item]:
        """The images, to be looked at by `inspect`."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the data."""

    @abc.abstractmethod
    def only(self, kept: Sequence[int], skipped: tuple[tuple[str, str], ...]) -> EncodedSource:
        """The source with the images of some indices, and what `skipped` then is."""

    @functools.cached_property
    def facts(self) -> list[Facts]:
        """What contents and headers of the images say."""
        return inspect(self.items())


def vet(source: EncodedSource, on_bad_image: OnBadImage, retry: float) -> EncodedSource:
    """Refuses or leaves out the images that cannot be used.

    Args:
        source: the images.
        on_bad_image: `error` reads all headers and refuses the source; `skip` decodes all images,
            once, and leaves out those that fail.
        retry: how many seconds all together may be waited for images that cannot be read.

    Returns:
        The source without those images, whose paths and reasons it has in `skipped`.

    Raises:
        UserError: an image cannot be used and must not be left out, one cannot be read, which says
            nothing about the image, or a class has no other.
    """
    facts = inspect(source.items(), pixels=on_bad_image == "skip", retry=retry)
    bad = {i: known.problem for i, known in enumerate(facts) if known.problem is not None}
    unread = [i for i in bad if not facts[i].sha256]
    if unread or (bad and on_bad_image == "error"):
        raise _refusal(source, bad, unread)
    if bad:
        source = _without(source, bad)
        facts = [known for i, known in enumerate(facts) if i not in bad]
    source.__dict__["facts"] = facts  # of the cached property: known without a second look
    return source


def _refusal(source: EncodedSource, bad: dict[int, str], unread: list[int]) -> UserError:
    first, *others = unread or bad
    them = "them" if others else "it"
    what, advice = "are bad", f"or let training leave {them} out: --cfg.data.on_bad_image=skip"
    if unread:
        what, advice = "cannot be read", f"or make {them} readable"
    more = f"; {len(others) + 1} of {len(source)} images {what}" if others else ""
    return UserError(f"{source.describe(first)}: {bad[first]}{more}: remove {them}, {advice}")


def _without(source: EncodedSource, bad: dict[int, str]) -> EncodedSource:
    kept = [i for i in range(len(source)) if i not in bad]
    labels, classes = source.labels, source.classes
    before, after = (class_counts(part, len(classes)) for part in (labels, labels[kept]))
    for label in ((before > 0) & (after == 0)).nonzero()[0].tolist():
        example = int(members(labels, label).nonzero()[0][0])
        raise UserError(
            f"no image of the class {classes[label]!r} can be used: "
            f"{source.describe(example)}: {bad[example]}"
        )
    _log.warning(
        "skipped %d of %d images that cannot be used: %s%s",
        len(bad),
        len(source),
        "; ".join(f"{source.describe(i)} ({reason})" for i, reason in list(bad.items())[:3]),
        "; and others, see run.json" if len(bad) > 3 else "",
    )
    named = tuple((source.described_in_source(i), reason) for i, reason in bad.items())
    return source.only(kept, named)


def warn_of_leaks(
    first: list[Facts],
    second: list[Facts],
    describe_first: Callable[[int], str],
    describe_second: Callable[[int], str],
    between: tuple[str, str],
) -> None:
    """Warns where the same bytes are among the images of two splits.

    Args:
        first, second: what is known of each image.
        describe_first, describe_second: what to call the image of an index.
        between: the splits, of `train`, `val` and `test`, in this order.
    """
    seen: dict[str, int] = {}
    for i, facts in enumerate(first):
        seen.setdefault(facts.sha256, i)
    both = [(seen[facts.sha256], i) for i, facts in enumerate(second) if facts.sha256 in seen]
    if both:
        one, other = (_SPLITS[split] for split in between)
        _log.warning(
            "%d %s images are among the %s images too, so %s looks better than it is; the first "
            "is %s, the same as %s",
            *(len(both), other, one, "the test" if other == "test" else other),
            describe_second(both[0][1]),
            describe_first(both[0][0]),
        )
