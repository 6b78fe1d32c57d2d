"""Trackers that a run sends its metrics to, beside TensorBoard: Weights & Biases and MLflow."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from jaxtl.config.config_file import leaves
from jaxtl.errors import Interrupted, UserError, one_line
from jaxtl.files import as_text, read_json, write_json
from jaxtl.runs.directory import RunDirectory

_log = logging.getLogger("jaxtl")


class _Tracker(Protocol):
    """A run in a tracker.

    Attributes:
        id: what the tracker calls it.
    """

    id: str

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def end(self, error: BaseException | None) -> None: ...


class _WandB:
    """A run in Weights & Biases, whose files are in a folder."""

    def __init__(self, id: str | None, name: str, settings: Mapping[str, Any], folder: Path):
        import wandb

        # It would ask for a key on a terminal, and wait.
        if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False):
            raise UserError("--track wandb needs a key: wandb login, or set WANDB_MODE=offline")
        self._run = wandb.init(
            id=id,
            name=name,
            config=dict(settings),
            dir=folder,
            resume="allow",
            allow_val_change=True,  # of what may change when a run goes on
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.id = self._run.id
        # Not its own steps, which never go back as those of a run that diverged do.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({**metrics, "step": step})

    def end(self, error: BaseException | None) -> None:
        self._run.finish(exit_code=0 if error is None else 1)


class _MLflow:
    """A run in MLflow."""

    def __init__(self, id: str | None, name: str, settings: Mapping[str, Any], folder: Path):
        import mlflow

        self._mlflow = mlflow
        self.id = mlflow.start_run(run_id=id, run_name=None if id else name).info.run_id
        if id is None:  # MLflow lets no parameter change
            try:
                mlflow.log_params(dict(settings), run_id=self.id)
            except Exception as error:
                self.end(error)
                raise

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(metrics), step=step, run_id=self.id)

    def end(self, error: BaseException | None) -> None:
        stopped = "KILLED" if isinstance(error, Interrupted) else "FAILED"
        self._mlflow.end_run("FINISHED" if error is None else stopped)


TRACKERS: dict[str, Callable[[str | None, str, Mapping[str, Any], Path], _Tracker]] = {
    "wandb": _WandB,
    "mlflow": _MLflow,
}


class Trackers:
    """The run as some trackers have it; what one of them raises is a warning, and its end.

    A run that is continued goes on in the same run of a tracker. To be left as a context, after
    which the trackers know the result.

    Args:
        names: trackers, of `TRACKERS`.
        run: the run directory; it keeps what the trackers call the run.

    Raises:
        UserError: a tracker needs a key.
    """

    def __init__(self, names: Sequence[str], run: RunDirectory):
        self._run, self._open = run, dict[str, _Tracker]()
        if not names:
            return
        run.trackers.mkdir(exist_ok=True)
        ids = run.trackers / "ids.json"
        known = _known(ids)
        settings = {
            key: value if isinstance(value, bool | int | float) else as_text(str(value))
            for key, value in leaves(run.config()).items()
        }
        name = as_text(run.path.resolve().name)
        for tracker in dict.fromkeys(names):
            try:
                begun = TRACKERS[tracker](known.get(tracker), name, settings, run.trackers)
            except UserError:
                raise
            except Exception as error:
                _warn(tracker, error)
                continue
            self._open[tracker] = begun
            known[tracker] = begun.id
            write_json(ids, known)

    def write(self, epoch: int, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of one split after an epoch, as `split/name`."""
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self._each(lambda tracker: tracker.write(step, named | {f"{split}/epoch": epoch}))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        result = self._run.metadata().result if self._open and error is None else None
        if result is not None:
            named = {f"result/{name}": value for name, value in result.items()}
            self._each(lambda tracker: tracker.write(int(result["step"]), named))
        for name, tracker in self._open.items():
            try:
                tracker.end(error)
            except Exception as failure:
                _warn(name, failure)

    def _each(self, act: Callable[[_Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as error:  # whatever it is, the run goes on
                _warn(name, error)
                del self._open[name]
                with contextlib.suppress(Exception):
                    tracker.end(error)  # else it may take the run for a complete one


def _known(ids: Path) -> dict[str, str]:
    """What trackers called the run before."""
    try:
        return dict(read_json(ids)) if ids.exists() else {}
    except (ValueError, TypeError) as error:
        _log.warning("%s is damaged (%s), so trackers begin a new run", ids, one_line(error))
        return {}


def _warn(name: str, error: Exception) -> None:
    reason = " ".join(one_line(error).split())
    _log.warning("%s gets no more of this run, which goes on: %s", name, reason)
