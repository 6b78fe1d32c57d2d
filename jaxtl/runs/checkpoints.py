"""Checkpoints: everything that a run has changed, written by Orbax while training goes on.

    checkpoints/initial/     all variables as the run began
    checkpoints/steps/N/     after N training steps: the variables changed so far, the optimizer's
                             state, and the run's progress

The newest and the best are kept. What was frozen all along is in `initial` alone.

Runs of a sweep that trained together have one checkpoint for all of them, outside their
directories (docs/decisions/0023-one-checkpoint-for-runs-that-train-together.md):

    shared/                  the variables that are the same in all runs
    stacked/                 the other variables of each run's result, with a leading axis of runs

In place of the above each of these runs has

    checkpoints/group.json   where that checkpoint is, the index of the run, and its progress
"""

from __future__ import annotations

import dataclasses
import json
import logging
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxtl.config import Phase
from jaxtl.errors import UserError
from jaxtl.files import replacing, write_json
from jaxtl.metrics import NONE, Sums, quality
from jaxtl.models import Variables
from jaxtl.runs.arrays import abstract, check_same, read_arrays, readable, write_arrays

_GROUP = "group.json"


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands: all that its next step depends on besides arrays.

    Attributes:
        phase: index of the phase.
        epoch: complete epochs of this phase.
        batch: batches of the next epoch that are done.
        step: training steps since the run began.
        sums: the training sums of these batches.
        stale: epochs since the phase's best validation result, or since it began.
        best_step, best_epoch: when the phase had its best validation result; None before the first.
        best_accuracy, best_loss: that result.
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

    def next_phase(self) -> Progress:
        """The progress at the start of the next phase."""
        return Progress(phase=self.phase + 1, step=self.step)

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
        """Whether the phase is out of epochs or out of patience."""
        out_of_patience = phase.patience is not None and self.stale >= phase.patience
        return self.epoch >= phase.epochs or out_of_patience

    def result_step(self, phase: Phase) -> int:
        """The step whose variables are the result of the phase so far."""
        if phase.restore_best and self.best_step is not None:
            return self.best_step
        return self.step


