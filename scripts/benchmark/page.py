"""Writes docs/benchmarks.md from the results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmark import plots
from benchmark.rows import GPU_GOALS, ROWS, Row

_HEAD = """# Benchmarks

    pip install -e '.[bench]'
    python scripts/bench.py

measures everything on this page in one go and writes it, images included. A peer that is not
installed is left out. `--rows forward,seed` measures some rows again, `--render` writes the page
again from [benchmarks.json](benchmarks.json), which has every single measurement.
"""
_AXES = ("images", "image size", "trained stages", "simulated devices")


def write(results: Mapping[str, Any], out: Path) -> None:
    """Writes the page and its images.

    Args:
        results: what `scripts/bench.py` measured, by device.
        out: the page; images go to `images/` beside it.
    """
    (out.parent / "images").mkdir(parents=True, exist_ok=True)
    cpu, gpu = (results.get(device) for device in ("cpu", "gpu"))
    parts = (_HEAD, *(_cpu(cpu, out.parent) if cpu else ()), *(_gpu(gpu) if gpu else ()))
    out.write_text("\n".join(parts))


def _cpu(cpu: Mapping[str, Any], folder: Path) -> Iterator[str]:
    rows, how = cpu["rows"], cpu["how"] | {"cores": cpu["machine"]["cores"]}
    known = [
        (name, peer) for name in ROWS for peer in ROWS[name].peers if peer in rows.get(name, ())
    ]
    pairs = [(ROWS[name], peer, rows[name]) for name, peer in known]
    yield _where(cpu)
    if pairs:
        ratios = [(row, peer, _ratios(measured, peer)) for row, peer, measured in pairs]
        plots.ratios(ratios, folder / "images/bench.png")
        yield "![jaxtl's time as a fraction of its peers'](images/bench.png)\n"
        columns = ("what", "jaxtl", "peer", "", "ratio", "at most", "hoped for", "")
        yield _table(columns, (_line(*pair, how["jpegs"]) for pair in pairs))
        yield "The ratio is jaxtl / peer in time or memory: less is better.\n"
    for name, title in (("seed", "The seed job"), ("seed_plain", "Without augmentation")):
        if name in rows:
            yield _seed_job(title, rows[name]["jaxtl"], rows[name].get("Keras"))
    if "scaling" in cpu:
        growth = dict(zip(_AXES, cpu["scaling"].values(), strict=True))
        plots.scaling(growth, folder / "images/bench-scaling.png")
        yield _GROWTH.format(**how)
        yield from (_growth(axis, lines) for axis, lines in growth.items())
    if "roofline" in cpu:
        yield from _roofline(**cpu["roofline"])
    yield Path(__file__).with_name("how.md").read_text().format(**how)


_GROWTH = """## As the work grows

![Time against images, size, stages and devices](images/bench-scaling.png)

