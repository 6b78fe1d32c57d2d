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
from jaxtl.multilabel import log_complements
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

    @property
    def explained(self) -> int:
        """The index of the class or label whose Grad-CAM is shown."""
        found = self.true if self.predicted is None else self.predicted
        assert found is not None, "an answer that is neither given nor missed"
        return found


@dataclass(frozen=True)
class Mistake:
    """A wrong answer as a page shows it.

    Attributes:
        wrong: the answer.
        name: what the source calls the image.
        image: the image as the network sees it, as a `data:` URI.
        overlay: the same with the Grad-CAM of the predicted class, or of the label.
    """

    wrong: Wrong
    name: str
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
    """The 12 worst labels of images: first those that are wrongly given, then those missed.

    There are 6 of each, or more of one where the other has fewer, by their cross-entropy. Among all
    of them the missed ones would come first: labels are rare, so their probabilities are low. An
    image is there once for each of its labels among these.

    Args:
        evaluation: the predictions, with log probabilities.
        thresholds: from which probability on an image has each label.
    """
    assert evaluation.log_probabilities is not None, "an evaluation without log probabilities"
    answers = evaluation.probabilities >= thresholds
    images, classes = np.nonzero(answers != (evaluation.labels > 0))
    given, logs = answers[images, classes], evaluation.log_probabilities[images, classes]
    # Not by the confidence, which is rounded to 1 where the logarithm of the rest still differs.
    order = np.argsort(np.where(given, log_complements(logs), logs), kind="stable")
    too_many, missed = order[given[order]], order[~given[order]]
    few = _MOST // 2
    worst = (
        *too_many[: max(few, _MOST - len(missed))],
        *missed[: max(few, _MOST - len(too_many))],
    )
    found = []
    for index in worst:
        image, label, p = int(images[index]), int(classes[index]), float(np.exp(logs[index]))
        answer = (None, label, p) if given[index] else (label, None, 1 - p)
        found.append(Wrong(image, *answer))
    return found


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
    cams = grad_cam(network, variables, images, np.asarray([w.explained for w in wrong]))
    return tuple(
        Mistake(w, source.describe(w.image), thumbnail(image), overlay(image, cam))
        for w, image, cam in zip(wrong, images, cams, strict=True)
    )
