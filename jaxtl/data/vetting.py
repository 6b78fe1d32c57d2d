"""What to do about images that cannot be used, before training starts."""

from __future__ import annotations

import dataclasses
import logging
from typing import Literal

import numpy as np

from jaxtl.data.folders import FileSource
from jaxtl.data.inspection import Facts, inspect
from jaxtl.data.tfds import TfdsSource
from jaxtl.errors import UserError

_log = logging.getLogger("jaxtl")

OnBadImage = Literal["error", "skip"]


def vet(
    source: FileSource | TfdsSource, on_bad_image: OnBadImage, retry: float
) -> FileSource | TfdsSource:
    """Refuses or leaves out the images that cannot be used.

    Args:
        source: the images.
        on_bad_image: `error` reads all headers and refuses the source; `skip` decodes all images,
            once, and leaves out those that fail.
        retry: how many seconds all together may be waited for images that cannot be read.

    Returns:
        The source without those images, whose paths and reasons it has in `skipped`.

    Raises:
        UserError: an image cannot be used and must not be left out, or a class has no other.
    """
    facts = inspect(source.items, pixels=on_bad_image == "skip", retry=retry)
    bad = {i: known.problem for i, known in enumerate(facts) if known.problem is not None}
    if bad and on_bad_image == "error":
        first, reason = next(iter(bad.items()))
        more = f"; {len(bad)} of {len(source)} images are bad" if len(bad) > 1 else ""
        raise UserError(
            f"{source.describe(first)}: {reason}{more}: remove them, or leave them out with "
            "--cfg.data.on_bad_image=skip"
        )
    if bad:
        source = _without(source, bad)
        facts = [known for i, known in enumerate(facts) if i not in bad]
    source.__dict__["facts"] = facts  # of the cached property: known without a second look
    return source


def _without(source: FileSource | TfdsSource, bad: dict[int, str]) -> FileSource | TfdsSource:
    kept = [i for i in range(len(source)) if i not in bad]
    for label in np.setdiff1d(source.labels, source.labels[kept]):
        example = int(np.flatnonzero(source.labels == label)[0])
        raise UserError(
            f"no image of the class {source.classes[label]!r} can be used: "
            f"{source.describe(example)}: {bad[example]}"
        )
    _log.warning(
        "skipped %d of %d images that cannot be used: %s%s",
        len(bad),
        len(source),
        "; ".join(f"{source.describe(i)} ({reason})" for i, reason in list(bad.items())[:3]),
        "; and others, which run.json names" if len(bad) > 3 else "",
    )
    named = tuple((source.described_in_source(i), reason) for i, reason in bad.items())
    labels = source.labels[kept]
    if isinstance(source, FileSource):
        paths = tuple(source.paths[i] for i in kept)
        return dataclasses.replace(source, paths=paths, labels=labels, skipped=named)
    numbers = tuple(source.numbers[i] for i in kept)
    return dataclasses.replace(source, numbers=numbers, labels=labels, skipped=named)


def warn_of_leaks(train: list[tuple[str, Facts]], val: list[tuple[str, Facts]]) -> None:
    """Warns where the same bytes are among the training and the validation images.

    Args:
        train, val: what to call each image, and what is known of it.
    """
    seen = {facts.sha256: name for name, facts in reversed(train)}  # the first of equal ones
    both = [(seen[facts.sha256], name) for name, facts in val if facts.sha256 in seen]
    if both:
        _log.warning(
            "%d validation images are among the training images too, so validation looks better "
            "than it is; the first is %s, the same as %s",
            len(both),
            both[0][1],
            both[0][0],
        )
