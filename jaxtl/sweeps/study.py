"""The study of a search: an Optuna study that several processes may work on."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtl.config.config_file import Config, differences
from jaxtl.errors import UserError
from jaxtl.files import is_unfinished, read_json, write_json

if TYPE_CHECKING:
    import optuna
    import sqlalchemy

RUN, CONFIG, IMAGES, METRIC = "run", "config", "images", "metric"
"""What is known of a trial: the name of its run directory, and once it is complete its config, the
number of validation images, and what it is ranked by.
"""

_LISTED = 3  # changes in a message
_MYSQL = "pip install PyMySQL, and give mysql+pymysql://..."
_DRIVERS = {
    "postgresql": "pip install 'psycopg[binary]', and give postgresql+psycopg://...",
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}
_HEARTBEAT, _SILENCE = 30, 120  # seconds; a trial that is silent for longer was killed
_RETRIES = 2  # of a trial whose process was killed; one that is given back has no limit
_KILLED = "killed"  # how many times that happened to a trial
_BEATS = "beats"  # a trial's own number once it has a heartbeat; its retry inherits this one
_IMPOSSIBLE = "impossible"  # marks a trial that got no config, or is one too many


class Study:
    """Hands out trials until there are so many, of all processes together.

    Args:
        url: the database that holds the study, perhaps among others.
        name: the name of the study there, see `study_name`.

    Attributes:
        optuna: the study itself.

    Raises:
        UserError: the database cannot be opened.
    """

    def __init__(self, url: str, name: str):
        self.optuna, self._storage, self._id = _open(url, name)
        self._url = url
        self._held: dict[int, int] = {}  # the ids of the trials of this process, by number

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All trials that had a config, in the order of their numbers."""
        return [trial for trial in self.optuna.trials if _IMPOSSIBLE not in trial.user_attrs]

    def in_state(self, *names: str) -> list[optuna.trial.FrozenTrial]:
        """The trials in one of these states of Optuna that do not begin again as another one."""
        everything = self.optuna.trials
        again = {number for trial in everything for number in history(trial)}
        return [t for t in self.trials if t.state.name in names and t.number not in again]

    def begun(self) -> list[int]:
        """The numbers of the trials that are over or run, without those that come again.

        Trials whose processes were killed are given up first.
        """
        import optuna

        self._adopt()
        optuna.storages.fail_stale_trials(self.optuna)
        return [t.number for t in self.in_state("RUNNING", "COMPLETE", "PRUNED", "FAIL")]

    def ask(self, most: int) -> optuna.Trial | None:
        """The next trial, one that has to begin again first; None if the study has `most`."""
        import optuna

        if len(self.begun()) >= most:
            return None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)  # see `alive`
            trial = self.optuna.ask()
        try:
            self._held[trial.number] = self._first_beat(trial.number)
        except optuna.exceptions.UpdateFinishedTrialError:  # this process slept; it was given up
            return self.ask(most)
        if trial.number not in self.begun()[:most]:  # another process asked at this moment
            self.withdraw(trial)
            return None
        return trial

    def _first_beat(self, number: int) -> int:
        """Records the first heartbeat of a trial, and returns its id."""
        held = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        self._storage.record_heartbeat(held)
        self._storage.set_trial_user_attr(held, _BEATS, number)
        return held

    def _adopt(self) -> None:
        """Gives trials without a heartbeat their first one.

        Optuna never gives up a trial without a heartbeat, but its process may have been killed
        right after it asked for it. If the process lives, it continues the heartbeats.
        """
        import optuna

        running = (optuna.trial.TrialState.RUNNING,)
        for trial in self.optuna.get_trials(deepcopy=False, states=running):
            if trial.user_attrs.get(_BEATS) != trial.number:
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # just now
                    self._first_beat(trial.number)

    def withdraw(self, trial: optuna.Trial) -> None:
        """Ends a trial that shall not count, nor come again, unless it is over."""
        import optuna

        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # given up just now
            trial.set_user_attr(_IMPOSSIBLE, True)
        self.fail(trial)

    def complete(self, trial: optuna.Trial, score: float) -> None:
        """Ends a trial with its result, unless it is over."""
        self._tell(trial, "COMPLETE", score)

    def prune(self, trial: optuna.Trial) -> None:
        """Ends a trial that others did better than, unless it is over."""
        self._tell(trial, "PRUNED")

    def fail(self, trial: optuna.Trial) -> None:
        """Ends a trial without a result, unless it is over."""
        self._tell(trial, "FAIL")

    def _tell(self, trial: optuna.Trial, state: str, score: float | None = None) -> None:
        import optuna

        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # just now
            ended = optuna.trial.TrialState[state]
            self.optuna.tell(trial, score, ended, skip_if_finished=True)
        self._held.pop(trial.number, None)

    def give_back(self, trial: optuna.Trial) -> None:
        """Ends a trial that was stopped, unless it is over; another one begins again with its
        values.
        """
        import optuna

        stopped = self.optuna.trials[trial.number]
        if stopped.state == optuna.trial.TrialState.RUNNING:
            optuna.storages.RetryHeartbeatStaleTrialCallback()(self.optuna, stopped)
        self.fail(trial)

    def first_number(self, trial: optuna.trial.BaseTrial) -> int:
        """The number that a trial had when it began first."""
        return next(iter(history(self.optuna.trials[trial.number])), trial.number)

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Shows other processes, from a thread, that this one works on the trials it asked for."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(_HEARTBEAT):
                try:
                    for held in list(self._held.values()):
                        self._storage.record_heartbeat(held)
                except Exception as error:  # of Optuna, SQLAlchemy and the database's driver
                    reason = _without_password(self._url, error)
                    logging.getLogger("jaxtl").warning("heartbeat of the trials: %s", reason)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @contextlib.contextmanager
    def reachable(self) -> Iterator[None]:
        """Says in one line what is wrong with the database, if it fails in the block.

        Raises:
            UserError: it failed.
        """
        try:
            yield
        except database_errors() as error:
            raise UserError(
                f"--storage {_without_password(self._url, error)}; what the trials wrote is kept: "
                "once the database answers, the same command goes on"
            ) from error

    def wait(self) -> None:
        """Waits for the time between two heartbeats."""
        time.sleep(_HEARTBEAT)


