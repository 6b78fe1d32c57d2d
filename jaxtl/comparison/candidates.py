"""The networks of a comparison: which ones, and with which weights."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxtl.comparison import AUTO, NARROW
from jaxtl.config.config_file import Model
from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, Network, build, definition, merge, split
from jaxtl.weights.loading import WeightsRecord, create
from jaxtl.weights.sources import NoWeights, checked, likely_convention
from jaxtl.weights.strict import AnotherNetwork

_LARGEST = 10_000  # pixels a side


class Candidate(NamedTuple):
    """A network to measure: a name of the registry, its width, and the side of images in pixels."""

    name: str
    width: float
    image_size: int

    @property
    def label(self) -> str:
        """Its name, with its width where that is not 1."""
        return self.name if self.width == 1 else f"{self.name}@{self.width:g}"


class Loaded(NamedTuple):
    """A candidate with its weights, which wait in the host's memory.

    Attributes:
        make: puts the network on the device.
        record: the source of its weights; None if its parameters are random.
        tried: the sources that had no weights for it, each with the reason.
    """

    make: Callable[[], Network]
    record: WeightsRecord | None
    tried: tuple[str, ...]


def candidates(models: str | None, image_size: str) -> list[Candidate]:
    """The networks to measure, each once.

    Args:
        models: names with or without a width, between commas; None for all of the registry.
        image_size: a number, `native` or `smallest`.

    Raises:
        UserError: there is no such network, it does not come in that width, it does not take images
            of that size, or the size is not valid.
    """
    texts = [*sorted(REGISTRY), *NARROW] if models is None else models.split(",")
    if not all(map(str.strip, texts)):
        raise UserError(
            f"--models {models!r} leaves a name empty: give networks between commas, such as "
            f"--models {','.join(NARROW)}, or no --models for all of them"
        )
    return list(dict.fromkeys(_candidate(text.strip(), image_size) for text in texts))


def _candidate(text: str, image_size: str) -> Candidate:
    name, at, width_text = text.partition("@")
    known = definition(name)
    try:
        width = float(width_text) if at else 1.0
    except ValueError:
        width = 0.0
    if width not in known.widths:
        widths = ", ".join(f"{name}@{width:g}" for width in known.widths)
        raise UserError(f"--models {text}: there is no such width; take one of {widths}")
    sizes = {"native": known.native, "smallest": known.smallest}
    number = re.fullmatch("[0-9]{1,9}", image_size)
    size = sizes.get(image_size) or (int(image_size) if number else _LARGEST + 1)
    if size > _LARGEST:
        raise UserError(
            f"--image-size {image_size!r}: give a number of pixels up to {_LARGEST}, "
            f"{' or '.join(sizes)}"
        )
    if size < known.smallest:
        raise UserError(
            f"--image-size {image_size}: {name} takes images of {known.smallest} pixels a side "
            "and more; give such a number, or smallest for the least of each network"
        )
    return Candidate(name, width, size)


def sources(text: str) -> tuple[str, ...]:
    """The sources of weights to try, in order.

    Args:
        text: sources between commas, `auto`, or `none`.

    Raises:
        UserError: one of them is not a source.
    """
    if text in ("auto", "none"):
        return AUTO if text == "auto" else ()
    return tuple(checked([source.strip() for source in text.split(",")]))


def load(
    candidate: Candidate, classes: int, weights: Sequence[str], announce: Callable[[str], None]
) -> Loaded:
    """Reads the weights of a candidate from the first source that has some for it.

    Args:
        candidate: the network.
        classes: the number of classes of its new head.
        weights: the sources to try, in order.
        announce: takes a line that says which sources had none, and which one is used.

    Returns:
        The network with these weights, or with random parameters if no source has any.

    Raises:
        UserError: the weights of a source are damaged, have another checksum, or do not fit. A
            file with another network is not an error: it may be meant for another candidate.
    """
    name, width, image_size = candidate
    options: dict[str, Any] = {"num_classes": classes, "width": width, "dropout": Model().dropout}
    tried: list[str] = []
    for source in weights:
        try:
            network, record = create(
                name, weights=source, image_size=image_size, fresh_head=True, **options
            )
        except NoWeights as error:
            tried += error.reasons
        except AnotherNetwork as error:
            if source in AUTO:  # these hold what was looked for, or something is wrong
                raise
            tried.append(str(error))
        else:
            if tried:
                announce(f"{'; '.join(tried)}; using {source}")
            graph, variables = split(network)
            make = functools.partial(merge, graph, jax.device_get(variables))
            return Loaded(make, record, tuple(tried))
    make = functools.partial(build, name, convention=likely_convention(weights or None), **options)
    return Loaded(make, None, tuple(tried))