class Checkpoints:
    """The checkpoints of one run directory, or its place in those of a group of runs.

    Args:
        folder: the run's `checkpoints` folder.
        read_only: save nothing and clean up nothing.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        self._initial = folder.resolve() / "initial"
        self._member = _Member.find(folder.resolve())
        self._best_step: int | None = None
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file
        self._manager = ocp.CheckpointManager(
            folder.resolve() / "steps",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [preservation_policy.LatestN(1), _KeepBest(self)]
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
        """Writes all variables as the run begins; returns when they are on disk."""
        write_arrays(self._initial, variables)  # over that of a run that died

    def initial(self, like: Variables) -> Variables:
        """Reads the variables that the run began with.

        Args:
            like: the variables of the same network, or their shapes.

        Raises:
            UserError: they are damaged, or belong to another network.
        """
        return read_arrays(self._initial, like)

    def save(self, progress: Progress, changed: Variables, optimizer: Any) -> None:
        """Starts to write a checkpoint; training may go on at once.

        Args:
            progress: where the run stands; its `step` names the checkpoint.
            changed: the variables that the run has changed so far.
            optimizer: the state of the phase's optimizer.
        """
        if progress.step in self._manager.all_steps():
            return  # stopped again before the first step: nothing has changed
        self._best_step = progress.best_step
        self._manager.save(
            progress.step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(changed),
                optimizer=ocp.args.StandardSave(_leaves(optimizer)),
                progress=ocp.args.JsonSave(
                    {"progress": dataclasses.asdict(progress), "variables": sorted(changed)}
                ),
            ),
            force=True,
        )

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
        with readable(self._place(step)):
            progress = _progress(self._json(step)["progress"])
        self._best_step = progress.best_step
        return progress

    def variables(self, step: int, like: Variables) -> Variables:
        """All variables at a checkpoint: those of the start, overwritten by what the run changed.

        Args:
            step: of a checkpoint that is there; for a run of a group, that of its result.
            like: the variables of the same network, or their shapes.

        Raises:
            UserError: they are damaged or missing, or belong to another network.
        """
        if self._member is not None:
            return self._member.variables(step, like)
        self._manager.wait_until_finished()
        with readable(self._place(step)):
            stored = self._manager.item_metadata(step).variables.tree
            expected = {path: like[path] for path in self._json(step)["variables"] if path in like}
            check_same(self._place(step), stored, expected)
            wanted = ocp.args.StandardRestore(abstract(expected))
            restored = self._manager.restore(step, args=ocp.args.Composite(variables=wanted))
        return self.initial(like) | restored.variables

    def optimizer(self, step: int, like: Any) -> Any:
        """The optimizer's state at a checkpoint.

        Args:
            step: of a checkpoint that is there.
            like: a state of the same optimizer.

        Raises:
            UserError: it is damaged, or belongs to another optimizer.
        """
        leaves = _leaves(like)
        with readable(self._place(step)):
            stored = self._manager.item_metadata(step).optimizer.tree
            check_same(self._place(step), stored, leaves)
            wanted = ocp.args.StandardRestore(abstract(leaves))
            restored = self._manager.restore(step, args=ocp.args.Composite(optimizer=wanted))
        ordered = [restored.optimizer[name] for name in leaves]
        return jax.tree.unflatten(jax.tree.structure(like), ordered)

    @property
    def best_step(self) -> int | None:
        """The checkpoint with the best validation result, which is kept."""
        return self._best_step

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.close()

    def _place(self, step: int) -> Any:
        return self._manager.directory / str(step)

    def _json(self, step: int) -> dict[str, Any]:
        wanted = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return self._manager.restore(step, args=wanted).progress


@dataclasses.dataclass(frozen=True)
class Group:
    """The checkpoint of N runs that trained together.

    Attributes:
        folder: where it is.
        runs: N.
        stacked: the names of the variables with a leading axis of runs.
    """

    folder: Path
    runs: int
    stacked: Sequence[str]

    @classmethod
    def write(cls, folder: Path, shared: Variables, stacked: Variables) -> Group:
        """Writes the variables of all runs; returns when they are on disk.

        Args:
            folder: a new one; it is whole or not there.
            shared: the variables that are the same in all runs.
            stacked: the other variables of each run's result, (N, ...).
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
            index: of the run, along the leading axis.
            step: the training step at which it had these variables.
            progress: where it stands; it is complete.
        """
        checkpoints.mkdir()
        place = {
            "folder": os.path.relpath(self.folder, checkpoints.parent),
            "runs": self.runs,
            "stacked": self.stacked,
            "index": index,
            "step": step,
            "progress": dataclasses.asdict(progress),
        }
        write_json(checkpoints / _GROUP, place)


@dataclasses.dataclass(frozen=True)
class _Member:
    """The place of a run in the checkpoint of its group."""

    run: Path
    group: Group
    index: int
    step: int
    progress: Progress

    @classmethod
    def find(cls, checkpoints: Path) -> _Member | None:
        """Reads what `Group.add` wrote; None for a run that trained alone."""
        file, run = checkpoints / _GROUP, checkpoints.parent
        if not file.exists():
            return None
        with readable(file):
            fields = json.loads(file.read_bytes())
            runs, index, step = (operator.index(fields[name]) for name in ("runs", "index", "step"))
            if index not in range(runs):
                raise ValueError(f"there is no run {index} among {runs}")
            folder = Path(os.path.normpath(run / fields["folder"]))
            group = Group(folder, runs, list(fields["stacked"]))
            return cls(run, group, index, step, _progress(fields["progress"]))

    def variables(self, step: int, like: Variables) -> Variables:
        """As `Checkpoints.variables`."""
        folder = self.group.folder
        if step != self.step:
            raise UserError(f"{self.run} keeps the variables of step {self.step} alone, not {step}")
        if not folder.is_dir():
            raise UserError(
                f"the variables of {self.run} are in {folder}, which is not there; move the run "
                "back into its sweep, or train it again"
            )
        shapes = {path: like[path] for path in self.group.stacked if path in like}
        stacked = {
            path: jax.ShapeDtypeStruct((self.group.runs, *one.shape), one.dtype)
            for path, one in shapes.items()
        }
        shared = {path: one for path, one in like.items() if path not in self.group.stacked}
        of_all = read_arrays(folder / "stacked", stacked)
        own = {path: jnp.asarray(np.asarray(value)[self.index]) for path, value in of_all.items()}
        return read_arrays(folder / "shared", shared) | own


@dataclasses.dataclass
class _KeepBest(preservation_policy.PreservationPolicy):
    checkpoints: Checkpoints

    def should_preserve(self, checkpoints: Iterable[Any], *, context: Any) -> list[bool]:
        return [info.step == self.checkpoints.best_step for info in checkpoints]


def _leaves(tree: Any) -> dict[str, jax.Array]:
    """The arrays of a tree by path: what Orbax stores without knowing the tree's classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _progress(fields: dict[str, Any]) -> Progress:
    """A `Progress` from JSON."""
    for name in ("phase", "epoch", "batch", "step", "stale"):
        operator.index(fields[name])
    return Progress(**(fields | {"sums": Sums(*fields["sums"])}))
