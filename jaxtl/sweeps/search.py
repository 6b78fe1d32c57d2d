"""Searches for the best config with Optuna: what the `search()` of a config file suggests.

def search(trial):
    return {"phases.head.lr": trial.suggest_float("phases.head.lr", 1e-4, 1e-1, log=True)}
"""

from __future__ import annotations

import csv
import dataclasses
import io
import pprint
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

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
from jaxtl.console import interval_text
from jaxtl.data.splits import OpenOnce
from jaxtl.errors import EXPECTED, Interrupted, UserError, one_line
from jaxtl.files import write_whole
from jaxtl.metrics import proportion
from jaxtl.runs.directory import RunDirectory
from jaxtl.sweeps.ranking import best_lines
from jaxtl.sweeps.variations import run_name
from jaxtl.training.memory import forget_programs
from jaxtl.training.setup import train

if TYPE_CHECKING:
    import optuna

_HEARTBEAT, _SILENCE = 30, 120  # seconds; a trial that is silent for longer was killed
_RETRIES = 2  # of a trial whose process was killed
_DIGITS = 10_000  # trials that the names of run directories have digits for
_SHOWN = 10  # trials on the terminal
_IMPOSSIBLE = "impossible"  # marks a trial that `search` gave no config

_BEST = '''"""{said}"""

from jaxtl.config import Config


def get_config() -> Config:
    return Config.model_validate(
{tree}
    )
'''


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

    Trials that do worse than most did at the same epoch are ended (`MedianPruner`). A trial whose
    process was killed is begun again with the same values, where its checkpoint is. After each
    trial `best.py`, a config ready to run, `search.csv` and `search-*.svg` are written.

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
    images = images or OpenOnce()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Of epochs that a trial reports once more.
        warnings.filterwarnings("ignore", "The reported value is ignored", UserWarning)
        study = _study(url or f"sqlite:///{workdir.absolute() / 'study.db'}")
        while _count(study) < trials:
            study.optimize(
                lambda trial: _run(trial, what, workdir, out, images), n_trials=1, catch=_Failed
            )
            _write(study, what, workdir)
        lost = {number for trial in study.trials for number in _history(trial)}
    _show(study, workdir, out)
    failed = optuna.trial.TrialState.FAIL
    return all(trial.state != failed or trial.number in lost for trial in _trials(study))


class _Failed(Exception):
    """A trial has no result, and others may have one."""


def _run(trial: optuna.Trial, what: Search, workdir: Path, out: Console, images: OpenOnce) -> float:
    """Trains a trial, or what is left of it; returns its accuracy."""
    import optuna

    try:
        values, varied = what.variation(trial)
    except UserError:
        trial.set_user_attr(_IMPOSSIBLE, True)
        raise
    number = next(iter(_history(trial.study.trials[trial.number])), trial.number)
    run = workdir / run_name(number, _DIGITS, values)
    trial.set_user_attr("run", run.name)
    out.print(f"\ntrial {number}: {run.name}")

    def after_epoch(epochs: int, accuracy: float) -> None:
        trial.report(accuracy, epochs)
        if trial.should_prune():
            out.print(f"trial {number} is ended: others did better after {epochs} epochs")
            raise optuna.TrialPruned

    try:
        data = images(varied.data)
        trial.set_user_attr("images", len(data.val))
        return train(varied, data, run, out, after_epoch=after_epoch)["accuracy"]
    except Interrupted:  # Optuna would not come back to it
        again = optuna.storages.RetryHeartbeatStaleTrialCallback()
        again(trial.study, trial.study.trials[trial.number])
        raise
    except EXPECTED as error:
        out.print(f"trial {number} failed: {one_line(error)}")
        raise _Failed from error
    finally:
        forget_programs()


def _trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """All trials of a study that had a config."""
    return [trial for trial in study.trials if _IMPOSSIBLE not in trial.user_attrs]


def _history(trial: optuna.trial.FrozenTrial) -> list[int]:
    """The numbers of the trials that this one begins again, the first one first."""
    import optuna

    return optuna.storages.RetryHeartbeatStaleTrialCallback.retry_history(trial)


