"""The runs of a sweep, best first: a table for the terminal and a CSV file."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from jaxtl.config.config_file import leaves
from jaxtl.console import correct_text, interval_text, metrics_text
from jaxtl.files import write_whole
from jaxtl.metrics import proportion, quality
from jaxtl.runs.directory import RunDirectory
from jaxtl.sweeps.failure import Failure, Outcome
from jaxtl.sweeps.variations import Variation
from jaxtl.tasks import ranked_by

_SHOWN = 20  # rows on the terminal
_NAMED = 3  # runs that failed for the same reason
_REASONS = 5  # in a list of failures
_HIDDEN = (
    *("run", "val_accuracy_low", "val_accuracy_high", "val_top5", "val_images"),
    *("outcome", "reason"),
)
_FOLD = "data.fold"
_INTERVAL = "95 % interval"
_MEANS = ("val_mAP", "val_accuracy", "val_loss")  # over folds; the first that there is ranks them
_FORMATS = {**dict.fromkeys((*_MEANS, "val_macro_f1"), ".4f"), "steps": ","}


def ranked(outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """Sorts runs by validation accuracy, or mAP of several labels, then loss, then as they were;
    the best is first.

    Runs that diverged come after those with a result, and runs that failed are last.
    """

    def key(name: str) -> tuple[float, float]:
        outcome = outcomes[name]
        if isinstance(outcome, Failure):
            return -math.inf, 0.0 if outcome.again else 1.0
        return quality(outcome[ranked_by(outcome)], outcome["loss"])

    return {name: outcomes[name] for name in sorted(outcomes, key=key, reverse=True)}


def ranking_rows(
    outcomes: Mapping[str, Outcome], variations: Sequence[Variation], images: Mapping[str, int]
) -> list[dict[str, Any]]:
    """A row for each outcome: run, keys that vary, validation metrics, steps, outcome and reason.

    The outcome is `complete`, `diverged` or `failed`. A run that is not complete has the metrics
    `nan`, no steps, and a reason. The accuracy comes with its Wilson interval of 95 %.

    Args:
        outcomes: the runs, best first.
        variations: all runs of the sweep.
        images: the number of validation images of each run with a result.
    """
    keys = dict.fromkeys(key for variation in variations for key in variation.values)
    values = {run.name: leaves(run.config) | run.values for run in variations}
    results = {name: o for name, o in outcomes.items() if not isinstance(o, Failure)}
    known = {"accuracy", "loss"}.union(*results.values())
    metrics = [name for name in ("accuracy", "loss", "top5") if name in known]
    of_labels = ["mAP", "macro_f1"] if "mAP" in known else []
    rows = []
    for name, outcome in outcomes.items():
        result, word, reason = results.get(name, {}), "complete", ""
        if isinstance(outcome, Failure):
            word, reason = "failed" if outcome.again else "diverged", outcome.reason
        measured = {f"val_{metric}": result.get(metric, math.nan) for metric in metrics}
        low = high = math.nan
        if name in images:
            _, low, high = proportion(round(result["accuracy"] * images[name]), images[name])
        row = {
            "run": name,
            **{key: values[name].get(key, "") for key in keys},
            **{f"val_{metric}": result.get(metric, math.nan) for metric in of_labels},
            "val_accuracy": measured.pop("val_accuracy"),
            "val_accuracy_low": low,
            "val_accuracy_high": high,
            **measured,
            "val_images": images.get(name, ""),
            "steps": int(result["step"]) if result else "",
            "outcome": word,
            "reason": reason,
        }
        rows.append(row)
    return rows


def ranking_table(rows: Sequence[Mapping[str, Any]], path: Path) -> Table:
    """The first rows from `ranking_rows` as a table, which names the file that holds them all."""
    more = len(rows) - _SHOWN
    table = Table(caption=f"and {more:,} more in {path}" if more > 0 else None)
    columns = [*(column for column in rows[0] if column not in _HIDDEN), "run"]
    columns.insert(columns.index("val_accuracy") + 1, _INTERVAL)
    for column in columns:
        table.add_column(column, justify="right" if column in _FORMATS else "left")
    for row in rows[:_SHOWN]:
        lost = row["outcome"] != "complete"
        shown = {**row, _INTERVAL: _interval(row)}
        if lost:
            shown |= {name: "" for name in shown if name.startswith("val_")}
            shown["val_accuracy"] = row["outcome"]
        table.add_row(*(_text(column, shown[column]) for column in columns))
    return table


def folds_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Mean and standard deviation over the folds of runs that differ in nothing else, best first.

    The interval is that of all images of the folds together, each of which validates once.

    Args:
        rows: those from `ranking_rows`.

    Returns:
        A table; None where no two folds are complete.
    """
    if _FOLD not in rows[0]:
        return None
    others = [key for key in rows[0] if key not in (*_HIDDEN, *_FORMATS, _FOLD)]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(repr(row[key]) for key in others), []).append(row)
    table = Table(*others, "complete", title="over the folds", title_justify="left")
    metrics = [name for name in _MEANS if name in rows[0]]
    for column in metrics:
        table.add_column(column, justify="right")
        if column == "val_accuracy":
            table.add_column(_INTERVAL, justify="right")
    lines: list[tuple[float, list[str]]] = []
    for members in groups.values():
        done = [row for row in members if row["outcome"] == "complete"]
        if len(done) < 2:
            continue
        means = {name: [row[name] for row in done] for name in metrics}
        cells = [f"{mean(each):.4f} ± {stdev(each):.4f}" for each in means.values()]
        correct = sum(round(row["val_accuracy"] * row["val_images"]) for row in done)
        _, *bounds = proportion(correct, sum(row["val_images"] for row in done))
        cells.insert(metrics.index("val_accuracy") + 1, interval_text(*bounds))
        texts = [_text(key, done[0][key]) for key in others]
        texts += [f"{len(done)} of {len(members)}", *cells]
        lines.append((mean(means[metrics[0]]), texts))
    for _, line in sorted(lines, reverse=True):
        table.add_row(*line)
    return table if lines else None


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["val_accuracy_low"], row["val_accuracy_high"]
    return "" if math.isnan(low) else interval_text(low, high)


