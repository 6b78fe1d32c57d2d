"""Measures one network of a comparison on the user's own images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from rich.console import Console

from jaxtl.comparison import HEAD_EPOCHS
from jaxtl.comparison.advice import Budget
from jaxtl.comparison.candidates import Candidate, Start
from jaxtl.comparison.costs import measure
from jaxtl.comparison.linear_probe import Probe, linear_probe
from jaxtl.comparison.results import Failure, Row, Tuned, Unmeasured
from jaxtl.config.config_file import Augment, Config, Data, Model
from jaxtl.config.phases import Phase, everything, head_only
from jaxtl.data.sources import Source, Splits
from jaxtl.errors import UserError
from jaxtl.models import Network, output_spec, split
from jaxtl.runs.directory import RunDirectory
from jaxtl.training.feature_cache import FrozenPass, stored_outputs
from jaxtl.training.loop import Diverged
from jaxtl.training.parallel import replicate
from jaxtl.training.setup import feature_store, loader, run_metadata, train


class Comparison(NamedTuple):
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


class Failed(Exception):
    """A network cannot be measured; its one argument is the `Failure`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Contender:
    """A network of a comparison, with its weights and the images.

    Attributes:
        comparison, candidate, start, data: what is measured.
        folds: of the linear probe.
        out: the terminal.
        say: is told what is being done with this network.
    """

    comparison: Comparison
    candidate: Candidate
    start: Start
    data: Splits
    folds: int
    out: Console
    say: Callable[[str], None]

    @functools.cached_property
    def config(self) -> Config:
        """Trains a new head on cached features, then every parameter at a lower learning rate."""
        name, width, image_size = self.candidate
        weights = self.start.record.source if self.start.record else None
        epochs = max(self.comparison.epochs, 1)
        return Config(
            model=Model(name=name, width=width, image_size=image_size, weights=weights),
            data=Data(source=self.comparison.source, batch_size=self.comparison.batch_size),
            phases=(
                Phase(name="head", train=head_only(), epochs=HEAD_EPOCHS),
                Phase(
                    name="finetune", train=everything(), epochs=epochs, lr=1e-4, schedule="cosine"
                ),
            ),
        )

    @property
    def _folder(self) -> Path:
        return self.comparison.folder / self.candidate.label

    def check_run(self) -> None:
        """Refuses what `fine_tuned` would refuse, before anything is measured.

        Raises:
            UserError: its folder holds other files, or a run of another config, of other data, or
                that began with other weights.
        """
        if not self.comparison.epochs or self.start.record is None:
            return
        metadata = run_metadata(self.config, self.data)
        metadata = metadata.model_copy(update={"weights": self.start.record})
        run = RunDirectory(self._folder)
        with _named_by_out(), run.locked():
            if run.exists():
                run.check_same(self.config, metadata)
            else:
                run.check_empty()

    def row(self) -> Row | Unmeasured:
        """Measures it, but for its fine-tuning.

        Raises:
            UserError: its features cannot be kept.
        """
        record, probe, batch_size = self.start.record, None, self.comparison.batch_size
        label, image_size = self.candidate.label, self.candidate.image_size
        try:
            with within_memory("while it ran over the images"):
                network = self.start.make()
                if record is not None:
                    probe = self._probe(network)
            with within_memory(f"with {batch_size:,} images a batch"):
                cost = measure(network, image_size, batch_size, jax.local_devices()[0], self.say)
        except Failed as error:
            return Unmeasured(label, image_size, error.args[0])
        return Row(
            label,
            image_size,
            cost,
            probe,
            weights="" if record is None else f"{record.source} sha256:{record.sha256}",
            tried="; ".join(self.start.tried),
            ranked_by="fine-tuning" if self.comparison.epochs else "linear probe",
        )

    def _probe(self, network: Network) -> Probe:
        weights, labels = self.config.model.weights, np.concatenate([p.labels for p in self.data])
        self.say(f"features of {len(labels):,} images with the weights {weights}")
        features = np.concatenate([self._features(network, part) for part in self.data])
        if not np.isfinite(features).all():
            of = f"with the weights {weights}, which are not those of a trained network"
            raise Failed(Failure("features not finite", of))
        self.say(f"linear probe of {features.shape[1]:,} features")
        return linear_probe(features, labels, folds=self.folds)

    def _features(self, network: Network, images: Source) -> Float[np.ndarray, "images features"]:
        """What the network makes of every image before its head, kept for the next time."""
        devices, stage = jax.local_devices(), network.stage_names[-1]
        work = FrozenPass(
            config=self.config,
            network=network,
            variables=replicate(split(network)[1], devices),
            loader=loader(images, self.config, shuffle=False),
            stage=stage,
            row=output_spec(network, self.candidate.image_size, stage),
            views=1,
            augmentation=Augment(),
            devices=devices,
        )
        try:
            rows = stored_outputs(work, feature_store(self.config), self.out)
        except OSError as error:
            raise UserError(
                f"the features cannot be kept ({error.strerror}): make room in the user's cache "
                "directory, or name another one in the variable XDG_CACHE_HOME"
            ) from error
        assert rows is not None  # nothing asked to stop
        return rows

    def fine_tuned(self, row: Row | Unmeasured) -> Row | Unmeasured:
        """Its row with the result of fine-tuning, where that was asked for and is possible.

        Raises:
            Interrupted: a signal asked to stop; the run is saved.
        """
        if not self.comparison.epochs or self.start.record is None or isinstance(row, Unmeasured):
            return row
        self.say("fine-tuning")
        tuned: Tuned | Failure
        memory = within_memory(f"with {self.comparison.batch_size:,} images a batch")
        try:
            with _named_by_out(), memory:
                result = train(self.config, self.data, self._folder, self.out)
        except Failed as error:
            tuned = error.args[0]
        except Diverged as error:
            tuned = Failure("diverged", f"as {str(error).partition(';')[0]}")
        else:
            images = len(self.data.val)
            correct = round(result["accuracy"] * images)
            tuned = Tuned(correct, images, int(result["best_epoch"]))
        return dataclasses.replace(row, tuned=tuned)


@contextlib.contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Tells the lack of memory, on the device or the host, from all other errors.

    Raises:
        Failed: there is not enough for what the block does, `what` in words.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise Failed(Failure("out of memory", what)) from error


@contextlib.contextmanager
def _named_by_out() -> Iterator[None]:
    """Names our flag in what is wrong with a run directory."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace("--workdir", "--out")) from error
