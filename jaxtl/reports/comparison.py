"""Writes the page that compares runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtl.config import Config
from jaxtl.config.config_file import leaves
from jaxtl.metrics import Proportion, proportion
from jaxtl.reports.charts import COLOURS, DASHES, Chart, Line, chart
from jaxtl.reports.history import Row, series, title_of
from jaxtl.reports.page import state, template, write
from jaxtl.runs.directory import RunDirectory, RunMetadata
from jaxtl.runs.metrics_log import read_metrics

_STYLES = [(colour, dash) for dash in DASHES for colour in COLOURS[1:]]  # the first one is grey
_NOT_GIVEN = "-"


class Compared(NamedTuple):
    """A run on a page with others.

    Attributes:
        name: what tells it from the others: its path below their common folder.
        colour, dash: of its lines, as of a `Line`.
        state: `complete`, or how far it came.
        average_precision: of several labels the mean of its result, or of its last epoch.
        accuracy: the validation accuracy there; None before the first epoch is complete.
        test: the accuracy of its test; None before its end, or without one.
        loss: the loss there, in nats.
        epochs: how many were trained.
        images_per_second: the mean over its epochs; None if it is not known.
        val: the fingerprint of the validation images.
    """

    name: str
    colour: int
    dash: str
    state: str
    average_precision: float | None
    accuracy: Proportion | None
    test: Proportion | None
    loss: float | None
    epochs: int
    images_per_second: float | None
    val: str


def write_comparison(paths: Sequence[Path], to: Path) -> Path:
    """Writes a page with the results, the curves and the different settings of several runs.

    It reads what the runs wrote down: no image is classified again.

    Args:
        paths: their directories, at least two.
        to: the file to write.

    Returns:
        The file.

    Raises:
        UserError: one of them is no run, or is damaged.
        OSError: the page cannot be written.
    """
    runs = [RunDirectory(path) for path in paths]
    names = _names(paths)
    configs = [run.config() for run in runs]
    logs = [read_metrics(run.metrics) if run.metrics.exists() else [] for run in runs]
    compared = [
        _compared(name, index, config, run.metadata(), rows)
        for index, (name, config, run, rows) in enumerate(
            zip(names, configs, runs, logs, strict=True)
        )
    ]
    page = template("comparison.html").render(
        title=f"{len(runs)} runs compared",
        runs=compared,
        tested=any(run.test for run in compared),
        of_labels=any(run.average_precision is not None for run in compared),
        same_images=len({run.val for run in compared}) == 1,
        distinct=len(_STYLES),
        charts=_charts(compared, logs),
        settings=_different([leaves(config) for config in configs]),
    )
    return write(to, page)


def _names(paths: Sequence[Path]) -> list[str]:
    resolved = [path.resolve() for path in paths]
    common = os.path.commonpath([path.parent for path in resolved])
    return [str(path.relative_to(common)) for path in resolved]


def _compared(
    name: str, index: int, config: Config, metadata: RunMetadata, rows: Sequence[Row]
) -> Compared:
    validated = [row for row in rows if row["split"] == "val"]
    result: dict[str, Any] = metadata.result or (validated[-1] if validated else {})
    images = metadata.data.val.images
    speeds = [value for _, value in series(rows, "train", "images_per_second")]
    return Compared(
        name,
        *_STYLES[index % len(_STYLES)],
        state(config, metadata, rows),
        result.get("mAP"),
        proportion(round(result["accuracy"] * images), images) if result else None,
        proportion(*tested) if (tested := metadata.correct("test")) else None,
        result.get("loss"),
        len(validated),
        sum(speeds) / len(speeds) if speeds else None,
        metadata.data.val.sha256,
    )


def _charts(compared: Sequence[Compared], logs: Sequence[Sequence[Row]]) -> list[Chart]:
    """A chart of each result that is validated, with a line for each run."""
    columns = dict.fromkeys(key for rows in logs for row in rows for key in row)
    charts = []
    for column in columns:
        if column in ("phase", "epoch", "step", "split"):
            continue
        lines = [
            Line(run.name, run.colour, points, run.dash)
            for run, rows in zip(compared, logs, strict=True)
            if (points := series(rows, "val", column))
        ]
        if lines:
            charts.append(chart(f"validation {title_of(column)}", lines))
    return charts


def _different(configs: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Each key on which the configs differ, with the value of each."""
    keys = dict.fromkeys(key for config in configs for key in config)
    values = [(key, [str(config.get(key, _NOT_GIVEN)) for config in configs]) for key in keys]
    return [(key, of_runs) for key, of_runs in values if len(set(of_runs)) > 1]
