"""Searches for the best config with Optuna: what the `search()` of a config file suggests.

def search(trial):
    return {"phases.head.lr": trial.suggest_float("phases.head.lr", 1e-4, 1e-1, log=True)}
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console

from jaxtl.config.config_file import (
    Config,
    Count,
    check_counted,
    complete,
    find,
    plain,
    read,
    readable,
    vary,
)
from jaxtl.data.splits import OpenOnce, Splits
from jaxtl.errors import EXPECTED, Interrupted, UserError, one_line
from jaxtl.sweeps.failure import Failure
from jaxtl.sweeps.heads import HeadRun
from jaxtl.sweeps.search_results import show_results, write_results
from jaxtl.sweeps.study import IMAGES, METRIC, RUN, Study
from jaxtl.sweeps.together import (
    Family,
    can_train_together,
    common,
    groups,
    heads_may_differ_in,
    train_together,
)
from jaxtl.sweeps.variations import Variation, run_name
from jaxtl.tasks import ranked_by, task_of
from jaxtl.training.checks import check_plan
from jaxtl.training.memory import forget_programs
from jaxtl.training.setup import plan_run, train

if TYPE_CHECKING:
    import optuna

_DIGITS = 10_000  # trials that the names of run directories have digits for
# Heads; Optuna learns between them (docs/decisions/0070-trials-in-batches-of-eight.md).
_TOGETHER = 8


@dataclasses.dataclass(frozen=True)
class Search:
    """A config and what is searched for in it.

    Attributes:
        path: the config file.
        names: what it defines; `search(trial)` among it.
        config: its config, with flags.
    """

    path: Path
    names: Mapping[str, Any]
    config: Config

    def variation(self, trial: Any) -> tuple[dict[str, Any], Config]:
        """The values of a trial, by dotted key, and the config with them.

        Raises:
            UserError: `search` fails, or suggests what is not possible.
        """
        with readable(self.path):
            suggested = self.names["search"](trial)
            if not isinstance(suggested, Mapping):
                raise UserError(f"search() returns {suggested!r}, and not a dict of dotted keys")
            values = {key: plain(value) for key, value in suggested.items()}
            varied = complete(vary(self.config, values))
            check_counted(self.names, self.config.data, varied.data)
            return values, varied


def load_search(
    name: str, overrides: Mapping[str, str], count: Count | None = None
) -> Search | None:
    """Reads a config file with a `search(trial)`; None if it has none.

    Args:
        name: a config file, as for `config_file.load`.
        overrides: flags, dotted keys with values as typed; they apply before the suggestions.
        count: counts images, as for `config_file.load`.

    Raises:
        UserError: the file or a flag is not possible.
    """
    names, config = read(name, overrides, count)
    return Search(find(name), names, config) if callable(names.get("search")) else None


def search(
    what: Search,
    workdir: Path,
    trials: int,
    url: str | None,
    out: Console,
    images: OpenOnce | None = None,
) -> bool:
    """Runs trials until a study has so many; other processes may work on the same one.

    Heads that can train together do so, eight at a time; other trials run one by one. Trials that
    do worse than most did at the same epoch are ended (`MedianPruner`). A trial whose process was
    killed is begun again with the same values, where its checkpoint is. After each batch `best.py`,
    a config ready to run, `search.csv` and `search-*.svg` are written.

    Args:
        what: the search, from `load_search`.
        workdir: the folder of the run directories.
        trials: the number of trials of the study, of all processes together.
        url: the database that holds the study, such as `postgresql://...`; None for a file in
            `workdir`.
        out: the terminal.
        images: opens their images; None where none of them is open yet.

    Returns:
        Whether every trial has a result or was ended early.

    Raises:
        UserError: Optuna is not installed, the database cannot be opened, `search` suggests what is
            not possible, or no trial has a result.
        Interrupted: a signal asked to stop.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'jaxtl[search]'") from error
    workdir.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def config_of(values: Mapping[str, Any]) -> Config:
        return what.variation(optuna.trial.FixedTrial(dict(values)))[1]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Of epochs that a trial reports once more.
        warnings.filterwarnings("ignore", "The reported value is ignored", UserWarning)
        study = Study(url or f"sqlite:///{workdir.absolute() / 'study.db'}")
        searching = _Searching(study, what, workdir, out, images or OpenOnce())
        while batch := searching.ask(trials):
            searching.train(batch)
            write_results(study, workdir, what.path.name, config_of)
        show_results(study, workdir, out)
        return not study.in_state("FAIL")


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A trial: its number when it began first, and the run that it stands for."""

    optuna: optuna.Trial
    number: int
    variation: Variation


@dataclasses.dataclass
class _Searching:
    """This process at work on a study."""

    study: Study
    what: Search
    workdir: Path
    out: Console
    images: OpenOnce

    def ask(self, most: int) -> list[_Trial]:
        """The trials to train next, several where they are heads that can train together.

        Args:
            most: the number of trials of the whole study.

        Raises:
            UserError: `search` suggests what is not possible; the trial is none then.
        """
        batch: list[_Trial] = []
        size = 1
        try:
            while len(batch) < size and (trial := self._next(most)) is not None:
                batch.append(trial)
                if len(batch) == 1 and self._family(batch) is not None:
                    size = _TOGETHER
        except BaseException:
            for trial in batch:
                self.study.give_back(trial.optuna)
            raise
        return batch

    def _next(self, most: int) -> _Trial | None:
        trial = self.study.ask(most)
        if trial is None:
            return None
        try:
            values, varied = self.what.variation(trial)
        except UserError:
            self.study.withdraw(trial)
            raise
        number = self.study.first_number(trial)
        return _Trial(trial, number, Variation(run_name(number, _DIGITS, values), values, varied))

    def _family(self, trials: Sequence[_Trial]) -> Family | None:
        """Trials as heads that can train together; None where the first one cannot with others."""
        first = trials[0].variation
        if not all(heads_may_differ_in(key, first.config) for key in first.values):
            return None
        try:
            data = self.images(first.config.data)
            check_plan(first.config, data.train, jax.local_devices())
            network, trainables = plan_run(first.config, len(data.train.classes))
            monitor = task_of(data.train.labels).monitors[0]
            alike = [
                dataclasses.replace(
                    trial.variation, config=trial.variation.config.with_monitor(monitor)
                )
                for trial in trials
                if common(trial.variation.config) == common(first.config)
            ]
            family = Family(alike, data, network, trainables)
            return family if can_train_together(family, _TOGETHER) else None
        except EXPECTED:  # the trial alone will say so
            return None

    def train(self, batch: Sequence[_Trial]) -> None:
        """Trains trials, together if there are several, and tells the study what became of them.

        Raises:
            Interrupted: a signal asked to stop; what is not over will begin again.
        """
        left = {trial.variation.name: trial for trial in batch}
        try:
            with self.study.alive([trial.optuna for trial in batch]):
                if len(batch) > 1:
                    self._train_together(left)
                for name in list(left):
                    self._train_alone(left[name])
                    del left[name]
        except Interrupted:
            for trial in left.values():
                self.study.give_back(trial.optuna)
            raise
        except BaseException:
            for trial in left.values():
                self.study.fail(trial.optuna)
            raise
        finally:
            forget_programs()

    def _train_together(self, left: dict[str, _Trial]) -> None:
        """Trains those of some trials that have not begun in one program; they leave `left`."""
        new = [left[name] for name in left if not (self.workdir / name).exists()]
        family = self._family(new) if len(new) > 1 else None
        if family is None:
            return

        def after_epoch(name: str, epochs: int, accuracy: float) -> bool:
            return not self._is_pruned(left[name], epochs, accuracy)

        def done(runs: Sequence[HeadRun]) -> None:
            for run in runs:
                trial = left.pop(run.variation.name)
                if run.result is not None:
                    self._complete(trial, run.result, family.data)
                elif run.diverged is not None:
                    self._fail(trial, run.diverged)
                else:
                    self.study.prune(trial.optuna)

        numbers = ", ".join(str(left[variation.name].number) for variation in family.variations)
        self.out.print(f"\ntrials {numbers}")
        try:
            for group in groups(family):
                train_together(group, self.workdir, self.out, done, after_epoch)
        except Exception as error:  # most of them may train one by one
            failure = Failure.of(error)
            if failure.kind == "unexpected":
                raise
            self.out.print(f"{len(left)} trials together failed: {failure.reason}")

    def _train_alone(self, trial: _Trial) -> None:
        """Trains a trial, or what is left of it."""
        import optuna

        config, run = trial.variation.config, self.workdir / trial.variation.name
        trial.optuna.set_user_attr(RUN, run.name)
        self.out.print(f"\ntrial {trial.number}: {run.name}")

        def after_epoch(epochs: int, score: float) -> None:
            if self._is_pruned(trial, epochs, score):
                raise optuna.TrialPruned

        try:
            data = self.images(config.data)
            result = train(config, data, run, self.out, after_epoch=after_epoch)
            self._complete(trial, result, data)
        except optuna.TrialPruned:
            self.study.prune(trial.optuna)
        except EXPECTED as error:
            self._fail(trial, error)
        finally:
            forget_programs()

    def _is_pruned(self, trial: _Trial, epochs: int, score: float) -> bool:
        trial.optuna.report(score, epochs)
        if not trial.optuna.should_prune():
            return False
        self.out.print(f"trial {trial.number} is ended: others did better after {epochs} epochs")
        return True

    def _complete(self, trial: _Trial, result: Mapping[str, float], data: Splits) -> None:
        trial.optuna.set_user_attr(RUN, trial.variation.name)
        trial.optuna.set_user_attr(IMAGES, len(data.val))
        trial.optuna.set_user_attr(METRIC, ranked_by(result))
        self.study.complete(trial.optuna, result[ranked_by(result)])

    def _fail(self, trial: _Trial, error: Exception) -> None:
        self.out.print(f"trial {trial.number} failed: {one_line(error)}")
        self.study.fail(trial.optuna)
