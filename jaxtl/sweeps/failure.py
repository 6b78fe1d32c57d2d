"""Why a run of a sweep has no result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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


Outcome = Mapping[str, float] | Failure
"""What `run.json` says of a complete run, or why another one has no result."""


def failed(outcome: Outcome) -> bool:
    """Whether a run failed, and trains again with the sweep; one that diverged does not."""
    return isinstance(outcome, Failure) and outcome.again
