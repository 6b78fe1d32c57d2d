"""A model card: what a run is, how good it is, and what it is not good for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtl.console import interval_text
from jaxtl.files import as_text
from jaxtl.metrics import ClassResult, Evaluation, class_results, confusion, proportion
from jaxtl.multilabel import LabelResult, label_results, mean_metrics
from jaxtl.training.predictor import Predictor
from jaxtl.weights import hub

_TEXT = """# {name}

An image classifier of {classes} classes: {network}, trained by jaxtl {version}. It takes RGB images
of {size} x {size} pixels ({resize}). A file that is exported has a JSON beside it, with the names
of the classes in the order of the probabilities and the result of the file itself.

## Data

`{data}`: {train} images to train on and {val} to validate on{tested_on}{skipped}.
SHA-256 of their fingerprints: training `{train_sha256}`, validation `{val_sha256}`{test_sha256}.

## Results
{tested}
On the validation images, in jaxtl; intervals are Wilson's, of 95 %:

| accuracy | interval | correct |
|---|---|---|
| {accuracy} |

{labels}| class | recall | interval | correct |
|---|---|---|---|
{rows}

## Limits

{chosen}- The intervals hold for images drawn independently from what the validation images are
  drawn from, and say nothing of other cameras, places or times.
- {every}{unfinished}

## Weights and licence

{weights}
"""

_ONE = "Every image gets one of these classes, also one that shows none of them."
_SEVERAL = "These validation images chose the thresholds too, so their F1 is a little high."
_NOT_CHOSEN = "The thresholds are 0.5 until the run has ended."
_LABELS = """\
An image is correct where all its labels are, each predicted from a probability of 0.5 on. The mean
average precision is {mAP:.4f}. Below, an image has a label from its threshold on, with a macro F1
of {macro_f1:.4f}.

"""
_CHOSEN = """\
- These validation images chose the best epoch or the number of epochs, so the accuracy on new
  images of the same kind tends to be a little lower.
"""
_TEST = """
On the test images, which were looked at once, when the run had ended:

| accuracy | interval | correct |
|---|---|---|
| {accuracy} |
"""


def model_card(predictor: Predictor, evaluation: Evaluation) -> str:
    """The card of a run, as the README.md of a repository on the Hugging Face hub.

    Args:
        predictor: the run.
        evaluation: its validation.

    Returns:
        Markdown, with front matter in YAML as the hub defines it.
    """
    metadata, config = predictor.metadata, predictor.config
    correct, images = int(evaluation.sums.top1), int(evaluation.sums.images)
    test, tested = metadata.data.test, metadata.correct("test")
    thresholds, labels, every = predictor.thresholds, "", _ONE
    results: Sequence[ClassResult | LabelResult]
    if thresholds is None:
        counts = confusion(evaluation.labels, evaluation.predicted, len(predictor.classes))
        results = list(class_results(counts))
    else:
        found = label_results(evaluation.labels, evaluation.probabilities, thresholds)
        results, labels = found, _LABELS.format(**mean_metrics(found))
        every = _SEVERAL if metadata.thresholds else _NOT_CHOSEN
    text = _TEXT.format(
        name=predictor.name,
        classes=len(predictor.classes),
        network=config.model.name,
        version=metadata.versions.get("jaxtl", "of an unknown version"),
        size=config.model.image_size,
        resize={"stretch": "stretched to that shape", "crop": "scaled, the square in the middle"}[
            config.data.resize
        ],
        data=_public(metadata.source),
        train=metadata.data.train.images,
        val=metadata.data.val.images,
        tested_on=f", and {test.images} for a test that chose nothing" if test else "",
        tested=_TEST.format(accuracy=_cells(*tested)) if tested else "",
        test_sha256=f", test `{test.sha256}`" if test else "",
        skipped=f"; {metadata.skipped_images} were unreadable" if metadata.skipped_images else "",
        train_sha256=metadata.data.train.sha256,
        val_sha256=metadata.data.val.sha256,
        accuracy=_cells(correct, images),
        labels=labels,
        every=every,
        rows="\n".join(
            f"| {_escaped(title)} | {_cells(result.correct, result.images)} |"
            for title, result in zip(predictor.classes, results, strict=True)
        ),
        chosen=_CHOSEN if any(p.restore_best or p.patience for p in config.phases) else "",
        unfinished=f"\n- The run has not ended: {_escaped(predictor.unfinished)}."
        if predictor.unfinished
        else "",
        weights=_weights(predictor),
    )
    accuracies = {"validation": correct / images}
    if tested:
        accuracies["test"] = tested[0] / tested[1]
    return f"---\n{_front_matter(predictor, accuracies)}\n---\n\n{text}"


def _front_matter(predictor: Predictor, accuracies: Mapping[str, float]) -> str:
    """What the hub reads of a card, as YAML; the accuracies are those of the splits."""
    from huggingface_hub import EvalResult, ModelCardData

    metadata = predictor.metadata
    data = _public(metadata.source)
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data,
            dataset_name=data,
            dataset_split=split,
            metric_type="accuracy",
            metric_value=round(accuracy, 4),
        )
        for split, accuracy in accuracies.items()
    ]
    front = ModelCardData(
        model_name=predictor.name,
        library_name="jaxtl",
        pipeline_tag="image-classification",
        tags=["jax", predictor.config.model.name],
        base_model=_repository(metadata.weights.source if metadata.weights else ""),
        eval_results=results,
    )
    return front.to_yaml()


def _cells(correct: int, images: int) -> str:
    """A fraction, its interval, and what it is of."""
    if not images:
        return "- | - | 0 of 0"
    value, *bounds = proportion(correct, images)
    return f"{value:.4f} | {interval_text(*bounds)} | {correct} of {images}"


def _weights(predictor: Predictor) -> str:
    record = predictor.metadata.weights
    if record is None:
        return "The run began with random weights. The licence of its data applies."
    return (
        f"The run began with `{_public(record.source)}`, SHA-256 `{record.sha256}`. Their licence "
        "and that of the data apply; jaxtl does not know them: add `license` above."
    )


def _repository(source: str) -> str | None:
    """The repository on the hub that weights are from, which tells their licence."""
    if not hub.names_repository(source):
        return None
    return source.removeprefix(hub.PREFIX).partition("@")[0]


def _public(source: str) -> str:
    """A source without the folders of this machine: `tfds:pets`, or the last part of a path."""
    if re.match(r"[a-z]+:(?!/|[a-z0-9]+://)", source):
        return as_text(source)
    return as_text(f"{'tfds:' if source.startswith('tfds:') else ''}{Path(source).name}")


def _escaped(title: str) -> str:
    return re.sub(r"([\\|`*_<\[])", r"\\\1", as_text(title))
