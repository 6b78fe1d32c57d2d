"""Checkpoints: everything that a run has changed. Orbax writes them while training goes on.

    checkpoints/initial/     all variables as the run began
    checkpoints/steps/N/     after N training steps: the variables changed so far, the optimizer's
                             state, and the run's progress

Orbax keeps the newest and the best. Variables that never trained are only in `initial`.

Runs of a sweep that trained together share one checkpoint outside their directories
(docs/decisions/0023-one-checkpoint-for-runs-that-train-together.md):

    shared/                  the variables that are the same in all runs
    stacked/                 the other variables of each run's result, with a leading axis of runs

Each of these runs then has only

    checkpoints/group.json   the place of that checkpoint, the index of the run, and its progress
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pydantic
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxtl.config import Phase
from jaxtl.errors import UserError
from jaxtl.files import replacing, write_json
from jaxtl.metrics import NONE, Sums, quality
from jaxtl.models import Variables
from jaxtl.runs.arrays import (
    abstract,
    check_same,
    explaining_failed_writes,
    read_arrays,
    refusing_damage,
    write_arrays,
)

_GROUP = "group.json"
_STRICT = pydantic.ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands: everything but the arrays that its next step depends on.

    Attributes:
        phase: the index of the phase.
        epoch: the number of complete epochs of this phase.
        batch: the number of batches of the next epoch that are done.
        step: the number of training steps since the run began.
        sums: the training metrics of these batches.
        stale: the number of epochs since the phase's best validation result, or since it began.
        best_step, best_epoch: when the phase had its best validation result; None before the first.
        best_accuracy, best_loss: the best validation result of the phase.
        lr_factor: the factor on the learning rate of the phase, 1 unless it diverged.
        halvings: how often a learning rate was halved since the run began.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: Sums = NONE
    stale: int = 0
    best_step: int | None = None
    best_epoch: int | None = None
    best_accuracy: float = -1.0
    best_loss: float = float("inf")
    lr_factor: float = 1.0
    halvings: int = 0

    def next_phase(self) -> Progress:
        """The progress at the start of the next phase."""
        return Progress(phase=self.phase + 1, step=self.step, halvings=self.halvings)

    def after_epoch(self, accuracy: float, loss: float) -> Progress:
        """The progress once the epoch's validation result is known."""
        done = dataclasses.replace(
            self, epoch=self.epoch + 1, batch=0, sums=NONE, stale=self.stale + 1
        )
        if quality(accuracy, loss) <= quality(self.best_accuracy, self.best_loss):
            return done
        return dataclasses.replace(
            done,
            stale=0,
            best_step=self.step,
            best_epoch=done.epoch,
            best_accuracy=accuracy,
            best_loss=loss,
        )

    def finished(self, phase: Phase) -> bool:
        """Whether the phase has run all its epochs, or its patience has ended it."""
        out_of_patience = phase.patience is not None and self.stale >= phase.patience
        return self.epoch >= phase.epochs or out_of_patience

    def result_step(self, phase: Phase) -> int:
        """The step whose variables are the result of the phase so far."""
        if phase.restore_best and self.best_step is not None:
            return self.best_step
        return self.step


