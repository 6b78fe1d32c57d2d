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
from jaxtl.comparison.candidates import Candidate, Loaded
from jaxtl.comparison.costs import measure
from jaxtl.comparison.linear_probe import Probe, linear_probe
from jaxtl.comparison.results import Failure, Row, Tuned, Unmeasured
from jaxtl.config.config_file import Config, Data, Model
from jaxtl.config.phases import Phase, everything, head_only
from jaxtl.data.sources import Source
from jaxtl.data.splits import Splits
from jaxtl.errors import UserError
from jaxtl.models import Network, split
from jaxtl.runs.directory import RunDirectory
from jaxtl.training.divergence import Diverged
from jaxtl.training.feature_cache import FrozenPass, stored_outputs
from jaxtl.training.memory import is_out_of_memory
from jaxtl.training.parallel import replicate
from jaxtl.training.setup import feature_store, loader, run_metadata, train


class Comparison(NamedTuple):
    """What to measure, and how.

    Attributes:
        source: the data source of the images.
        candidates: the networks.
        weights: the sources of weights to try, in order; none to measure cost alone.
        batch_size: the images in a batch.
        epochs: the epochs of fine-tuning; 0 for none.
        budgets: the most that a network may cost.
        folder: the folder for the results.
    """

    source: str
    candidates: Sequence[Candidate]
    weights: Sequence[str]
    batch_size: int
    epochs: int
    budgets: Sequence[Budget]
    folder: Path


@dataclasses.dataclass(frozen=True, eq=False)
class Contender:
    """A network of a comparison, with its weights and the images.

    Attributes:
        comparison: the settings of all measurements.
        candidate: its name, width and image size.
        loaded: the network with its weights.
        data: the images.
        folds: the number of folds of the linear probe.
        out: the terminal.
        announce: takes a line for each measurement of this network.
    """

    comparison: Comparison
    candidate: Candidate
    loaded: Loaded
    data: Splits
    folds: int
    out: Console
    announce: Callable[[str], None]

    @functools.cached_property
    def config(self) -> Config:
        """Trains a new head on cached features, then every parameter at a lower learning rate."""
        weights = self.loaded.record.source if self.loaded.record else None
        epochs = max(self.comparison.epochs, 1)
        head = Phase(name="head", train=head_only(), epochs=HEAD_EPOCHS)
        rest = Phase(name="finetune", train=everything(), epochs=epochs, lr=1e-4, schedule="cosine")
        return Config(
            model=Model(weights=weights, **self.candidate._asdict()),
            data=Data(source=self.comparison.source, batch_size=self.comparison.batch_size),
            phases=(head, rest),
        )

    @property
    def _folder(self) -> Path:
        return self.comparison.folder / self.candidate.label

    def check_run(self) -> None:
        """Checks that `fine_tuned` can train in its folder, before anything is measured.

        Raises:
            UserError: the folder holds other files, or a run with another config, other data or
                other weights.
        """
        if not self.comparison.epochs or self.loaded.record is None:
            return
        metadata = run_metadata(self.config, self.data)
        metadata = metadata.model_copy(update={"weights": self.loaded.record})
        run = RunDirectory(self._folder)
        with _named_by_out(), run.locked():
            if run.exists():
                run.check_same(self.config, metadata)
            else:
                run.check_empty()

    def measured(self) -> Row | Unmeasured:
        """Measures its cost and its linear probe.

        Raises:
            UserError: its features cannot be kept.
        """
        record, probe, batch_size = self.loaded.record, None, self.comparison.batch_size
        label, image_size = self.candidate.label, self.candidate.image_size
        try:
            with within_memory("while it ran over the images"):
                network = self.loaded.make()
                if record is not None:
                    probe = self._probe(network)
            with within_memory(f"with {batch_size:,} images a batch"):
                device = jax.local_devices()[0]
                cost = measure(network, image_size, batch_size, device, self.announce)
        except Failure as failure:
            return Unmeasured(label, image_size, failure)
        return Row(
            label,
            image_size,
            cost,
            probe,
            weights="" if record is None else f"{record.source} sha256:{record.sha256}",
            tried="; ".join(self.loaded.tried),
            ranked_by="fine-tuning" if self.comparison.epochs else "linear probe",
        )

    def _probe(self, network: Network) -> Probe:
        weights, parts = self.config.model.weights, self.data.named.values()
        labels = np.concatenate([part.labels for part in parts])
        self.announce(f"features of {len(labels):,} images with the weights {weights}")
        features = np.concatenate([self._features(network, part) for part in parts])
        if not np.isfinite(features).all():
            why = f"with the weights {weights}, which are not those of a trained network"
            raise Failure("features not finite", why)
        self.announce(f"linear probe of {features.shape[1]:,} features")
        return linear_probe(features, labels, folds=self.folds)

    def _features(self, network: Network, images: Source) -> Float[np.ndarray, "images features"]:
        """The features of every image, which are kept for the next comparison."""
        work = FrozenPass(
            config=self.config,
            network=network,
            variables=replicate(split(network)[1], jax.local_devices()),
            loader=loader(images, self.config, shuffle=False),
            stage=network.stage_names[-1],
        )
        try:
            rows = stored_outputs(work, feature_store(self.config), self.out)
        except OSError as error:
            raise UserError(
                f"the features cannot be kept ({error.strerror}): free space in the user's cache "
                "directory, or name another one in the variable XDG_CACHE_HOME"
            ) from error
        assert rows is not None  # nothing asked to stop
        return rows

    def fine_tuned(self, row: Row | Unmeasured) -> Row | Unmeasured:
        """Adds the result of fine-tuning to its row, if that was asked for and is possible.

        Raises:
            Interrupted: a signal asked to stop; the run is saved.
        """
        if not self.comparison.epochs or self.loaded.record is None or isinstance(row, Unmeasured):
            return row
        self.announce("fine-tuning")
        tuned: Tuned | Failure
        memory = within_memory(f"with {self.comparison.batch_size:,} images a batch")
        try:
            with _named_by_out(), memory:
                result = train(self.config, self.data, self._folder, self.out)
            images = len(self.data.val)
            tuned = Tuned(round(result["accuracy"] * images), images, int(result["best_epoch"]))
        except Failure as failure:
            tuned = failure
        except Diverged as error:
            tuned = Failure("diverged", f"as {str(error).partition(';')[0]}")
        return dataclasses.replace(row, tuned=tuned)


@contextlib.contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Turns the errors of too little memory, on the device or the host, into a `Failure`.

    Raises:
        Failure: the memory is not enough for the block, which `what` describes.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise Failure("out of memory", what) from error


@contextlib.contextmanager
def _named_by_out() -> Iterator[None]:
    """Names the flag of this command in errors about a run directory."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace("--workdir", "--out")) from error
