"""Checkpoints: everything that a run has changed, written by Orbax while training goes on.

    checkpoints/initial/     all variables as the run began
    checkpoints/steps/N/     after N training steps: the variables changed so far, the optimizer's
                             state, and where the run stands

The newest and the best are kept. What was frozen all along is in `initial` alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxtl.errors import UserError
from jaxtl.metrics import NONE, Sums
from jaxtl.models import Variables


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands, and all that its next step depends on besides arrays.

    Attributes:
        phase: index of the phase.
        epoch: epochs of this phase that are complete.
        batch: batches of the next epoch that are done.
        step: training steps since the run began.
        sums: the training sums of these batches.
        stale: epochs since the phase began or a better validation result was seen.
        best_step: the checkpoint with the best validation result of this phase.
        best_accuracy, best_loss: that result; accuracy counts first, and loss between equals.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: Sums = NONE
    stale: int = 0
    best_step: int | None = None
    best_accuracy: float = -1.0
    best_loss: float = float("inf")

    def next_phase(self) -> Progress:
        """Where the run stands as the next phase begins."""
        return Progress(phase=self.phase + 1, step=self.step)

    def after_epoch(self, accuracy: float, loss: float) -> Progress:
        """Where the run stands once the epoch's validation result is known."""
        done = dataclasses.replace(self, epoch=self.epoch + 1, batch=0, sums=NONE)
        if (accuracy, -loss) > (self.best_accuracy, -self.best_loss):
            return dataclasses.replace(
                done, stale=0, best_step=self.step, best_accuracy=accuracy, best_loss=loss
            )
        return dataclasses.replace(done, stale=self.stale + 1)


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
        folder: the run's `checkpoints` folder.
        read_only: nothing will be saved, and nothing that is there is cleaned up.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        self._initial = folder.resolve() / "initial"
        self._best_step: int | None = None
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every file
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
        """Takes over what another run began with, as the same files on disk.

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
            like: variables of the same network, for paths, shapes and types.

        Raises:
            UserError: they are not those of this network.
        """
        with _readable(self._initial), ocp.StandardCheckpointer() as reader:
            stored = reader.metadata(self._initial).item_metadata.tree
            _compare(self._initial, stored, like)
            return reader.restore(self._initial, _abstract(like))

    def save(self, progress: Progress, changed: Variables, optimizer: Any) -> None:
        """Starts to write a checkpoint; training may go on at once.

        Args:
            progress: where the run stands; its `step` names the checkpoint.
            changed: the variables that the run has changed so far.
            optimizer: the state of the phase's optimizer.
        """
        if progress.step in self._manager.all_steps():
            return  # stopped again before the first step: what is there is the same
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
        """Where the run stood at its newest checkpoint; None before the first."""
        step = self._manager.latest_step()
        return None if step is None else self.progress(step)

    def progress(self, step: int) -> Progress:
        """Where the run stood at a checkpoint."""
        with _readable(self._place(step)):
            fields = self._words(step)["progress"]
            self._best_step = fields["best_step"]
            return Progress(**(fields | {"sums": Sums(*fields["sums"])}))

    def variables(self, step: int, like: Variables) -> Variables:
        """All variables at a checkpoint: those as the run began, and over them what it had changed.

        Args:
            step: of a checkpoint that is there.
            like: variables of the same network, for paths, shapes and types.

        Raises:
            UserError: they are not those of this network.
        """
        self._manager.wait_until_finished()
        with _readable(self._place(step)):
            stored = self._manager.item_metadata(step).variables.tree
            expected = {path: like[path] for path in self._words(step)["variables"] if path in like}
            _compare(self._place(step), stored, expected)
            wanted = ocp.args.StandardRestore(_abstract(expected))
            restored = self._manager.restore(step, args=ocp.args.Composite(variables=wanted))
        return self.initial(like) | restored.variables

    def optimizer(self, step: int, like: Any) -> Any:
        """The optimizer's state at a checkpoint.

        Args:
            step: of a checkpoint that is there.
            like: a state of the same optimizer, for structure, shapes and types.

        Raises:
            UserError: it is that of another optimizer.
        """
        leaves = _leaves(like)
        with _readable(self._place(step)):
            stored = self._manager.item_metadata(step).optimizer.tree
            _compare(self._place(step), stored, leaves)
            wanted = ocp.args.StandardRestore(_abstract(leaves))
            restored = self._manager.restore(step, args=ocp.args.Composite(optimizer=wanted))
        ordered = [restored.optimizer[name] for name in leaves]
        return jax.tree.unflatten(jax.tree.structure(like), ordered)

    def _place(self, step: int) -> Any:
        return self._manager.directory / str(step)

    def _words(self, step: int) -> dict[str, Any]:
        wanted = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return self._manager.restore(step, args=wanted).progress

    @property
    def best_step(self) -> int | None:
        """The checkpoint with the best validation result, which is kept."""
        return self._best_step

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.close()


@dataclasses.dataclass
class _KeepBest(preservation_policy.PreservationPolicy):
    checkpoints: Checkpoints

    def should_preserve(self, checkpoints: Iterable[Any], *, context: Any) -> list[bool]:
        return [info.step == self.checkpoints.best_step for info in checkpoints]


def _leaves(tree: Any) -> dict[str, jax.Array]:
    """The arrays of any tree by the path to them: what Orbax stores without knowing the classes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _abstract(arrays: dict[str, jax.Array]) -> dict[str, jax.ShapeDtypeStruct]:
    # On a device of this machine: the run may have been saved by one with other devices.
    here = SingleDeviceSharding(jax.local_devices()[0])
    return {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for n, a in arrays.items()}


@contextlib.contextmanager
def _readable(place: Any) -> Iterator[None]:
    """Orbax raises what it happens to stumble over when files are damaged or not there."""
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {place} is damaged or not complete: {reason}") from error


def _compare(place: Any, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """Orbax has been seen to restore a part without a word: names, shapes and types must agree."""
    found = {name: (tuple(a.shape), str(a.dtype)) for name, a in stored.items()}
    wanted = {name: (tuple(a.shape), str(a.dtype)) for name, a in expected.items()}
    wrong = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
    if wrong:
        details = ", ".join(f"{n}: {found.get(n)} on disk, {wanted.get(n)} here" for n in wrong)
        raise UserError(f"checkpoint {place} is not of this run: {details}")
