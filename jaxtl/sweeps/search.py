"""Searches for the best config with Optuna: what the `search()` of a config file suggests.

def search(trial):
    return {"phases.head.lr": trial.suggest_float("phases.head.lr", 1e-4, 1e-1, log=True)}
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from jaxtl.errors import Interrupted, UserError
from jaxtl.sweeps.failure import Failure, logged
from jaxtl.sweeps.heads import HeadRun
from jaxtl.sweeps.search_results import show_results, write_results
from jaxtl.sweeps.study import (
    CONFIG,
    IMAGES,
    METRIC,
    RUN,
    Study,
    database_errors,
    study_name,
)
from jaxtl.sweeps.together import (
    Family,
    can_train_together,
    common,
    groups,
    heads_may_differ_in,
    train_together,
)
from jaxtl.sweeps.variations import Variation, refuse_flags, run_name
from jaxtl.tasks import ranked_by, task_of
from jaxtl.training.checks import check_plan
from jaxtl.training.memory import forget_programs
from jaxtl.training.setup import plan_run, train

if TYPE_CHECKING:
    import optuna

_DIGITS = 10_000  # trials that the names of run directories have digits for
# Heads; Optuna learns between them (docs/decisions/0069-trials-in-batches-of-eight.md).
_TOGETHER = 8


@dataclasses.dataclass(frozen=True)
class Search:
    """A config and what is searched for in it.

    Attributes:
        path: the config file.
        names: what it defines; `search(trial)` among it.
        flags: dotted keys with values as typed.
        config: its config, with flags.
    """

    path: Path
    names: Mapping[str, Any]
    flags: Mapping[str, str]
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
            refuse_flags(self.flags, suggested, "search()")
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
    return Search(find(name), names, overrides, config) if callable(names.get("search")) else None


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
    killed is begun again with the same values, where its checkpoint is; a process that finds
    nothing else to do waits for it. A trial that fails does not end the others. After each batch
    `best.py`, a config ready to run, `search.csv` and `search-*.svg` are written.

    Args:
        what: the search, from `load_search`.
        workdir: the folder of the run directories.
        trials: the number of trials of the study, of all processes together.
        url: the database that holds the study, such as `postgresql+psycopg://...`; None for a file
            in `workdir`.
        out: the terminal.
        images: opens their images; None where none of them is open yet.

    Returns:
        Whether every trial has a result or was ended early.

    Raises:
        UserError: Optuna is not installed, the database fails, the workdir belongs to something
            else, `search` suggests what is not possible, or no trial has a result.
        Interrupted: a signal asked to stop.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'jaxtl[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Of epochs that a trial reports once more.
        warnings.filterwarnings("ignore", "The reported value is ignored", UserWarning)
        name = study_name(workdir, what.config, url)
        study = Study(url or f"sqlite:///{workdir.absolute() / 'study.db'}", name)
        searching = _Searching(study, what, workdir, out, images or OpenOnce())
        with study.reachable():
            with study.alive():
                while batch := searching.ask(trials):
                    searching.train(batch)
                    write_results(study, workdir, what.path.name)
            write_results(study, workdir, what.path.name)  # also of other processes
            show_results(study, workdir, out)
            return not study.in_state("FAIL")


@dataclasses.dataclass(frozen=True)
class _Trial:
    """A trial: its number when it began first, and the run that it stands for."""

    optuna: optuna.Trial
    number: int
    variation: Variation


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Trials to train next; a family of the first one where it can train with others."""

    trials: Sequence[_Trial]
    family: Family | None


