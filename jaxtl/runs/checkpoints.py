"""Checkpoints: everything that a run has changed, written by Orbax while training goes on.

    checkpoints/initial/     all variables as the run began
    checkpoints/steps/N/     after N training steps: the variables changed so far, the optimizer's
                             state, and the run's progress

The newest and the best are kept. What was frozen all along is in `initial` alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import operator
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import chex
import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxtl.config import Phase
from jaxtl.errors import UserError
from jaxtl.metrics import NONE, Sums, quality
from jaxtl.models import Variables

_LISTED = 10  # names in a message


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
    """The checkpoints of one run directory.

    Args:
        folder: the run's `checkpoints` folder.
        read_only: save nothing and clean up nothing.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        self._initial = folder.resolve() / "initial"
        self._best_step: int | None = None
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every file
        self._manager = ocp.CheckpointManager(
            folder.resolve() / "steps",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [preservation_policy.LatestN(1), _KeepBest(self)]
                ),
                read_only=read_only,
            ),
            item_handlers={
                "variables": ocp.StandardCheckpointHandler(),
                "optimizer": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
        )

    def save_initial(self, variables: Variables) -> None:
        """Writes all variables as the run begins; returns when they are on disk."""
        with ocp.StandardCheckpointer() as writer:
            writer.save(self._initial, variables, force=True)  # over that of a run that died

    def share_initial(self, folder: Path) -> None:
        """Takes over the initial variables of another run, as the same files on disk.

        Args:
            folder: the other run's `checkpoints` folder.
        """
        try:
            shutil.copytree(folder / "initial", self._initial, copy_function=os.link)
        except (OSError, shutil.Error):  # not every file system has hard links
            shutil.rmtree(self._initial, ignore_errors=True)
            shutil.copytree(folder / "initial", self._initial)

    def initial(self, like: Variables) -> Variables:
        """Reads the variables that the run began with.

        Args:
            like: the variables of the same network, or their shapes.

        Raises:
            UserError: they are damaged, or belong to another network.
        """
        with _readable(self._initial), ocp.StandardCheckpointer() as reader:
            stored = reader.metadata(self._initial).item_metadata.tree
            _check_same(self._initial, stored, like)
            return reader.restore(self._initial, _abstract(like))

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
        step = self._manager.latest_step()
        return None if step is None else self.progress(step)

    def progress(self, step: int) -> Progress:
        """The progress at a checkpoint.

        Raises:
            UserError: it is damaged.
        """
        with _readable(self._place(step)):
            fields = self._json(step)["progress"]
            for name in ("phase", "epoch", "batch", "step", "stale"):
                operator.index(fields[name])
            self._best_step = fields["best_step"]
            return Progress(**(fields | {"sums": Sums(*fields["sums"])}))

    def variables(self, step: int, like: Variables) -> Variables:
        """All variables at a checkpoint: those of the start, overwritten by what the run changed.

        Args:
            step: of a checkpoint that is there.
            like: the variables of the same network, or their shapes.

        Raises:
            UserError: they are damaged, or belong to another network.
        """
        self._manager.wait_until_finished()
        with _readable(self._place(step)):
            stored = self._manager.item_metadata(step).variables.tree
            expected = {path: like[path] for path in self._json(step)["variables"] if path in like}
            _check_same(self._place(step), stored, expected)
            wanted = ocp.args.StandardRestore(_abstract(expected))
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
        with _readable(self._place(step)):
            stored = self._manager.item_metadata(step).optimizer.tree
            _check_same(self._place(step), stored, leaves)
            wanted = ocp.args.StandardRestore(_abstract(leaves))
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


@dataclasses.dataclass
class _KeepBest(preservation_policy.PreservationPolicy):
    checkpoints: Checkpoints

    def should_preserve(self, checkpoints: Iterable[Any], *, context: Any) -> list[bool]:
        return [info.step == self.checkpoints.best_step for info in checkpoints]


def _leaves(tree: Any) -> dict[str, jax.Array]:
    """The arrays of a tree by path: what Orbax stores without knowing the tree's classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _abstract(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    # On a device of this machine: the run may have been saved by one with other devices.
    here = SingleDeviceSharding(jax.local_devices()[0])
    return {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for n, a in arrays.items()}


@contextlib.contextmanager
def _readable(place: Any) -> Iterator[None]:
    """Turns whatever Orbax raises on damaged or missing files into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {place} is damaged or incomplete: {reason}") from error


def _check_same(place: Any, stored: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compares names, shapes and types: Orbax has been seen to restore a part silently."""
    names = sorted(stored.keys() ^ expected.keys())
    reason = f"only one of them has {', '.join(names[:_LISTED])}"
    if not names:
        try:
            chex.assert_trees_all_equal_shapes_and_dtypes(_abstract(stored), _abstract(expected))
            return
        except AssertionError as error:
            reason = " ".join(str(error).partition("failed:")[2].split())
    raise UserError(f"checkpoint {place} (tree 0) does not fit this run (tree 1): {reason}")
