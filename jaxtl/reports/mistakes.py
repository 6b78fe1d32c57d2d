"""Answers of which a network was sure, and wrong, with where it looked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxtl.config import Config
from jaxtl.data.decoding import decode
from jaxtl.data.sources import Source
from jaxtl.metrics import Evaluation
from jaxtl.models import Network, Variables
from jaxtl.reports.gradcam import grad_cam
from jaxtl.reports.thumbnails import overlay, thumbnail

_MOST = 12


class Wrong(NamedTuple):
    """A wrong answer.

    Attributes:
        image: the index of the image.
        true: the index of its class, or of a label that is missed; None of one that is wrongly
            given.
        predicted: the index of the class, or of a label that is wrongly given; None of one that is
            missed.
        confidence: the probability of the wrong answer, 0..1: that of the class or label, of a
            label that is missed one minus its own.
    """

    image: int
    true: int | None
    predicted: int | None
    confidence: float


@dataclass(frozen=True)
class Mistake:
    """A wrong answer as a page shows it.

    Attributes:
        name: what the source calls the image.
        true, predicted, confidence: as of a `Wrong`.
        image: the image as the network sees it, as a `data:` URI.
        overlay: the same with the Grad-CAM of the predicted class, or of the label.
    """

    name: str
    true: int | None
    predicted: int | None
    confidence: float
    image: str
    overlay: str


def wrong_images(evaluation: Evaluation) -> list[Wrong]:
    """The 12 images whose wrong class has the highest probability, the worst first."""
    labels, predicted = evaluation.labels, evaluation.predicted
    images = np.flatnonzero(predicted != labels)
    confidence = evaluation.probabilities[images, predicted[images]]
    worst = np.argsort(-confidence, kind="stable")[:_MOST]
    return [
        Wrong(image, int(labels[image]), int(predicted[image]), certainty)
        for image, certainty in zip(images[worst].tolist(), confidence[worst].tolist(), strict=True)
    ]


def wrong_labels(evaluation: Evaluation, thresholds: Float[np.ndarray, "classes"]) -> list[Wrong]:
    """The 12 labels of images whose wrong answer has the highest probability, the worst first.

    An image is there once for each of its wrong labels.

    Args:
        evaluation: the predictions.
        thresholds: from which probability on an image has each label.
    """
    p = evaluation.probabilities.astype(np.float64)
    given = evaluation.probabilities >= thresholds
    images, classes = np.nonzero(given != (evaluation.labels > 0))
    confidence = np.where(given, p, 1 - p)[images, classes]
    worst = np.argsort(-confidence, kind="stable")[:_MOST]
    parts = (part[worst].tolist() for part in (images, classes, confidence))
    return [
        Wrong(image, None, label, certainty)
        if given[image, label]
        else Wrong(image, label, None, certainty)
        for image, label, certainty in zip(*parts, strict=True)
    ]


def show(
    wrong: Sequence[Wrong],
    config: Config,
    source: Source,
    network: Network,
    variables: Variables,
) -> tuple[Mistake, ...]:
    """Reads the images of wrong answers, and looks what speaks for each.

    Args:
        wrong: the answers.
        config: the config of the run.
        source: the images.
        network, variables: what gave the answers.

    Raises:
        UserError: an image cannot be read any more.
    """
    if not wrong:
        return ()
    size, resize = config.model.image_size, config.data.resize
    images = np.stack([decode(source[w.image], size, resize) for w in wrong])
    explained = [w.true if w.predicted is None else w.predicted for w in wrong]
    cams = grad_cam(network, variables, images, np.asarray(explained))
    return tuple(
        Mistake(
            source.describe(w.image),
            w.true,
            w.predicted,
            w.confidence,
            thumbnail(image),
            overlay(image, cam),
        )
        for w, image, cam in zip(wrong, images, cams, strict=True)
    )
