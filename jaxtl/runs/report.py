"""Writes the page of a run: one HTML file that loads nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

import numpy as np

from jaxtl.config import Phase
from jaxtl.files import write_whole
from jaxtl.metrics import Evaluation, class_results, confusion
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.figures import confusion_matrix, curves
from jaxtl.runs.metrics_log import read_metrics

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2128; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
svg { max-width: 100%; height: auto; overflow: visible }
.classes { max-height: 32rem; width: fit-content; overflow: auto }
.classes th { position: sticky; top: 0; background: #fff }
@media print { .classes { max-height: none } }
table { border-collapse: collapse }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } th { white-space: nowrap }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
tr + tr { border-top: 1px solid #e6e8ec } .big { font-size: 2rem; font-weight: 600 }
"""


def write_report(run: RunDirectory, evaluation: Evaluation) -> None:
    """Writes `report.html`: the result, the curves, the confusions, and what the run was.

    Args:
        run: a run directory with config, metadata and metrics.
        evaluation: the validation of the result.

    Raises:
        UserError: one of these files is damaged.
    """
    sums, config, metadata = evaluation.sums, run.config(), run.metadata()
    classes = metadata.classes
    counts = confusion(evaluation.labels, evaluation.predicted, len(classes))
    about = {
        "network": f"{config.model.name}, width {config.model.width:g}, "
        f"{config.model.image_size} px",
        "weights": f"{metadata.weights.source} {metadata.weights.sha256}"
        if metadata.weights
        else "none: random parameters",
        "data": f"{metadata.source}: {metadata.data.train.images:,} to train on, "
        f"{metadata.data.val.images:,} to validate on",
        "batch": f"{config.data.batch_size} images on {', '.join(metadata.devices)}",
        **{f"phase {phase.name}": _settings(phase) for phase in config.phases},
        "versions": ", ".join(f"{name} {v}" for name, v in metadata.versions.items()),
    }
    title = html.escape(run.path.resolve().name)
    body = f"""
<h1>{title}</h1>
<p><span class="big">{sums.top1 / sums.images:.2%}</span> of the validation images correct
({sums.top1:,} of {sums.images:,}), loss {sums.loss / sums.images:.4f}</p>
<h2>Training</h2>{curves(read_metrics(run.metrics))}
<h2>Classes</h2><div class="classes">{_class_table(counts, classes)}</div>
<h2>Confusions</h2>{confusion_matrix(counts, classes)}
<h2>The run</h2><table>{_rows(about.items())}</table>"""
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>\n"
    )
    write_whole(run.report, page.encode(errors="backslashreplace"))  # paths need not be UTF-8


def _settings(phase: Phase) -> str:
    """The settings of a phase that differ from the defaults."""
    said = phase.model_dump(exclude_defaults=True, exclude={"name"})
    return ", ".join(f"{key} {value}" for key, value in said.items())


def _rows(items: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in items
    )


def _class_table(counts: np.ndarray, classes: Sequence[str]) -> str:
    """Recall and precision of each class; a dash where there are no images to divide by."""
    rows: list[tuple[str, ...]] = [("th", "class", "images", "recall", "precision")]
    for name, (images, _, *fractions) in zip(classes, class_results(counts), strict=True):
        shown = ("-" if fraction is None else f"{fraction:.1%}" for fraction in fractions)
        rows.append(("td", html.escape(name), f"{images:,}", *shown))
    lines = (
        f"<tr><{tag}>{name}</{tag}>{''.join(f'<{tag} class=n>{n}</{tag}>' for n in numbers)}</tr>"
        for tag, name, *numbers in rows
    )
    return f"<table>{''.join(lines)}</table>"
