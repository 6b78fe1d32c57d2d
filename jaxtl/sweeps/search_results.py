"""What a search found: its files, written after each batch, and its table."""

from __future__ import annotations

import csv
import io
import pprint
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jaxtl.config import Config
from jaxtl.console import interval_text
from jaxtl.errors import UserError
from jaxtl.files import write_whole
from jaxtl.metrics import proportion
from jaxtl.runs.directory import RunDirectory
from jaxtl.sweeps.ranking import best_lines
from jaxtl.sweeps.study import CONFIG, IMAGES, METRIC, RUN, Study

if TYPE_CHECKING:
    import optuna

_SHOWN = 10  # trials on the terminal

_BEST = '''"""{said}"""

from jaxtl.config import Config


def get_config() -> Config:
    return Config.model_validate(
{tree}
    )
'''


def write_results(study: Study, workdir: Path, name: str) -> None:
    """Writes what a study knows by now, each file whole or not at all.

    Args:
        study: the study.
        workdir: the folder of `search.csv`, `best.py` and `search-*.svg`.
        name: the name of the config that is searched in.
    """
    text = io.StringIO()
    keys = sorted({key for trial in study.trials for key in trial.params})
    rows = csv.writer(text)
    rows.writerow(["trial", "state", f"val_{_metric(study)}", *keys, "run"])
    for trial in study.trials:
        values = (trial.params.get(key, "") for key in keys)
        run = trial.user_attrs.get(RUN, "")
        rows.writerow([trial.number, trial.state.name.lower(), trial.value, *values, run])
    write_whole(workdir / "search.csv", text.getvalue().encode())
    done = study.in_state("COMPLETE")
    if not done:
        return
    best = study.optuna.best_trial
    tree = Config.model_validate(best.user_attrs[CONFIG], strict=False).model_dump()
    within = f" (95 % interval {bounds})" if (bounds := _interval(best)) else ""
    said = f"The best of {len(done)} trials of {name}: {_metric(study)} {best.value:.4f}{within}."
    write_whole(workdir / "best.py", _BEST.format(said=said, tree=_indented(tree)).encode())
    if len(done) > 1 and keys:
        _plot(study, workdir)


def _indented(tree: dict[str, Any]) -> str:
    text = pprint.pformat(tree, width=90, sort_dicts=False)
    return "\n".join(f"        {line}" for line in text.splitlines())


def _plot(study: Study, workdir: Path) -> None:
    """Which values did well, and which keys mattered."""
    from matplotlib import pyplot
    from optuna.visualization import matplotlib

    target = f"val_{_metric(study)}"
    keys = sorted({key for trial in study.in_state("COMPLETE") for key in trial.params})
    with warnings.catch_warnings(), pyplot.rc_context():  # Optuna sets a style
        warnings.simplefilter("ignore")  # these plots are experimental
        values: Any = matplotlib.plot_parallel_coordinate(study.optuna, target_name=target)
        # Optuna cuts off names of more than 20 letters.
        values.set_xticks(range(1 + len(keys)), [target, *keys], rotation=-20, ha="left")
        values.figure.set_figwidth(3 + 1.5 * len(keys))
        importance: Any = matplotlib.plot_param_importances(study.optuna, target_name=target)
        for name, axes in (("values", values), ("importance", importance)):
            axes.set_title("")
            image = io.BytesIO()
            axes.figure.savefig(image, format="svg", bbox_inches="tight")
            pyplot.close(axes.figure)
            write_whole(workdir / f"search-{name}.svg", image.getvalue())


def show_results(study: Study, workdir: Path, out: Console) -> None:
    """Shows the best trials, the test of the best one, and what became of all.

    Raises:
        UserError: no trial has a result.
    """
    done = study.in_state("COMPLETE")
    if not done:
        raise UserError(f"no trial of {workdir} has a result; search.csv says what became of them")
    keys = sorted({key for trial in done for key in trial.params})
    table = Table("trial", f"val_{_metric(study)}", "95 % interval", *keys)
    for trial in sorted(done, key=lambda trial: -(trial.value or 0))[:_SHOWN]:
        values = (
            f"{v:.4g}" if isinstance(v, float) else str(v) for v in map(trial.params.get, keys)
        )
        table.add_row(str(trial.number), f"{trial.value:.4f}", _interval(trial), *values)
    out.print(table)
    best = RunDirectory(workdir / study.optuna.best_trial.user_attrs[RUN])
    if best.exists():
        for line in best_lines(best):
            out.print(line)
    states = [trial.state.name.lower() for trial in study.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    out.print(f"{counts}; the best config: python -m jaxtl.train --cfg {workdir / 'best.py'}")


def _metric(study: Study) -> str:
    """What trials are ranked by."""
    named = (trial.user_attrs.get(METRIC) for trial in study.trials)
    return next(filter(None, named), "accuracy")


def _interval(trial: optuna.trial.FrozenTrial) -> str:
    """The Wilson interval of its accuracy; empty where an older version trained it, and of mAP,
    which is no fraction of the images.
    """
    images = trial.user_attrs.get(IMAGES)
    if not images or trial.value is None or trial.user_attrs.get(METRIC) == "mAP":
        return ""
    return interval_text(*proportion(round(trial.value * images), images)[1:])
