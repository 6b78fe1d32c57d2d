"""The networks of a comparison: which ones, and with which weights."""

from __future__ import annotations

import functools
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


class Candidate(NamedTuple):
    """A network to measure: a name of the registry, its width, and pixels a side of the images."""

    name: str
    width: float
    image_size: int

    @property
    def label(self) -> str:
        """Its name, with its width where that is not 1."""
        return self.name if self.width == 1 else f"{self.name}@{self.width:g}"


class Start(NamedTuple):
    """What a candidate is measured with.

    Attributes:
        make: the network, on the device.
        record: of its weights; None where it has none, and its parameters are random.
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
        UserError: there is no such network, it does not come in that width, it does not take such
            small images, or the size is none.
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
    if image_size not in sizes and not image_size.isdecimal():
        raise UserError(
            f"--image-size {image_size!r}: give a number of pixels, {' or '.join(sizes)}"
        )
    size = sizes[image_size] if image_size in sizes else int(image_size)
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
        UserError: one of them is no source.
    """
    if text in ("auto", "none"):
        return AUTO if text == "auto" else ()
    return tuple(checked([source.strip() for source in text.split(",")]))


def start(
    candidate: Candidate, classes: int, weights: Sequence[str], say: Callable[[str], None]
) -> Start:
    """Reads the weights of a candidate from the first source that has some for it.

    Args:
        candidate: the network.
        classes: of its new head.
        weights: the sources to try, in order.
        say: is told which sources were tried in vain, and what is used for them.

    Returns:
        The network with these weights, which wait in the host's memory; a random one where no
        source has any.

    Raises:
        UserError: what a source gives is damaged, has another checksum, or does not fit. That a
            file holds another network is no error: it may be meant for another candidate.
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
                say(f"{'; '.join(tried)}; using {source}")
            graph, variables = split(network)
            make = functools.partial(merge, graph, jax.device_get(variables))
            return Start(make, record, tuple(tried))
    make = functools.partial(build, name, convention=likely_convention(weights or None), **options)
    return Start(make, None, tuple(tried))
