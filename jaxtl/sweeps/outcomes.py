"""The outcomes of the runs of a sweep, and the files that keep them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from jaxtl.errors import UserError
from jaxtl.files import write_json
from jaxtl.runs.directory import RunDirectory
from jaxtl.sweeps.failure import Failure, Outcome, failed
from jaxtl.sweeps.ranking import ranked, ranking_rows, write_ranking
from jaxtl.sweeps.variations import Variation

_FAILURES = pydantic.TypeAdapter(dict[str, Failure])


class Outcomes:
    """The outcomes of a sweep so far, in files beside the run directories.

    `failed.json` says of each run without a result why; `failed.log` has the traceback of what
    nobody expected; `sweep.csv` has a row for each run that is over. They are written after each
    run, whole or not at all.

    Args:
        workdir: the folder of the sweep.
        variations: all its runs.

    Attributes:
        workdir: the same.
        table: the path of `sweep.csv`.
        to_retry: the names of the runs that failed when the sweep last trained them.

    Raises:
        UserError: `failed.json` is damaged.
    """

    def __init__(self, workdir: Path, variations: Sequence[Variation]):
        self.workdir, self.table = workdir, workdir / "sweep.csv"
        self._variations = variations
        self._file = workdir / "failed.json"
        self._outcomes: dict[str, Outcome] = dict(self._read())
        self._images: dict[str, int] = {}
        self.to_retry = {name for name, outcome in self._outcomes.items() if failed(outcome)}

    def __contains__(self, name: str) -> bool:
        """Whether a run is over: it is not to be trained any more."""
        return name in self._outcomes.keys() - self.to_retry

    def __len__(self) -> int:
        """The number of runs that are over."""
        return len(self._outcomes.keys() - self.to_retry)

    @property
    def ranked(self) -> dict[str, Outcome]:
        """The outcomes by name, best first; runs without a result are last."""
        order = [run.name for run in self._variations if run.name in self._outcomes]
        return ranked({name: self._outcomes[name] for name in order})

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What `ranking_rows` makes of the outcomes."""
        return ranking_rows(self.ranked, self._variations, self._images)

    def add(self, outcomes: Mapping[str, Outcome]) -> None:
        """Adds the outcomes of runs that are over, and writes the files.

        Raises:
            OSError: a file cannot be written.
        """
        self._outcomes |= outcomes
        self.to_retry -= outcomes.keys()
        for name, outcome in outcomes.items():
            if not isinstance(outcome, Failure):
                data = RunDirectory(self.workdir / name).metadata().data
                self._images[name] = data.val.images
        failures = {n: o for n, o in self._outcomes.items() if isinstance(o, Failure)}
        if failures != self._read():
            write_json(self._file, {n: dataclasses.asdict(f) for n, f in failures.items()})
        if self._outcomes:
            write_ranking(self.table, self.rows)

    def _read(self) -> dict[str, Failure]:
        if not self._file.exists():
            return {}
        try:
            return _FAILURES.validate_python(json.loads(self._file.read_bytes()))
        except ValueError as error:
            raise UserError(
                f"{self._file} is damaged; remove it, and runs that diverged train again as well"
            ) from error
