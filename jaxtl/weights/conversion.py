"""Converts the weights of a source to another kind of file."""

from __future__ import annotations

from pathlib import Path

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, definition
from jaxtl.weights import sources
from jaxtl.weights.loading import create
from jaxtl.weights.write import Written, check_target, write_weights


def convert_source(
    source: str,
    target: Path,
    *,
    name: str | None,
    width: float | None,
    image_size: int | None,
    classes: int | None,
    no_head: bool,
) -> tuple[Written, bool]:
    """Writes the weights of a source as another kind of file.

    Args:
        source, target: as in `jaxtl.create_model` and `write_weights`.
        name: the network that the source holds; None is refused with the names that exist.
        width: the multiplier of its channel counts; None for 1.
        image_size: pixels a side of its images; None for its native ones.
        classes: the number of classes of its head, which is written; None if it has no head.
        no_head: leave its head out.

    Returns:
        What was written, and whether the source has a head that was left out.

    Raises:
        UserError: the source cannot be had, does not fit or cannot be written; or it has a head,
            and neither `classes` nor `no_head` says what to do with it.
    """
    try:
        sources.checked(source)
    except UserError as error:
        raise UserError(f"there is no run {source}, and {error}") from error
    if name is None:
        known = ", ".join(sorted(REGISTRY))
        raise UserError(f"--model says which network {source} holds; it is one of {known}")
    width = 1.0 if width is None else width
    check_target(target, network=name, width=width, convention=sources.convention_of(source))
    image_size = definition(name).native if image_size is None else image_size
    network, record = create(
        name, num_classes=classes, weights=source, width=width, image_size=image_size
    )
    assert record is not None  # there are weights
    left_out = ", ".join(record.left_out)
    if record.head == "new":
        there = f"; its classifier is {left_out}" if left_out else ""
        if definition(name).deep_top:
            there += f"; three dense layers are read with {sources.IMAGENET_CLASSES} classes only"
        raise UserError(f"{source} has no head of {classes} classes{there}")
    if left_out and not no_head:
        raise UserError(
            f"{source} has a head too ({left_out}): give its number of classes with --classes=N, "
            "or leave it out with --no-head"
        )
    return write_weights(network, target, image_size=image_size), bool(left_out)