Images: the seed job without augmentation at {run_size} px for {run_epochs} epochs, start to exit, \
activations not cached before. Image size, stages, devices: a step on {batch} images; the \
simulated devices share the {cores} cores. The exponent is that of the power that fits best.
"""


def _where(part: Mapping[str, Any]) -> str:
    """The machine, the versions, and what was measured when."""
    m, avx = part["machine"], ", AVX-512" if part["machine"]["avx512"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    lines = [
        f"{m['cpu']}, {m['cores']} cores{avx}, {m['memory_gb']} GB, {m['system']}, {part['date']}.",
        f"{versions}.",
        *(f"{peer} was left out: {why}." for peer, why in part["absent"].items()),
    ]
    apart: dict[tuple[str, str], list[str]] = {}
    for row, (date, commit) in part["measured"].items():
        apart.setdefault((date, commit), []).append(row)
    apart.pop((part["date"], part["versions"]["commit"]), None)
    for (date, commit), rows in apart.items():
        lines.append(f"Measured apart, {date}, commit {commit}: {', '.join(rows)}.")
    if part["quick"]:
        lines.append("**Tiny sizes (`--quick`): these numbers say nothing.**")
    return "\n".join(lines) + "\n"


def _ratios(measured: Mapping[str, Any], peer: str) -> list[float]:
    """jaxtl / peer, measurement by measurement; a peer measured less often by its median."""
    ours, theirs = measured["jaxtl"]["values"], measured[peer]["values"]
    if len(ours) != len(theirs):
        theirs = [statistics.median(theirs)] * len(ours)
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def _line(row: Row, peer: str, measured: Mapping[str, Any], jpegs: int) -> list[str]:
    """A line of the main table."""
    ours, theirs = (statistics.median(measured[who]["values"]) for who in ("jaxtl", peer))
    cells = []
    for middle, who in ((ours, "jaxtl"), (theirs, peer)):
        units = {"bytes": f"{middle / 1e9:.2f} GB", "images": f"{jpegs / middle:,.0f} images/s"}
        accuracy = measured[who].get("accuracy")
        brackets = "" if accuracy is None else f" ({100 * accuracy:.1f} %)"
        cells.append(units.get(row.counts, _duration(middle)) + brackets)
    ratio = ours / theirs
    reached = "hoped for" if ratio <= row.hoped else "yes" if ratio <= row.at_most else "**no**"
    goals = (f"**{ratio:.2g}**", f"{row.at_most:g}", f"{row.hoped:g}", reached)
    return [row.title, cells[0], peer, cells[1], *goals]


def _seed_job(title: str, jaxtl: Mapping[str, Any], keras: Mapping[str, Any] | None) -> str:
    and_keras = f" and Keras {_times(keras)}" if keras else ""
    text = (
        f"{title}: jaxtl ran {_times(jaxtl)}{and_keras}. With nothing compiled before jaxtl took "
        f"{_duration(jaxtl['cold_s'])}; its best epoch had {100 * jaxtl['best']:.1f} %"
    )
    if keras:
        text += (
            f", Keras' {100 * keras['best']:.1f} %; Keras needs {keras['epoch_s']:.3g} s an epoch "
            f"and {keras['import_s']:.3g} s to be imported"
        )
    return text + ".\n"


def _growth(axis: str, lines: Mapping[str, Mapping[str, float]]) -> str:
    """A table of seconds, the power of the number that they grow with, and those of one more."""
    numbers, cells = list(next(iter(lines.values()))), []
    for line, points in lines.items():
        x, y = list(map(float, points)), list(points.values())
        exponent = statistics.linear_regression(list(map(math.log, x)), list(map(math.log, y)))
        times = (_duration(points[n]) if n in points else "" for n in numbers)
        one_more = _duration(statistics.linear_regression(x, y).slope)
        cells.append((line, *times, f"{exponent.slope:.2f}", one_more))
    return _table((axis, *(f"{int(n):,}" for n in numbers), "exponent", "one more"), cells)


def _roofline(rows: Mapping[str, Any], peaks: Mapping[str, float]) -> Iterator[str]:
    yield "## Roofline\n"
    yield (
        f"This machine at its best: {peaks['flops'] / 1e9:.0f} GFLOP/s (a matrix product, "
        f"float32), {peaks['bytes'] / 1e9:.0f} GB/s (adding one to an array). Operations and "
        "bytes of a step are XLA's count; bytes that a cache holds cost less than that.\n"
    )
    lines = []
    for row, of in rows.items():
        computing, moving = (of[key] / peaks[key] for key in ("flops", "bytes"))
        bound, best = "operations" if computing > moving else "bytes", max(computing, moving)
        times = (_duration(best), _duration(of["seconds"]), f"{100 * best / of['seconds']:.0f} %")
        lines.append((row, f"{of['flops'] / 1e9:.3g}", f"{of['bytes'] / 1e9:.3g}", bound, *times))
    columns = ("row", "GFLOP", "GB", "bound by", "at best", "measured", "reached")
    yield _table(columns, lines)


def _gpu(gpu: Mapping[str, Any]) -> Iterator[str]:
    metadata = gpu["metadata"]
    peaks, worst, lines = metadata["peaks"], metadata["worst"], []
    yield f"## {metadata['device']}, bfloat16\n"
    yield _where(gpu)
    for of in metadata["rows"]:
        goal = GPU_GOALS.get(of["row"])
        reached = ("yes" if of["per_second"] >= goal else "**no**") if goal else ""
        bandwidth = f"{100 * of['roofline']:.0f} %" if "roofline" in of else ""
        cells = (of["row"], str(of["batch"]), f"{of['per_second']:,.0f}", bandwidth)
        lines.append((*cells, f"{goal:,}" if goal else "", reached))
    columns = ("row", "batch", "a second", "of the memory's bandwidth", "goal on an H100", "")
    yield _table(columns, lines)
    yield (
        f"At its best: {peaks['flops'] / 1e12:.0f} TFLOP/s, {peaks['bytes'] / 1e12:.2f} TB/s. "
        f"The stage farthest from its roofline is {worst['stage']}:\n"
    )
    kernels = worst["kernels"].items()
    yield _table(("kernel", "µs"), ((f"`{name}`", f"{us:.1f}") for name, us in kernels))


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"


def _times(measured: Mapping[str, Any]) -> str:
    count = len(measured["values"])
    return "once" if count == 1 else f"{count} times"


def _table(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    rows = [list(columns), *map(list, lines)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
