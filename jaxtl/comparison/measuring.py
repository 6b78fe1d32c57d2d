"""Measures one network of a comparison on the user's own images."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int
from rich.console import Console

from jaxtl.comparison.advice import Budget
from jaxtl.comparison.candidates import Candidate, Start
from jaxtl.comparison.costs import measure
from jaxtl.comparison.linear_probe import linear_probe
from jaxtl.comparison.results import Failure, Row, Sample, Tuned, Unmeasured
from jaxtl.config.config_file import Augment, Config, Data, Model
from jaxtl.config.phases import Phase, everything, head_only
from jaxtl.data.sources import Splits
from jaxtl.errors import UserError
from jaxtl.models import Network, output_spec, split
from jaxtl.runs.directory import RunDirectory, WeightsMetadata
from jaxtl.training.feature_cache import FrozenPass, Plan, open_feed
from jaxtl.training.loop import Diverged
from jaxtl.training.parallel import replicate
from jaxtl.training.setup import feature_store, loader, run_metadata, train

HEAD_EPOCHS = 10
"""Epochs of the head before everything trains; they run on cached features."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to measure, and how.

    Attributes:
        source: of the images.
        candidates: the networks.
        weights: where their weights may come from, the first that can be had; none for cost alone.
        batch_size: images in a batch.
        epochs: of fine-tuning; 0 for none.
        budgets: the most that a network may cost.
        folder: where the results go.
    """

    source: str
    candidates: Sequence[Candidate]
    weights: Sequence[str]
    batch_size: int
    epochs: int
    budgets: Sequence[Budget]
    folder: Path


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """A comparison on its images.

    Attributes:
        comparison: what to measure.
        data: the images.
        labels: of all of them, those to train on first.
        folds: of the linear probe.
        out: the terminal.
    """

    comparison: Comparison
    data: Splits
    labels: Int[np.ndarray, " images"]
    folds: int
    out: Console

    @property
    def sample(self) -> Sample:
        """What accuracy is measured on."""
        ranking = self.data.val.labels if self.comparison.epochs else self.labels
        largest = max(Counter(ranking.tolist()).values())
        classes = len(self.data.train.classes)
        return Sample(len(self.labels), classes, 100 * largest / len(ranking), self.folds)


class OutOfMemory(Exception):
    """A network needs more memory than there is; the text says with what."""


def measured_row(
    candidate: Candidate, beginning: Start, work: Work, say: Callable[[str], None]
) -> Row | Unmeasured:
    """All that is to be known of one network but for its fine-tuning.

    Args:
        candidate: the network.
        beginning: what it begins with.
        work: the comparison.
        say: is told what is being done.
    """
    comparison, record, probe = work.comparison, beginning.record, None
    label, size, batch = candidate.label, candidate.image_size, comparison.batch_size
    try:
        with within_memory("while it ran over the images"):
            network = beginning.make()
            if record is not None:
                config = _config(candidate, comparison, record.source)
                say(f"features of {len(work.labels):,} images with the weights {record.source}")
                features = _features(config, network, work)
        if record is not None:
            if not np.isfinite(features).all():
                of = f"with the weights {record.source}, which are not those of a trained network"
                return Unmeasured(label, size, Failure("features not finite", of))
            say(f"linear probe of {features.shape[1]:,} features")
            probe = linear_probe(features, work.labels, folds=work.folds)
        with within_memory(f"with {batch:,} images a batch"):
            cost = measure(network, size, batch, jax.local_devices()[0], say)
    except OutOfMemory as error:
        return Unmeasured(label, size, Failure("out of memory", str(error)))
    return Row(
        label,
        size,
        cost,
        probe,
        weights="" if record is None else f"{record.source} sha256:{record.sha256}",
        tried="; ".join(beginning.tried),
        ranked_by="fine-tuning" if comparison.epochs else "linear probe",
    )


@contextlib.contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Tells the lack of memory, on the device or the host, from all other errors.

    Raises:
        OutOfMemory: there is not enough for what the block does, `what` in words.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(what) from error


def _config(candidate: Candidate, comparison: Comparison, weights: str) -> Config:
    """A new head on cached features, then every parameter at a lower rate."""
    epochs = max(comparison.epochs, 1)
    return Config(
        model=Model(
            name=candidate.name,
            width=candidate.width,
            image_size=candidate.image_size,
            weights=weights,
        ),
        data=Data(source=comparison.source, batch_size=comparison.batch_size),
        phases=(
            Phase(name="head", train=head_only(), epochs=HEAD_EPOCHS),
            Phase(name="finetune", train=everything(), epochs=epochs, lr=1e-4, schedule="cosine"),
        ),
    )


def _features(config: Config, network: Network, work: Work) -> Float[np.ndarray, "images features"]:
    """What the network makes of every image before its head, kept for the next time."""
    devices, stage = jax.local_devices(), network.stage_names[-1]
    variables = replicate(split(network)[1], devices)
    parts = []
    for part in work.data:
        frozen = FrozenPass(
            config=config,
            network=network,
            variables=variables,
            loader=loader(part, config, shuffle=False),
            stage=stage,
            row=output_spec(network, config.model.image_size, stage),
            views=1,
            augmentation=Augment(),
            devices=devices,
        )
        how = Plan(views=1, cached=True, resident=False, why="")
        feed = open_feed(how, frozen, feature_store(config), work.out, lambda: False)
        if feed is None or feed.rows is None:
            raise UserError(
                "the features cannot be kept: make room in the user's cache directory, or name "
                "another one in the variable XDG_CACHE_HOME"
            )
        parts.append(feed.rows)
    return np.concatenate(parts)


def check_run(candidate: Candidate, beginning: Start, work: Work) -> None:
    """Refuses to fine-tune where something else lies, before anything is measured.

    Raises:
        UserError: the folder holds other files, or a run of another config, of other data, or that
            began with other weights.
    """
    record = beginning.record
    if not work.comparison.epochs or record is None:
        return
    config = _config(candidate, work.comparison, record.source)
    weights = WeightsMetadata(**dataclasses.asdict(record))
    metadata = run_metadata(config, work.data).model_copy(update={"weights": weights})
    run = RunDirectory(work.comparison.folder / candidate.label)
    with _named_by_out(), run.locked():
        if run.exists():
            run.check_same(config, metadata)
        else:
            run.check_empty()


def fine_tuned(
    row: Row | Unmeasured,
    candidate: Candidate,
    beginning: Start,
    work: Work,
    say: Callable[[str], None],
) -> Row | Unmeasured:
    """The same row with what fine-tuning came to, where it was asked for and is possible.

    Args:
        row: of the network.
        candidate, beginning, work, say: as of `measured_row`.

    Raises:
        Interrupted: a signal asked to stop; the run is saved.
    """
    comparison, record = work.comparison, beginning.record
    if not comparison.epochs or record is None or isinstance(row, Unmeasured):
        return row
    say("fine-tuning")
    config = _config(candidate, comparison, record.source)
    tuned = _tuned(config, comparison.folder / candidate.label, work)
    return dataclasses.replace(row, tuned=tuned)


def _tuned(config: Config, folder: Path, work: Work) -> Tuned | Failure:
    batch = work.comparison.batch_size
    try:
        with _named_by_out(), within_memory(f"with {batch:,} images a batch"):
            metrics = train(config, work.data, folder, work.out)
    except OutOfMemory as error:
        return Failure("out of memory", str(error))
    except Diverged as error:
        return Failure("diverged", f"as {str(error).partition(';')[0]}")
    images = len(work.data.val)
    return Tuned(round(metrics["accuracy"] * images), images, int(metrics["best_epoch"]))


@contextlib.contextmanager
def _named_by_out() -> Iterator[None]:
    """Names our flag in what is wrong with a run directory."""
    try:
        yield
    except Diverged:
        raise
    except UserError as error:
        raise UserError(str(error).replace("--workdir", "--out")) from error
