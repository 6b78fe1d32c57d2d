"""Why a run of a sweep has no result."""

from __future__ import annotations

import dataclasses
import datetime
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from jaxtl.errors import EXPECTED, one_line
from jaxtl.training.divergence import Diverged
from jaxtl.training.memory import is_out_of_memory


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a run has no result.

    Attributes:
        kind: `diverged`; `out of memory`; `error` for another mistake of the user or fault of the
            machine; `unexpected` for any other exception, whose traceback is in `failed.log`.
        reason: one line.
    """

    kind: Literal["diverged", "out of memory", "error", "unexpected"]
    reason: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure that an exception stands for."""
        reason = one_line(error)
        if isinstance(error, Diverged):
            return cls("diverged", reason.partition(";")[0])
        if is_out_of_memory(error):
            return cls("out of memory", reason)
        return cls("error" if isinstance(error, EXPECTED) else "unexpected", reason)

    @property
    def again(self) -> bool:
        """Whether a sweep that is continued trains the run again.

        A run that diverged would diverge again: the same command trains the same bits. With
        `on_nan="halve_lr"` it might not, and what ends such a run is an `error`.
        """
        return self.kind != "diverged"


def logged(error: Exception, names: Sequence[str], workdir: Path) -> Failure:
    """What an exception means for the runs that it ended.

    One that nobody expected goes to `failed.log` in the workdir, with its traceback.
    """
    failure = Failure.of(error)
    if failure.kind != "unexpected":
        return failure
    path = workdir / "failed.log"
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    with path.open("a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(f"{now} {', '.join(names)}\n")
        log.writelines([*traceback.format_exception(error), "\n"])
    reason = f"{failure.reason} (the traceback is in {path})"
    return dataclasses.replace(failure, reason=reason)


Outcome = Mapping[str, float] | Failure
"""What `run.json` says of a complete run, or why another one has no result."""


def failed(outcome: Outcome) -> bool:
    """Whether a run failed, and trains again with the sweep; one that diverged does not."""
    return isinstance(outcome, Failure) and outcome.again