def _study(url: str, attempts: int = 5) -> optuna.Study:
    """Opens the study, or creates it."""
    import optuna
    import sqlalchemy

    try:
        storage = optuna.storages.RDBStorage(
            url,
            heartbeat_interval=_HEARTBEAT,
            grace_period=_SILENCE,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(
                max_retry=_RETRIES
            ),
        )
        return optuna.create_study(
            storage=storage,
            study_name="jaxtl",
            direction="maximize",
            sampler=optuna.samplers.TPESampler(),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            load_if_exists=True,
        )
    except Exception as error:  # of Optuna, SQLAlchemy and the database's driver
        # Another process may create the tables at this moment.
        if attempts > 1 and isinstance(error, sqlalchemy.exc.DBAPIError):
            time.sleep(1)
            return _study(url, attempts - 1)
        raise UserError(f"--storage {_without_password(url, error)}") from error


def _without_password(url: str, error: Exception) -> str:
    """The address of a database and what is wrong with it, whose text may have the password."""
    import sqlalchemy

    try:
        address = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # of a port that is no number
        return "takes the URL of a database, such as postgresql://USER:PASSWORD@HOST/NAME"
    shown = address.render_as_string(hide_password=True)
    reason = " ".join(str(error).split()).replace(url, shown)
    return f"{shown}: {reason.replace(address.password, '***') if address.password else reason}"


def _count(study: optuna.Study) -> int:
    """The trials that are over or run; one that was killed does not count, since it comes again."""
    import optuna

    optuna.storages.fail_stale_trials(study)
    again = {number for trial in study.trials for number in _history(trial)}
    waiting = optuna.trial.TrialState.WAITING
    return sum(t.state != waiting and t.number not in again for t in _trials(study))


def _write(study: optuna.Study, what: Search, workdir: Path) -> None:
    """Writes what the study knows by now, each file whole or not at all."""
    import optuna

    text = io.StringIO()
    keys = sorted({key for trial in study.trials for key in trial.params})
    rows = csv.writer(text)
    rows.writerow(["trial", "state", "val_accuracy", *keys, "run"])
    for trial in _trials(study):
        values = (trial.params.get(key, "") for key in keys)
        run = trial.user_attrs.get("run", "")
        rows.writerow([trial.number, trial.state.name.lower(), trial.value, *values, run])
    write_whole(workdir / "search.csv", text.getvalue().encode())
    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if not done:
        return
    best = study.best_trial
    tree = what.variation(optuna.trial.FixedTrial(best.params))[1].model_dump()
    said = f"The best of {len(done)} trials of {what.path.name}: accuracy {best.value:.4f}."
    write_whole(workdir / "best.py", _BEST.format(said=said, tree=_indented(tree)).encode())
    if len(done) > 1 and keys:
        _plot(study, workdir)


def _indented(tree: dict[str, Any]) -> str:
    text = pprint.pformat(tree, width=90, sort_dicts=False)
    return "\n".join(f"        {line}" for line in text.splitlines())


def _plot(study: optuna.Study, workdir: Path) -> None:
    """Which values did well, and which keys mattered."""
    from matplotlib import pyplot
    from optuna.visualization import matplotlib

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these plots are experimental
        for name, plot in (
            ("values", matplotlib.plot_parallel_coordinate),
            ("importance", matplotlib.plot_param_importances),
        ):
            with pyplot.rc_context():  # Optuna sets a style
                figure: Any = plot(study).figure
                image = io.BytesIO()
                figure.savefig(image, format="svg", bbox_inches="tight")
                pyplot.close(figure)
            write_whole(workdir / f"search-{name}.svg", image.getvalue())


def _interval(trial: optuna.trial.FrozenTrial) -> str:
    """The Wilson interval of its accuracy; empty where an older version trained it."""
    images = trial.user_attrs.get("images")
    if not images or trial.value is None:
        return ""
    return interval_text(*proportion(round(trial.value * images), images)[1:])


def _show(study: optuna.Study, workdir: Path, out: Console) -> None:
    import optuna

    done = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if not done:
        raise UserError(f"no trial of {workdir} has a result; search.csv says what became of them")
    keys = sorted({key for trial in done for key in trial.params})
    table = Table("trial", "val_accuracy", "95 % interval", *keys)
    for trial in sorted(done, key=lambda trial: -(trial.value or 0))[:_SHOWN]:
        values = (
            f"{v:.4g}" if isinstance(v, float) else str(v) for v in map(trial.params.get, keys)
        )
        table.add_row(str(trial.number), f"{trial.value:.4f}", _interval(trial), *values)
    out.print(table)
    best = RunDirectory(workdir / study.best_trial.user_attrs["run"])
    if best.exists():
        for line in best_lines(best):
            out.print(line)
    states = [trial.state.name.lower() for trial in _trials(study)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    out.print(f"{counts}; the best config: python -m jaxtl.train --cfg {workdir / 'best.py'}")
