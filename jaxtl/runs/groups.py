"""The checkpoint that runs of a sweep share which trained together.

It lies outside their directories
(docs/decisions/0023-one-checkpoint-for-runs-that-train-together.md):

    shared/, shared.json      the variables that are the same in all runs
    stacked/, stacked.json    the other variables of each run's result, with a leading axis of runs

Each of these runs then has only

    checkpoints/group.json    the place of that checkpoint, the index of the run, and its progress
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from jaxtl.errors import UserError
from jaxtl.files import replacing, sealed, write_json
from jaxtl.models import Variables
from jaxtl.runs.arrays import refusing_damage
from jaxtl.runs.initial import read_variables, write_variables
from jaxtl.runs.progress import Count, Progress
from jaxtl.runs.records import read_record
from jaxtl.weights import Origin

_GROUP = "group.json"


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
    def write(
        cls,
        folder: Path,
        shared: Variables,
        stacked: Variables,
        origin: Origin | None = None,
        *,
        full: bool = True,
    ) -> Group:
        """Writes the variables of all runs; returns when they are on disk.

        Args:
            folder: a new folder; after an error it does not exist.
            shared: the variables that are the same in all runs.
            stacked: the other variables of each run's result, (N, ...).
            origin, full: of the shared ones, as in `write_variables`.

        Raises:
            UserError: the disk is full, or the folder cannot be written to.
        """
        chex.assert_equal_shape_prefix(list(stacked.values()), 1)
        with replacing(folder) as part:
            part.mkdir()
            write_variables(part.resolve() / "shared", shared, origin, full=full)
            write_variables(part.resolve() / "stacked", stacked)
        return cls(folder, len(next(iter(stacked.values()))), sorted(stacked))

    def add(self, checkpoints: Path, index: int, number: int, progress: Progress) -> None:
        """Lets a run directory point to its variables.

        Args:
            checkpoints: the run's `checkpoints` folder, which is made.
            index: the index of the run along the leading axis.
            number: that of the checkpoint with these variables, had the run trained alone.
            progress: the progress at the end of the run.
        """
        checkpoints.mkdir()
        member = Member(
            folder=os.path.relpath(self.folder, checkpoints.parent),
            runs=self.runs,
            stacked=list(self.stacked),
            index=index,
            step=number // 2,
            progress=progress,
        )
        write_json(checkpoints / _GROUP, sealed(member.model_dump()))


class Member(pydantic.BaseModel):
    """What `group.json` says: the group of a run, and its place there, as for `Group.add`.

    The folder is relative to the run directory and lies in the folder that this lies in: `../...`.
    """

    model_config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    folder: str
    runs: Count
    stacked: list[str]
    index: Count
    step: Count
    progress: Progress

    @classmethod
    def find(cls, checkpoints: Path) -> Member | None:
        """Reads what `Group.add` wrote; None for a run that trained alone."""
        file = checkpoints / _GROUP
        if not file.exists():
            return None
        with refusing_damage(file):
            member = read_record(file, cls)
            if member.index >= member.runs:
                raise ValueError(f"there is no run {member.index} among {member.runs}")
            up, *down = Path(member.folder).parts or ("",)
            if up != ".." or not down or ".." in down:
                raise ValueError(f"its folder, {member.folder}, is not in that of the sweep")
            return member

    def variables(self, run: Path, number: int, like: Mapping[str, Any]) -> Variables:
        """As `Checkpoints.variables`, for the run directory `run`."""
        folder = Path(os.path.normpath(run / self.folder))
        if number // 2 != self.step:
            raise UserError(
                f"{run} keeps the variables of step {self.step} alone, not {number // 2}"
            )
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
        of_all = read_variables(folder / "stacked", stacked)
        own = {path: jnp.asarray(np.asarray(value)[self.index]) for path, value in of_all.items()}
        return read_variables(folder / "shared", shared) | own