def history(trial: optuna.trial.FrozenTrial) -> list[int]:
    """The numbers of the trials that this one begins again, the first one first."""
    import optuna

    return optuna.storages.RetryHeartbeatStaleTrialCallback.retry_history(trial)


def _begin_again(study: optuna.Study, killed: optuna.trial.FrozenTrial) -> None:
    """Queues a trial with the values of one whose process was killed, unless it was too often."""
    import optuna

    before = killed.user_attrs.get(_KILLED, 0)
    if before < _RETRIES:
        killed.set_user_attr(_KILLED, before + 1)  # which the other trial takes over
        optuna.storages.RetryHeartbeatStaleTrialCallback()(study, killed)


def study_name(workdir: Path, config: Config, url: str | None = None) -> str:
    """The name of the study of a workdir: a new one for a new search, else that in `search.json`.

    Processes that begin a search at once get one name. Several searches can share a database, each
    with a workdir of its own.

    Args:
        workdir: the folder of the run directories; it is made.
        config: what the search starts from.
        url: the database that holds the study; None for a file in `workdir`.

    Raises:
        UserError: the folder holds other files, or a search that starts from another config or is
            in another database; or the URL is none.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path, database = workdir / "search.json", None
    if url is not None:  # hosts may have several names
        address = _address(url)
        database = f"{address.get_backend_name()} {address.database}"
    if not path.exists():
        _begin(path, {"database": database, "config": config.model_dump()})
    try:
        stored = read_json(path)
        name, known = str(stored["study"]), Config.model_validate(stored["config"], strict=False)
        changes = differences(known, config)
        if stored["database"] != database:
            here, there = (each or "study.db" for each in (database, stored["database"]))
            changes.insert(0, f"--storage: {there} -> {here}")
    except (ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path} is damaged, or of another version of this package") from error
    if changes:
        raise UserError(
            f"{workdir} is another search ({'; '.join(changes[:_LISTED])}); name another "
            "--workdir, or give the same command to continue it"
        )
    return name


def _begin(path: Path, search: dict[str, Any]) -> None:
    """Writes `search.json` with the name of a study, unless another process does so now."""
    others = any(not is_unfinished(file) for file in path.parent.iterdir())
    if others and not path.exists():  # a search writes it before anything else
        raise UserError(f"{path.parent} holds other files; name a new directory with --workdir")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not path.exists():
            name = f"{path.parent.resolve().name}-{secrets.token_hex(4)}"
            write_json(path, {"study": name, **search})
    finally:
        os.close(folder)


def database_errors() -> tuple[type[Exception], ...]:
    """What a database that fails raises, also through Optuna."""
    import optuna
    import sqlalchemy

    return optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError


def _open(
    url: str, name: str, attempts: int = 5
) -> tuple[optuna.Study, optuna.storages.RDBStorage, int]:
    """Opens the study, or creates it; its storage and its number there come with it."""
    import optuna
    import sqlalchemy

    try:
        storage = optuna.storages.RDBStorage(
            url,
            heartbeat_interval=_HEARTBEAT,
            grace_period=_SILENCE,
            heartbeat_stale_trial_callback=_begin_again,
        )
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            # Trials that run count as bad ones, so that a batch of them lies apart.
            sampler=optuna.samplers.TPESampler(constant_liar=True),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            load_if_exists=True,
        )
        return study, storage, storage.get_study_id_from_name(name)
    except Exception as error:  # of Optuna, SQLAlchemy and the database's driver
        # Another process may create the tables at this moment.
        if attempts > 1 and isinstance(error, sqlalchemy.exc.DBAPIError):
            time.sleep(1)
            return _open(url, name, attempts - 1)
        raise UserError(f"--storage {_without_password(url, error)}") from error


def _address(url: str) -> sqlalchemy.URL:
    import sqlalchemy

    try:
        return sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # of a port that is no number
        example = "postgresql+psycopg://USER:PASSWORD@HOST/NAME"
        raise UserError(f"--storage takes the URL of a database, such as {example}") from None


def _without_password(url: str, error: Exception) -> str:
    """The address of a database and what is wrong with it, whose text may have the password."""
    address = _address(url)
    shown = address.render_as_string(hide_password=True)
    cause: BaseException = error
    while cause.__cause__ is not None:  # Optuna and SQLAlchemy say more around what the driver says
        cause = cause.__cause__
    reason = " ".join(str(cause).split()).replace(url, shown)
    if isinstance(cause, ImportError) and address.get_backend_name() in _DRIVERS:
        reason += f": {_DRIVERS[address.get_backend_name()]}"
    return f"{shown}: {reason.replace(address.password, '***') if address.password else reason}"