class Checkpoints:
    """The checkpoints of one run, which may share one with a group of runs.

    Args:
        folder: the run's `checkpoints` folder.
        read_only: whether to leave the folder as it is.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        self._initial = folder.resolve() / "initial"
        self._run = folder.resolve().parent
        self._member = _Member.find(folder.resolve())
        self._best = _KeepBest()
        # Orbax reports every file, and every error that it raises as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._manager = ocp.CheckpointManager(
            folder.resolve() / "steps",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [preservation_policy.LatestN(1), self._best]
                ),
                read_only=read_only or self._member is not None,
            ),
            item_handlers={
                "variables": ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def save_initial(self, variables: Variables) -> None:
        """Writes all variables as the run begins; returns when they are on disk.

        Raises:
            UserError: the disk is full, or the folder cannot be written to.
        """
        # A run that died before its first epoch may have left the same folder.
        write_arrays(self._initial, variables)

    def initial(self, like: Variables) -> Variables:
        """Reads the variables that the run began with.

        Args:
            like: the variables of the same network, or `jax.ShapeDtypeStruct`s.

        Raises:
            UserError: the files are damaged, or belong to another network.
        """
        return read_arrays(self._initial, like)

    def save(self, progress: Progress, changed: Variables, optimizer: Any) -> None:
        """Starts to write a checkpoint; training may go on at once.

        Args:
            progress: where the run stands; its `step` names the checkpoint.
            changed: the variables that the run has changed so far.
            optimizer: the state of the phase's optimizer.

        Raises:
            UserError: this checkpoint or the one before it cannot be written.
        """
        if progress.step in self._manager.all_steps():
            with explaining_failed_writes(self._place(progress.step)):
                self._manager.wait_until_finished()
                self._manager.delete(progress.step)
        self._best.step = progress.best_step
        items = ocp.args.Composite(
            variables=ocp.args.StandardSave(changed),
            optimizer=ocp.args.StandardSave(_leaves(optimizer)),
            progress=ocp.args.JsonSave(
                {"progress": dataclasses.asdict(progress), "variables": sorted(changed)}
            ),
        )
        with explaining_failed_writes(self._place(progress.step)):
            self._manager.save(progress.step, args=items, force=True)

    def newest(self) -> Progress | None:
        """The progress at the newest checkpoint; None before the first."""
        if self._member is not None:
            return self._member.progress
        step = self._manager.latest_step()
        return None if step is None else self.progress(step)

    def progress(self, step: int) -> Progress:
        """The progress at a checkpoint.

        Raises:
            UserError: it is damaged.
        """
        with refusing_damage(self._place(step)):
            progress = self._json(step).progress
        self._best.step = progress.best_step
        return progress

    def variables(self, step: int, like: Variables) -> Variables:
        """All variables at a checkpoint: the initial ones, updated by those that the run changed.

        Args:
            step: the step of an existing checkpoint; for a run of a group, that of its result.
            like: the variables of the same network, or `jax.ShapeDtypeStruct`s.

        Raises:
            UserError: the files are damaged or missing, or belong to another network; or a
                checkpoint cannot be written.
        """
        if self._member is not None:
            return self._member.variables(self._run, step, like)
        with explaining_failed_writes(self._manager.directory):
            self._manager.wait_until_finished()
        with refusing_damage(self._place(step)):
            stored = self._manager.item_metadata(step).variables.tree
            expected = {path: like[path] for path in self._json(step).variables if path in like}
            check_same(self._place(step), stored, expected)
            wanted = ocp.args.StandardRestore(abstract(expected))
            restored = self._manager.restore(step, args=ocp.args.Composite(variables=wanted))
        return self.initial(like) | restored.variables

    def optimizer(self, step: int, like: Any) -> Any:
        """The optimizer's state at a checkpoint.

        Args:
            step: the step of an existing checkpoint.
            like: a state of the same optimizer.

        Raises:
            UserError: the files are damaged, or belong to another optimizer.
        """
        leaves = _leaves(like)
        with refusing_damage(self._place(step)):
            stored = self._manager.item_metadata(step).optimizer.tree
            check_same(self._place(step), stored, leaves)
            wanted = ocp.args.StandardRestore(abstract(leaves))
            restored = self._manager.restore(step, args=ocp.args.Composite(optimizer=wanted))
        ordered = [restored.optimizer[name] for name in leaves]
        return jax.tree.unflatten(jax.tree.structure(like), ordered)

    def close(self) -> None:
        """Waits until everything is on disk.

        Raises:
            UserError: the last checkpoint cannot be written.
        """
        with explaining_failed_writes(self._manager.directory):
            self._manager.close()

    def _place(self, step: int) -> Any:
        return self._manager.directory / str(step)

    def _json(self, step: int) -> _Contents:
        wanted = ocp.args.Composite(progress=ocp.args.JsonRestore())
        stored = self._manager.restore(step, args=wanted).progress
        return _Contents.model_validate_json(json.dumps(stored))


class _Contents(pydantic.BaseModel):
    """The JSON of a checkpoint: progress, and the paths of the variables in it."""

    model_config = _STRICT

    progress: Progress
    variables: list[str]


@dataclasses.dataclass(frozen=True)
class Group:
    """The checkpoint that N runs share which trained together.

    Attributes:
        folder: the folder of the checkpoint.
        runs: N.
        stacked: the paths of the variables with a leading axis of runs.
    """

    folder: Path
    runs: int
    stacked: Sequence[str]

    @classmethod
    def write(cls, folder: Path, shared: Variables, stacked: Variables) -> Group:
        """Writes the variables of all runs; returns when they are on disk.

        Args:
            folder: a new folder; after an error it does not exist.
            shared: the variables that are the same in all runs.
            stacked: the other variables of each run's result, (N, ...).

        Raises:
            UserError: the disk is full, or the folder cannot be written to.
        """
        chex.assert_equal_shape_prefix(list(stacked.values()), 1)
        with replacing(folder) as part:
            write_arrays(part.resolve() / "shared", shared)
            write_arrays(part.resolve() / "stacked", stacked)
        return cls(folder, len(next(iter(stacked.values()))), sorted(stacked))

    def add(self, checkpoints: Path, index: int, step: int, progress: Progress) -> None:
        """Lets a run directory point to its variables.

        Args:
            checkpoints: the run's `checkpoints` folder, which is made.
            index: the index of the run along the leading axis.
            step: the training step at which the run had these variables.
            progress: the progress at the end of the run.
        """
        checkpoints.mkdir()
        member = _Member(
            folder=os.path.relpath(self.folder, checkpoints.parent),
            runs=self.runs,
            stacked=list(self.stacked),
            index=index,
            step=step,
            progress=progress,
        )
        write_json(checkpoints / _GROUP, member.model_dump())


class _Member(pydantic.BaseModel):
    """What `group.json` says: the group of a run, by `folder` relative to the run directory, and
    its place there, as for `Group.add`."""

    model_config = _STRICT

    folder: str
    runs: int
    stacked: list[str]
    index: pydantic.NonNegativeInt
    step: int
    progress: Progress

    @classmethod
    def find(cls, checkpoints: Path) -> _Member | None:
        """Reads what `Group.add` wrote; None for a run that trained alone."""
        file = checkpoints / _GROUP
        if not file.exists():
            return None
        with refusing_damage(file):
            member = cls.model_validate_json(file.read_bytes())
            if member.index >= member.runs:
                raise ValueError(f"there is no run {member.index} among {member.runs}")
            return member

    def variables(self, run: Path, step: int, like: Variables) -> Variables:
        """As `Checkpoints.variables`, for the run directory `run`."""
        folder = Path(os.path.normpath(run / self.folder))
        if step != self.step:
            raise UserError(f"{run} keeps the variables of step {self.step} alone, not {step}")
        if not folder.is_dir():
            raise UserError(
                f"the variables of {run} are in {folder}, which is not there; move the run "
                "back into its sweep, or train it again"
            )
        stacked = {
            path: jax.ShapeDtypeStruct((self.runs, *like[path].shape), like[path].dtype)
            for path in self.stacked
            if path in like
        }
        shared = {path: one for path, one in like.items() if path not in self.stacked}
        of_all = read_arrays(folder / "stacked", stacked)
        own = {path: jnp.asarray(np.asarray(value)[self.index]) for path, value in of_all.items()}
        return read_arrays(folder / "shared", shared) | own


@dataclasses.dataclass
class _KeepBest(preservation_policy.PreservationPolicy):
    """Keeps the checkpoint of one step."""

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [info.step == self.step for info in checkpoints]


def _leaves(tree: Any) -> dict[str, jax.Array]:
    """The arrays of a tree by path, so that Orbax need not know the classes of its nodes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
