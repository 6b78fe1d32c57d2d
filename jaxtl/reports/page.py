"""Writes the page of a run."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from jaxtl.config import Config
from jaxtl.config.config_file import leaves
from jaxtl.console import interval_text
from jaxtl.errors import UserError
from jaxtl.files import write_whole
from jaxtl.metrics import proportion
from jaxtl.reports.charts import COLOURS, Chart, Line, chart
from jaxtl.reports.findings import Findings
from jaxtl.reports.history import Row, begins, curves, title_of
from jaxtl.reports.measures import BINS, COOLEST, HOTTEST, most_confused
from jaxtl.reports.thumbnails import heat_map
from jaxtl.runs.directory import RunDirectory, RunMetadata
from jaxtl.runs.metrics_log import read_metrics
from jaxtl.tasks import task_named

_CELLS = 20  # classes, up to which the confusions are a table of numbers
_PAIRS = 20


@dataclass(frozen=True)
class PlannedPhase:
    """What a phase is to do.

    Attributes:
        name: the name of the phase.
        frontier: the first stage that trains.
        stages: each stage with parameters and the fraction of these that trains, 0..1, in order.
        learning_rates: the epoch within the phase, as a real number, and the learning rate there.
    """

    name: str
    frontier: str
    stages: Mapping[str, float]
    learning_rates: Sequence[tuple[float, float]]


def write_page(
    run: RunDirectory,
    plan: Sequence[PlannedPhase],
    findings: Findings | None = None,
    to: Path | None = None,
) -> Path:
    """Writes the page of a run, with as much as is known of it.

    Args:
        run: a run directory with config and metadata.
        plan: what each phase is to do.
        findings: what its predictions say, once it has ended.
        to: the file to write; None for `report.html` in the run directory.

    Returns:
        The file.

    Raises:
        UserError: one of its files is damaged.
        OSError: the page cannot be written.
    """
    config, metadata = run.config(), run.metadata()
    rows = read_metrics(run.metrics) if run.metrics.exists() else []
    results, machine = curves(rows)
    if rows:
        results.append(_learning_rate(plan, rows))
    counts = findings.counts if findings else None
    page = template("run.html").render(
        title=run.path.resolve().name,
        state=state(config, metadata, rows),
        tiles=list(_tiles(config, metadata, rows, findings)),
        plan=plan,
        results=results,
        machine=machine,
        classes=metadata.classes,
        findings=findings,
        confused=[] if counts is None else most_confused(counts, _PAIRS),
        cells=len(metadata.classes) <= _CELLS,
        heat_map=heat_map,
        bins=BINS,
        about=_about(config, metadata),
        settings=_settings(config, task_named(metadata.task).monitors[0]),
    )
    return write(run.report if to is None else to, page)


def write(path: Path, page: str) -> Path:
    """Writes a page as a whole; what is not UTF-8 in a path is escaped."""
    write_whole(path, page.encode(errors="backslashreplace"))
    return path


def template(name: str) -> jinja2.Template:
    """A template of this package; what is put into it is text, never markup."""
    return _environment().get_template(name)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxtl.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["colours"] = COLOURS
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["interval"] = lambda found: interval_text(*found[1:], form=".1%")
    environment.filters["temperature"] = _temperature
    return environment


def _temperature(value: float) -> str:
    """The best temperature, which may lie beyond the bounds within which it is looked for."""
    said = {COOLEST: f"at most {COOLEST:g}", HOTTEST: f"at least {HOTTEST:g}"}
    return said.get(value, f"{value:.3f}")


def state(config: Config, metadata: RunMetadata, rows: Sequence[Row]) -> str:
    """How far a run came.

    Raises:
        UserError: the log has a phase that the run has not.
    """
    if metadata.result is not None:
        return "complete"
    if not rows:
        return "begun; no epoch is complete yet"
    last = rows[-1]
    planned = {phase.name: phase.epochs for phase in config.phases}
    if last["phase"] not in planned:
        raise UserError(f"metrics.jsonl has a phase {last['phase']!r}, which the run has not")
    return f"not complete: phase {last['phase']}, epoch {last['epoch']} of {planned[last['phase']]}"


def _tiles(
    config: Config,
    metadata: RunMetadata,
    rows: Sequence[Row],
    findings: Findings | None,
) -> Iterator[tuple[str, str, str]]:
    """What comes first: a name, a number and what there is to say of it."""
    images = metadata.data.val.images
    validated = [row for row in rows if row["split"] == "val"]
    if findings is not None:
        sums = findings.sums
        accuracy, loss, said = sums.top1 / sums.images, sums.loss / sums.images, "validation"
    elif validated:
        accuracy, loss = validated[-1]["accuracy"], validated[-1]["loss"]
        said = "validation, last epoch"
    else:
        return
    if metadata.task == "multi-label":
        means = validated[-1] if findings is None else findings.means
        yield from _label_tiles(said, means, metadata.result or {})
    correct = round(float(accuracy) * images)
    right = " have all labels right at 0.5" if metadata.task == "multi-label" else ""
    _, low, high = proportion(correct, images)
    yield (
        f"{said} accuracy",
        f"{accuracy:.2%}",
        f"{correct:,} of {images:,} images{right}; "
        f"95% interval {interval_text(low, high, form='.1%')}",
    )
    if tested := metadata.correct("test"):
        value, low, high = proportion(*tested)
        yield (
            "test accuracy",
            f"{value:.2%}",
            f"{tested[0]:,} of {tested[1]:,} images that chose nothing; "
            f"95% interval {interval_text(low, high, form='.1%')}",
        )
    if findings is not None and findings.macro_f1 is not None:
        value, low, high = findings.macro_f1
        yield (
            f"{said} macro F1",
            f"{value:.2%}",
            f"mean over the classes; 95% interval {interval_text(low, high, form='.1%')}",
        )
    yield f"{said} loss", f"{loss:.4f}", "mean cross-entropy in nats"
    if findings is not None:
        labels = findings.of_labels
        between = "probability and presence of labels" if labels else "confidence and accuracy"
        yield "calibration error", f"{findings.calibration.error:.2%}", f"between {between}"
    if metadata.result is not None:
        averaged = metadata.averaged.get(config.phases[-1].name)
        yield (
            "average of epochs" if averaged else "best epoch",
            ", ".join(map(str, averaged or [int(metadata.result["best_epoch"])])),
            f"of the last phase; {metadata.result['step']:,.0f} steps in all",
        )


def _label_tiles(
    said: str, means: Mapping[str, Any], result: Mapping[str, float]
) -> Iterator[tuple[str, str, str]]:
    """Those of several labels, before the accuracy, for which an image has to have all right."""
    for name, note in (("mAP", ""), ("macro_f1", ", each at its best threshold on validation")):
        yield f"{said} {title_of(name)}", f"{means[name]:.2%}", f"mean over the classes{note}"
        if f"test_{name}" in result:
            value = result[f"test_{name}"]
            yield f"test {title_of(name)}", f"{value:.2%}", "images that chose nothing"


def _learning_rate(plan: Sequence[PlannedPhase], rows: Sequence[Row]) -> Chart:
    """The planned learning rate over the epochs that were trained."""
    starts = begins(rows)
    ends = [*list(starts.values())[1:], starts[rows[-1]["phase"]] + rows[-1]["epoch"]]
    trained = dict(zip(starts, ends, strict=True))
    points = [
        (starts[phase.name] + epoch, rate)
        for phase in plan
        if phase.name in starts
        for epoch, rate in phase.learning_rates
        if starts[phase.name] + epoch <= trained[phase.name]
    ]
    marks = [(float(start), name) for name, start in starts.items()]
    return chart("learning rate as planned", [Line("learning rate", 3, points)], marks)


def _about(config: Config, metadata: RunMetadata) -> dict[str, str]:
    weights = metadata.weights
    continued = [f"; continued with jax {now['jax']}" for now in metadata.continued]
    return {
        "network": f"{config.model.name}, width {config.model.width:g}, "
        f"{config.model.image_size} px",
        "weights": f"{weights.source} {weights.sha256}" if weights else "none: random parameters",
        "data": f"{metadata.source}: {metadata.data.train.images:,} to train on, "
        f"{metadata.data.val.images:,} to validate on"
        + (f", {test.images:,} to test on" if (test := metadata.data.test) else ""),
        "left out": f"{metadata.skipped_images:,} images that cannot be used",
        "batch": f"{config.data.batch_size} images on {', '.join(metadata.devices)}",
        "versions": ", ".join(f"{name} {v}" for name, v in metadata.versions.items())
        + "".join(continued),
    }


def _settings(config: Config, monitor: str) -> list[tuple[str, str, bool]]:
    """Each key of the config with its value, and whether the config had to say it, as it had not
    for this monitor.
    """
    required = ("name", "train", "epochs")
    phases = tuple({key: getattr(phase, key) for key in required} for phase in config.phases)
    default = leaves(Config.model_validate({"phases": phases}).with_monitor(monitor))
    said = [f"phases.{phase.name}.{key}" for phase in config.phases for key in ("train", "epochs")]
    return [
        (key, f"{value}", key in said or default.get(key) != value)
        for key, value in leaves(config).items()
        if not key.endswith(".name") or not key.startswith("phases.")
    ]
