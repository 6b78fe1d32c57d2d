"""Decides when a run is saved, and saves no more than what is whole."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxtl.errors import UserError
from jaxtl.models import Variables
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.progress import Progress
from jaxtl.training import hosts
from jaxtl.training.divergence import check_state, is_finite
from jaxtl.training.shared_run import RunCheckpoints
from jaxtl.training.step import TrainState
from jaxtl.training.trainable import partition

_SECONDS_BETWEEN_CHECKPOINTS = 10.0  # more would slow short epochs down


@dataclasses.dataclass(frozen=True)
class Position:
    """A run between two steps of a phase.

    Attributes:
        progress: where the run is.
        phase: the name of the phase.
        state: what the phase changes.
        frozen: all other variables.
        changed: the paths of all variables that the run has changed so far.
        returns_to_best: whether the phase ends with the variables of its best epochs.
    """

    progress: Progress
    phase: str
    state: TrainState
    frozen: Variables
    changed: Sequence[str]
    returns_to_best: bool

    def is_whole(self) -> bool:
        """Whether the state is that of the progress, after an error that may have ruined it."""
        try:
            deleted = any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state))
            if deleted or int(self.state.step) != self.progress.step:
                return False
            return is_finite(self.state)
        except RuntimeError:  # the device failed
            return False


class Saver:
    """Writes the checkpoints of a run; on several hosts the first one decides when.

    Args:
        checkpoints: the checkpoints of the run.
        directory: the run directory.
        every_minutes: how long training goes on without a checkpoint.
        newest: the progress at the newest checkpoint; None if there is none.

    Attributes:
        newest: the same, now.
        failed: whether a checkpoint could not be written.
    """

    def __init__(
        self,
        checkpoints: RunCheckpoints,
        directory: RunDirectory,
        *,
        every_minutes: float,
        newest: Progress | None,
    ):
        self.newest, self.failed = newest, False
        self._checkpoints = checkpoints
        self._directory = directory
        self._interval = 60 * every_minutes
        self._begun = time.monotonic()
        self._saved_at = -math.inf
        self._unsaved_bests: list[Position] = []

    def due(self) -> bool:
        """Whether training should not go on without a checkpoint."""
        return time.monotonic() >= max(self._begun, self._saved_at) + self._interval

    def save(self, position: Position, *, at_once: bool) -> None:
        """Writes a checkpoint; not so soon after the last one, unless it is to be `at_once`.

        An epoch that the phase may end with stays in memory until the next checkpoint.

        Raises:
            Diverged: the variables are not finite; the best epoch is saved.
            UserError: the checkpoint cannot be written.
        """
        progress = position.progress
        if hosts.from_first(lambda: not at_once and self._saved_just_now()):
            if position.returns_to_best and progress.number in progress.kept:
                # A copy, since the next step donates the arrays of the state.
                copy = jax.tree.map(jnp.copy, position.state)
                unsaved = dataclasses.replace(position, state=copy)
                self._unsaved_bests = [*self._kept(progress), unsaved]
            return
        self.save_bests(progress)
        if progress.begun and progress != self.newest:
            check_state(position.state, progress.step, position.phase)
            self._write(position)

    def _saved_just_now(self) -> bool:
        return time.monotonic() < self._saved_at + _SECONDS_BETWEEN_CHECKPOINTS

    def save_bests(self, progress: Progress) -> None:
        """Writes the epochs that a phase may end with, and that have no checkpoint yet.

        Raises:
            UserError: a checkpoint cannot be written.
        """
        unsaved, self._unsaved_bests = self._kept(progress), []
        for best in unsaved:
            self._write(best)

    def _kept(self, progress: Progress) -> list[Position]:
        return [best for best in self._unsaved_bests if best.progress.number in progress.kept]

    def rescue(self, position: Position, error: Exception) -> None:
        """Saves what was trained before an error, if it is whole and no host is left out.

        If it cannot be saved either, a warning says so: the first error is the one to report.
        """
        if self.failed or not hosts.is_shared(error):
            return
        try:
            self.save_bests(position.progress)
            progress = position.progress
            unsaved = progress.begun and progress != self.newest
            if unsaved and not hosts.on_any(not position.is_whole()):
                self._write(position)
        except Exception as next_error:  # whatever the first error leads to
            warn_not_saved(next_error)

    def go_back(self, position: Position) -> None:
        """Writes a checkpoint, and removes those that are further.

        Raises:
            UserError: a checkpoint cannot be written or removed.
        """
        self._write(position)
        self._checkpoints.forget(position.progress.number)

    def _write(self, position: Position) -> None:
        everything = position.frozen | position.state.variables
        changed = partition(everything, position.changed)[0]
        self.failed = True  # unless the rest ends well
        hosts.from_first(self._check_directory)
        self._checkpoints.save(position.progress, changed, position.state.optimizer)
        self.failed = False
        self.newest, self._saved_at = position.progress, time.monotonic()

    def _check_directory(self) -> None:
        if not self._directory.exists():
            raise UserError(
                f"{self._directory.path} is gone: it was moved or deleted while its run trained; "
                "move it back and give the same command to continue, or to begin anew"
            )


def warn_not_saved(error: Exception) -> None:
    """Says why what was trained since the last checkpoint is lost."""
    reason = " ".join(str(error).split())
    logging.getLogger("jaxtl").warning(
        "what was trained since the last checkpoint is not saved: %s", reason
    )
