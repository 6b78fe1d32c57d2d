"""How runs that train together lie on two axes of one program."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True)
class Lanes:
    """How runs lie on two axes: those of a row see the same batches and the same dropout.

    Attributes:
        runs: the number of the run in each place; some may be there twice, so that all rows are
            equally long.
        places: the place of each run in the flattened `runs`; 0 for one that is not there.
    """

    runs: Int[np.ndarray, "rows columns"]
    places: Int[np.ndarray, " runs"]

    @classmethod
    def of(cls, keys: Sequence[Hashable | None]) -> Lanes:
        """Puts runs with the same key into a row, unless more than half would be there twice.

        Args:
            keys: of the runs; None for a run that is left out. At least one is not.
        """
        rows: dict[Hashable, list[int]] = {}
        for run, key in enumerate(keys):
            if key is not None:
                rows.setdefault(key, []).append(run)
        alive = list(itertools.chain.from_iterable(rows.values()))
        longest = max(map(len, rows.values()))
        if len(rows) * longest > 2 * len(alive):
            runs = np.array(alive)[:, None]
        else:
            runs = np.array([row + row[:1] * (longest - len(row)) for row in rows.values()])
        places = np.zeros(len(keys), np.int64)
        present, first = np.unique(runs, return_index=True)
        places[present] = first
        return cls(runs, places)

    def spread(self, values: Any) -> Any:
        """Arrays (N, ...) by run become arrays (K, M, ...)."""
        return jax.tree.map(lambda array: array[self.runs], values)

    def gather(self, values: Any, axis: int = 0) -> Any:
        """Arrays (K, M, ...) become arrays (N, ...) by run, or (S, K, M) with `axis` 1 (S, N)."""

        def by_run(array: Any) -> Any:
            flat = array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
            return flat[(slice(None),) * axis + (self.places,)]

        return jax.tree.map(by_run, values)