@dataclasses.dataclass
class _Searching:
    """This process at work on a study."""

    study: Study
    what: Search
    workdir: Path
    out: Console
    images: OpenOnce

    def ask(self, most: int) -> _Batch | None:
        """The trials to train next, several where they are heads that can train together.

        Waits while as many as wanted have begun, but other processes have some of them: a trial
        that was killed comes back once it was silent for long enough.

        Args:
            most: the number of trials of the whole study.

        Returns:
            The trials; None once as many as wanted are over.

        Raises:
            UserError: `search` suggests what is not possible; the study does not count that trial.
        """
        said = False
        while not (batch := self._begin(most)) and (others := self.study.in_state("RUNNING")):
            if not said:
                numbers = ", ".join(str(self.study.first_number(trial)) for trial in others)
                self.out.print(f"waiting for what other processes began: trials {numbers}")
                said = True
            self.study.wait()
        return batch

    def _begin(self, most: int) -> _Batch | None:
        """Begins as many trials as can train next; None if the study has `most`."""
        trials: list[_Trial] = []
        family = None
        try:
            while len(trials) < (_TOGETHER if family else 1) and (trial := self._next(most)):
                trials.append(trial)
                family = family or self._family(trial.variation)
        except BaseException:
            self._give_back(trials)
            raise
        return _Batch(trials, family) if trials else None

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

    def _family(self, first: Variation) -> Family | None:
        """A run as a head that others can train with; None where it has to train alone."""
        if not all(heads_may_differ_in(key, first.config) for key in first.values):
            return None
        try:
            data = self.images(first.config.data)
            check_plan(first.config, data.train, jax.local_devices())
            planned = plan_run(first.config, len(data.train.classes))
            family = Family([_as_head(first, data)], data, *planned)
            return family if can_train_together(family, _TOGETHER) else None
        except Exception as error:  # the trial alone will say so
            logged(error, [first.name], self.workdir)
            return None

    def train(self, batch: _Batch) -> None:
        """Trains trials, together if there are several, and tells the study what became of them.

        Raises:
            Interrupted: a signal asked to stop; what is not over will begin again.
        """
        left = {trial.variation.name: trial for trial in batch.trials}
        try:
            if batch.family is not None:
                self._train_together(left, batch.family)
            for name in list(left):
                with self._unless_taken(left[name]):
                    self._train_alone(left[name])
                del left[name]
        except Interrupted:
            self._give_back(left.values())
            raise
        except database_errors():
            with contextlib.suppress(*database_errors()):  # what is not given back falls silent
                self._give_back(left.values())
            raise
        except BaseException:
            for trial in left.values():
                self.study.fail(trial.optuna)
            raise
        finally:
            forget_programs()

    def _give_back(self, trials: Iterable[_Trial]) -> None:
        """Lets trials begin again."""
        for trial in trials:
            self.study.give_back(trial.optuna)

    def _train_together(self, left: dict[str, _Trial], family: Family) -> None:
        """Trains those of some trials that have not begun in one program; they leave `left`."""
        heads = [_as_head(trial.variation, family.data) for trial in left.values()]
        shared = common(family.variations[0].config)
        new = [
            head
            for head in heads
            if common(head.config) == shared and not (self.workdir / head.name).exists()
        ]
        if len(new) < 2:
            return

        def after_epoch(name: str, epochs: int, accuracy: float) -> bool:
            return not self._is_over(left[name], epochs, accuracy)

        def done(runs: Sequence[HeadRun]) -> None:
            for run in runs:
                trial = left.pop(run.variation.name)
                if run.result is not None:
                    self._complete(trial, run.result, family.data)
                elif run.diverged is not None:
                    self._fail(trial, Failure.of(run.diverged))
                else:
                    self.study.prune(trial.optuna)

        self.out.print(f"\ntrials {', '.join(str(left[head.name].number) for head in new)}")
        (group,) = groups(family._replace(variations=new))  # memory holds eight: `_family`
        try:
            train_together(group, self.workdir, self.out, done, after_epoch)
        except database_errors():
            raise
        except Exception as error:  # most of them may train one by one
            names = [head.name for head in new if head.name in left]
            reason = logged(error, names, self.workdir).reason
            self.out.print(f"{len(names)} trials together failed: {reason}")

    def _train_alone(self, trial: _Trial) -> None:
        """Trains a trial, or what is left of it."""
        import optuna

        config, run = trial.variation.config, self.workdir / trial.variation.name
        trial.optuna.set_user_attr(RUN, run.name)
        self.out.print(f"\ntrial {trial.number}: {run.name}")

        def after_epoch(epochs: int, score: float) -> None:
            if self._is_over(trial, epochs, score):
                raise optuna.TrialPruned

        try:
            data = self.images(config.data)
            result = train(config, data, run, self.out, after_epoch=after_epoch)
            self._complete(trial, result, data)
        except optuna.TrialPruned:
            self.study.prune(trial.optuna)
        except database_errors():
            raise
        except Exception as error:  # the other trials have to train
            self._fail(trial, logged(error, [run.name], self.workdir))
        finally:
            forget_programs()

    def _is_over(self, trial: _Trial, epochs: int, score: float) -> bool:
        """Reports an epoch; whether others did better than that, or another process has it."""
        with self._unless_taken(trial):
            trial.optuna.report(score, epochs)
            if not trial.optuna.should_prune():
                return False
            self.out.print(f"trial {trial.number} ends: others did better after {_epochs(epochs)}")
        return True

    @contextlib.contextmanager
    def _unless_taken(self, trial: _Trial) -> Iterator[None]:
        """Drops a trial that is over for the study: this process was silent for too long."""
        import optuna

        try:
            yield
        except optuna.exceptions.UpdateFinishedTrialError:
            self.study.fail(trial.optuna)
            self.out.print(f"trial {trial.number} is dropped: another process took it over")

    def _complete(self, trial: _Trial, result: Mapping[str, float], data: Splits) -> None:
        with self._unless_taken(trial):
            trial.optuna.set_user_attr(RUN, trial.variation.name)
            trial.optuna.set_user_attr(CONFIG, trial.variation.config.model_dump())
            trial.optuna.set_user_attr(IMAGES, len(data.val))
            trial.optuna.set_user_attr(METRIC, ranked_by(result))
            self.study.complete(trial.optuna, result[ranked_by(result)])

    def _fail(self, trial: _Trial, failure: Failure) -> None:
        self.out.print(f"trial {trial.number} failed: {failure.reason}")
        self.study.fail(trial.optuna)


def _epochs(count: int) -> str:
    return "an epoch" if count == 1 else f"{count} epochs"


def _as_head(variation: Variation, data: Splits) -> Variation:
    """A variation whose phases monitor what is usual for the labels, if they name nothing else."""
    monitor = task_of(data.train.labels).monitors[0]
    return dataclasses.replace(variation, config=variation.config.with_monitor(monitor))