def _text(column: str, value: Any) -> str:
    if isinstance(value, int | float):
        return format(value, _FORMATS.get(column, "g" if isinstance(value, float) else ""))
    return str(value)


def failure_lines(outcomes: Mapping[str, Outcome], again: str, path: Path) -> Iterator[str]:
    """Says which runs diverged and failed, and why; those that failed for one reason together.

    Args:
        outcomes: all runs.
        again: what to do so that failed runs train again.
        path: the file with all reasons.
    """
    for failed, what in ((False, "diverged, and would again"), (True, f"failed; {again}")):
        names: dict[str, list[str]] = {}
        for name, outcome in outcomes.items():
            if isinstance(outcome, Failure) and outcome.again == failed:
                names.setdefault(outcome.reason, []).append(name)
        if names:
            yield f"\n{sum(map(len, names.values()))} of {len(outcomes)} runs {what}:"
        for reason, alike in list(names.items())[:_REASONS]:
            yield f"  {reason}"
            yield from (f"    {name}" for name in alike[:_NAMED])
            if len(alike) > _NAMED:
                yield f"    and {len(alike) - _NAMED} more"
        if len(names) > _REASONS:
            yield f"  and {len(names) - _REASONS} more reasons in {path}"


def best_lines(run: RunDirectory) -> Iterator[str]:
    """Says what the best run validated with, and its test."""
    metadata = run.metadata()
    result = metadata.result or {}
    names = dict.fromkeys((ranked_by(result), "accuracy", "loss"))
    if val := metadata.correct("val"):
        means = {name: result[name] for name in names}
        yield f"best: {run.path}  {metrics_text(means, 'val_')}  {correct_text(*val)}"
    if test := metadata.correct("test"):
        means = {name: result[f"test_{name}"] for name in names}
        yield f"its test: {metrics_text(means, 'test_')}  {correct_text(*test)}"


def write_ranking(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows from `ranking_rows` as CSV; a file that is there is replaced as a whole."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode(errors="surrogateescape"))
