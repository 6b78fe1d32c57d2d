"""Checkpoints: everything that a run has changed. Orbax writes them while training goes on.

    checkpoints/initial/       the variables as the run began, but for those that a published source
    checkpoints/initial.json   has, and what is known of them (see `initial.py`)
    checkpoints/steps/N/       the variables changed so far, the optimizer's state, the run's
                               progress, whose number is N, and a digest of each array

Orbax keeps the two newest, and the best epochs that each of them may return to. Variables that
never trained are only in `initial`. Runs of a sweep that trained together share one checkpoint
outside their directories (see `groups.py`). Runs of version 0.2 can only be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pydantic
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxtl.errors import UserError
from jaxtl.files import sealed, sync, sync_entry
from jaxtl.models import Variables
from jaxtl.runs.arrays import (
    Damaged,
    alone,
    check_arrays,
    digests,
    explaining_failed_writes,
    on_host,
    read_arrays,
    refusing_damage,
)
from jaxtl.runs.groups import Member
from jaxtl.runs.initial import read_variables, write_variables
from jaxtl.runs.progress import Progress
from jaxtl.runs.records import read_record
from jaxtl.weights import Origin

_log = logging.getLogger("jaxtl")

_HINT = "copy it back from a backup, or name another --workdir to train again"


class Checkpoints:
    """The checkpoints of one run, which may share one with a group of runs.

    Args:
        folder: the run's `checkpoints` folder.
        read_only: whether to leave the folder as it is.

    Raises:
        UserError: the folder is damaged.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        folder = folder.resolve()
        self._initial = folder / "initial"
        self._steps = folder / "steps"
        self._run = folder.parent
        self._member = Member.find(folder)
        self._read_only = read_only or self._member is not None
        self._bests = _KeepNumbers()
        self._newest: Progress | None = None
        self._damaged: set[int] = set()
        self._named_by_step = False  # as in version 0.2
        # Orbax reports every file, and every error that it raises as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(2), self._bests]
            ),
            read_only=self._read_only,
            create=False,  # Orbax does not where it works alone in one of several processes
            cleanup_tmp_directories=not self._read_only,  # of processes that were killed
            lightweight_initialize=True,  # or else one damaged file keeps it from opening the rest
            multiprocessing_options=alone(),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sync),
        )
        handlers = {
            "variables": ocp.StandardCheckpointHandler(multiprocessing_options=alone()),
            "optimizer": ocp.StandardCheckpointHandler(multiprocessing_options=alone()),
            "progress": ocp.JsonCheckpointHandler(multiprocessing_options=alone()),
        }
        with refusing_damage(self._steps):
            if not self._read_only:
                self._steps.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self._steps, options=options, item_handlers=handlers
            )

    def save_initial(
        self, variables: Variables, origin: Origin | None = None, *, full: bool = False
    ) -> None:
        """Writes the variables as the run begins; returns when they are on disk.

        Args:
            variables: all of them.
            origin: where they came from; None for random ones.
            full: store also those that the origin can give again.

        Raises:
            UserError: the disk is full, or the folder cannot be written to.
        """
        # A run that died before its first epoch may have left the same folder.
        write_variables(self._initial, variables, origin, full=full)

    def initial(self, like: Variables) -> Variables:
        """Reads the variables that the run began with.

        Args:
            like: the variables of the same network, or `jax.ShapeDtypeStruct`s.

        Raises:
            UserError: the files are damaged, or belong to another network; or their source is
                needed and cannot be had.
        """
        try:
            if not self._of_version_0_2():
                return read_variables(self._initial, like, repair=not self._read_only)
            return read_arrays(self._initial, like)
        except Damaged as error:
            raise UserError(f"{error}; {_HINT}") from error

    def _of_version_0_2(self) -> bool:
        """Whether its arrays have no digests, as the newest checkpoint that can be read says."""
        for name in self._names():
            with contextlib.suppress(Damaged):
                return _read(self._steps / str(name)).digests is None
        return False

    def save(self, progress: Progress, changed: Variables, optimizer: Any) -> None:
        """Starts to write a checkpoint; training may go on at once.

        Args:
            progress: where the run stands; its `number` names the checkpoint. A whole one of that
                number stays as it is: no more than the learning rate was halved since.
            changed: the variables that the run has changed so far.
            optimizer: the state of the phase's optimizer.

        Raises:
            UserError: this checkpoint or the one before it cannot be written.
        """
        number = progress.number
        if number in self._manager.all_steps() and number not in self._damaged:
            return
        variables, state = on_host(changed), on_host(_leaves(optimizer))
        contents = _Contents(
            progress=progress, variables=digests(variables), optimizer=digests(state)
        )
        self._bests.numbers = progress.kept | (self._newest.kept if self._newest else frozenset())
        items = ocp.args.Composite(
            variables=ocp.args.StandardSave(variables),
            optimizer=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave(sealed(contents.model_dump())),
        )
        with explaining_failed_writes(self._place(number)):
            for damaged in list(self._damaged):  # they would count among the newest
                self._delete(damaged)
            self._manager.save(number, args=items, force=True)
        self._newest = progress

    def newest(self, before_step: int | None = None) -> Progress | None:
        """The progress at the newest checkpoint that is whole; None before the first.

        A newer one that is damaged is named in a warning, and overwritten when the run goes on.

        Args:
            before_step: only those of earlier steps count; None also if all of them are damaged.

        Raises:
            UserError: there are checkpoints, and none is whole; or one cannot be written; or the
                run is of version 0.2 and would be continued.
        """
        if self._member is not None:
            return self._member.progress
        self._wait()
        errors: list[UserError] = []
        for name in self._names():
            if before_step is not None and name // 2 >= before_step:
                continue
            try:
                contents = self._whole(name)
            except UserError as error:
                self._damaged.add(name)
                errors.append(error)
                continue
            for damage in errors:
                _log.warning("%s; the one before it is used", damage)
            self._named_by_step = contents.digests is None
            if self._named_by_step and not self._read_only:
                raise UserError(
                    f"{self._run} is a run of version 0.2, which can be used but not continued; "
                    "name another --workdir, or give --new"
                )
            if before_step is None:
                self._newest = contents.progress
            return contents.progress
        if errors and before_step is None:
            raise UserError(f"{self._run} has no checkpoint that is whole: {errors[0]}; {_HINT}")
        return None

    def variables(self, number: int, like: Variables) -> Variables:
        """All variables at a checkpoint: the initial ones, updated by those that the run changed.

        Args:
            number: the number of the progress at an existing checkpoint; for a run of a group, of
                that of its result.
            like: the variables of the same network, or `jax.ShapeDtypeStruct`s.

        Raises:
            UserError: the files are damaged or missing, or belong to another network; or a
                checkpoint cannot be written.
        """
        if self._member is not None:
            return self._member.variables(self._run, number, like)
        return self.initial(like) | self.changed(number, like)

    def changed(self, number: int, like: Variables) -> Variables:
        """The variables that a run which trains alone had changed up to a checkpoint.

        The arguments and errors are those of `variables`.
        """
        self._wait()
        place = self._place(number)
        try:
            contents = _read(place)
            changing = {path: like[path] for path in contents.variables if path in like}
            return read_arrays(place / "variables", changing, contents.digests)
        except Damaged as error:
            raise UserError(f"{error}; {_HINT}") from error

    def optimizer(self, number: int, like: Any) -> Any:
        """The optimizer's state at a checkpoint.

        Args:
            number: the number of the progress at an existing checkpoint.
            like: a state of the same optimizer.

        Raises:
            UserError: the files are damaged, or belong to another optimizer.
        """
        leaves, place = _leaves(like), self._place(number)
        restored = read_arrays(place / "optimizer", leaves, _read(place).optimizer)
        ordered = [restored[name] for name in leaves]
        return jax.tree.unflatten(jax.tree.structure(like), ordered)

    def forget(self, after: int) -> None:
        """Removes the checkpoints with higher numbers, whose training is undone.

        Raises:
            UserError: a checkpoint cannot be written or removed.
        """
        self._wait()
        for name in self._names():
            if name > after:
                with explaining_failed_writes(self._place(name)):
                    self._delete(name)

    def close(self) -> None:
        """Waits until everything is on disk; nothing stays open, also after an error.

        Raises:
            UserError: the last checkpoint cannot be written.
        """
        errors: list[Exception] = []
        for _ in range(3):  # Orbax stops at each error of its threads, which it tells once
            try:
                self._manager.close()
                break
            except Exception as error:
                errors.append(error)
        with explaining_failed_writes(self._steps):
            if errors:
                raise errors[0]
            if not self._read_only:
                with contextlib.suppress(FileNotFoundError):  # somebody removed it, or moved it
                    sync_entry(self._steps)

    def _wait(self) -> None:
        with explaining_failed_writes(self._steps):
            self._manager.wait_until_finished()

    def _place(self, number: int) -> Path:
        return self._steps / str(number // 2 if self._named_by_step else number)

    def _names(self) -> list[int]:
        """The names of all checkpoints on disk, from the newest on, those that Orbax passes over
        included."""
        folders = self._steps.glob("*")
        return sorted((int(f.name) for f in folders if f.name.isdecimal()), reverse=True)

    def _whole(self, name: int) -> _Contents:
        """Reads all of a checkpoint.

        Raises:
            UserError: it is damaged.
        """
        place = self._steps / str(name)
        contents = _read(place)
        if name not in self._manager.all_steps():
            self._manager.reload()  # another process may have written it meanwhile
        if name not in self._manager.all_steps():
            raise Damaged(f"checkpoint {place} is damaged or incomplete: it has no mark of its end")
        if contents.digests is not None and contents.optimizer is not None:
            check_arrays(place / "variables", contents.digests)
            check_arrays(place / "optimizer", contents.optimizer)
        return contents

    def _delete(self, name: int) -> None:
        if name in self._manager.all_steps():
            self._manager.delete(name)
        shutil.rmtree(self._place(name), ignore_errors=True)
        self._damaged.discard(name)

    def _sync(self) -> None:
        """Waits until what Orbax has written, and the metrics until then, are on disk; it calls
        this before it renames that.

        After it, Orbax still writes the time of the renaming to `_CHECKPOINT_METADATA`, and
        `commit_success.txt`. Nothing here reads them.
        """
        for unfinished in self._steps.glob("*.orbax-checkpoint-tmp*"):
            sync(unfinished)
        with contextlib.suppress(FileNotFoundError):  # no epoch has ended yet
            sync(self._run / "metrics.jsonl")  # nothing measures these again
        sync_entry(self._steps)


class _Contents(pydantic.BaseModel):
    """The JSON of a checkpoint: progress, and a digest of each array, by its path.

    Those of version 0.2 have the paths of the variables alone.
    """

    model_config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    progress: Progress
    variables: dict[str, str] | list[str]
    optimizer: dict[str, str] | None = None

    @property
    def digests(self) -> dict[str, str] | None:
        """Those of the variables; None in version 0.2."""
        return self.variables if isinstance(self.variables, dict) else None


def _read(place: Path) -> _Contents:
    with refusing_damage(place):
        contents = read_record(place / "progress" / "metadata", _Contents)
        progress = contents.progress
        name = progress.step if contents.digests is None else progress.number
        if place.name != str(name):
            raise ValueError(f"it is number {name}")
        return contents


@dataclasses.dataclass
class _KeepNumbers(preservation_policy.PreservationPolicy):
    """Keeps the checkpoints of some numbers."""

    numbers: Collection[int] = ()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [info.step in self.numbers for info in checkpoints]


def _leaves(tree: Any) -> dict[str, jax.Array]:
    """The arrays of a tree by path, so that Orbax need not know the classes of its nodes."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
