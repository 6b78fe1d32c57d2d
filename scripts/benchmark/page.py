"""Writes docs/benchmarks.md from the results; page.md has its text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import truediv
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from benchmark import compilers
from benchmark.gpu import FRAMEWORKS, GOALS, NETWORKS
from benchmark.protocol import FLOAT, INT8, OURS
from benchmark.rows import ROWS, Row

_TEXT = Path(__file__).with_name("page.md").read_text().split("<!-- measured -->\n")
_REACHED, _MISSED = "#2a7f62", "#c0504d"
_STYLE = {
    "axes.prop_cycle": plt.cycler(color=("#2a7f62", "#3b6ea5", "#c77d28")),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "savefig.dpi": 150,
}
_AXES = ("images", "image size", "trained stages", "simulated devices")


def write(results: Mapping[str, Any], out: Path) -> None:
    """Writes the page and its images.

    Args:
        results: the results of `scripts/bench.py`, by device.
        out: the page; images go to `images/` beside it.
    """
    (out.parent / "images").mkdir(parents=True, exist_ok=True)
    cpu, gpu = (results.get(device) for device in ("cpu", "gpu"))
    parts = [_TEXT[0], *(_cpu(cpu, out.parent) if cpu else ()), *(_gpu(gpu) if gpu else ())]
    for device, case in compilers.CASES.items():
        if device in results:
            parts += _compiled(results[device], device, case)
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
        _draw_ratios(ratios, folder / "images/bench.png")
        yield "![jaxtl's time as a fraction of its peers'](images/bench.png)\n"
        columns = ("what", "jaxtl", "peer", "", "ratio", "at most", "hoped for", "")
        yield _table(columns, (_line(*pair, how["jpegs"]) for pair in pairs))
        yield "The ratio is jaxtl / peer in time or memory: less is better.\n"
    for name, title in (("seed", "The seed job"), ("seed_plain", "Without augmentation")):
        if name in rows:
            yield _seed_job(title, rows[name]["jaxtl"], rows[name].get("Keras"))
    if "exported" in cpu:
        yield from _exported(**cpu["exported"])
    if "scaling" in cpu:
        growth = dict(zip(_AXES, cpu["scaling"].values(), strict=True))
        _draw_scaling(growth, folder / "images/bench-scaling.png")
        yield _TEXT[1].format(**how)
        yield from (_growth(axis, lines) for axis, lines in growth.items())
    if "roofline" in cpu:
        yield from _roofline(**cpu["roofline"])
    yield _TEXT[2].format(**how)


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
    ours, theirs = (measured[who]["values"] for who in ("jaxtl", peer))
    same = len(ours) == len(theirs)
    return list(map(truediv, ours, theirs if same else repeat(statistics.median(theirs))))


def _line(row: Row, peer: str, measured: Mapping[str, Any], jpegs: int) -> list[str]:
    """A line of the main table."""
    ours, theirs = (_median(measured[who]) for who in ("jaxtl", peer))
    cells = []
    for middle, who in ((ours, "jaxtl"), (theirs, peer)):
        units = {"bytes": f"{middle / 1e9:.2f} GB", "images": f"{jpegs / middle:,.0f} images/s"}
        accuracy = measured[who].get("accuracy")
        brackets = "" if accuracy is None else f" ({100 * accuracy:.1f} %)"
        cells.append(units.get(row.counts, _duration(middle)) + brackets)
    ratio = ours / theirs
    verdict = _verdict(ratio, row.at_most, row.hoped)
    goals = (f"**{ratio:.2g}**", f"{row.at_most:g}", f"{row.hoped:g}", verdict)
    return [row.title, cells[0], peer, cells[1], *goals]


def _seed_job(title: str, jaxtl: Mapping[str, Any], keras: Mapping[str, Any] | None) -> str:
    ours, theirs = (len(job["values"]) if job else 0 for job in (jaxtl, keras))
    text = f"{title}: jaxtl ran {_times(ours)}{f' and Keras {_times(theirs)}' if keras else ''}. "
    text += f"With nothing compiled before jaxtl took {_duration(jaxtl['cold_s'])}; its best epoch "
    text += f"had {100 * jaxtl['best']:.1f} %"
    if keras:
        text += f", Keras' {100 * keras['best']:.1f} %; Keras needs {keras['epoch_s']:.3g} s an "
        text += f"epoch and {keras['import_s']:.3g} s to be imported"
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


def _exported(version: str, networks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Images a second of networks in jaxtl and of their files in onnxruntime."""
    lines = []
    for network, batches in networks.items():
        for batch, measured in batches.items():
            cells = [network, batch, _images(measured[OURS], batch)]
            for who in (FLOAT, INT8):
                ratio = _median(measured[OURS]) / _median(measured[who])
                cells += [_images(measured[who], batch), f"**{ratio:.2g}**"]
            lines.append(cells)
    yield f"## Exported, images a second\n\nonnxruntime {version}.\n"
    yield _table(("network", "batch", OURS, FLOAT, "ratio", INT8, "ratio"), lines)
    yield "The ratio is jaxtl / onnxruntime in time: above 1 the file is faster.\n"


def _images(measured: Mapping[str, Any], batch: str) -> str:
    rate = int(batch) / _median(measured)
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _median(measured: Mapping[str, Sequence[float]]) -> float:
    return statistics.median(measured["values"])


def _roofline(rows: Mapping[str, Any], peaks: Mapping[str, float]) -> Iterator[str]:
    yield "## Roofline\n"
    yield (
        f"This machine at its best: {peaks['flops'] / 1e9:.0f} GFLOP/s (a matrix product, "
        f"float32), {peaks['bytes'] / 1e9:.0f} GB/s (adding one to an array). Operations and "
        "bytes of a step are XLA's count; bytes that a cache holds cost less than that.\n"
    )
    lines = []
    for row, step in rows.items():
        computing, moving = (step[key] / peaks[key] for key in ("flops", "bytes"))
        bound, best = "operations" if computing > moving else "bytes", max(computing, moving)
        times = (
            _duration(best),
            _duration(step["seconds"]),
            f"{100 * best / step['seconds']:.0f} %",
        )
        lines.append(
            (row, f"{step['flops'] / 1e9:.3g}", f"{step['bytes'] / 1e9:.3g}", bound, *times)
        )
    columns = ("row", "GFLOP", "GB", "bound by", "at best", "measured", "reached")
    yield _table(columns, lines)


def _gpu(gpu: Mapping[str, Any]) -> Iterator[str]:
    peaks, cases = gpu["peaks"], {}
    for row in gpu["rows"]:
        case = row["network"], row["row"], row["batch"]
        cases.setdefault(case, {})[row["who"]] = row["per_second"]
    yield f"## {gpu['device']}, bfloat16, images a second\n"
    yield _where(gpu)
    lines = []
    for (network, row, batch), known in cases.items():
        goal = GOALS.get(row) if network == NETWORKS[0] else None
        numbers = [f"{known[who]:,.0f}" if who in known else "" for who in FRAMEWORKS]
        lines.append((network, row, str(batch), *numbers, f"{goal:,}" if goal else ""))
    yield _table(("network", "row", "batch", *FRAMEWORKS, "goal on an H100"), lines)
    yield (
        "Steps on images that lie on the device (`head`: on cached features), with Adam; empty: "
        f"not measured. The device at its best: {peaks['flops'] / 1e12:.0f} TFLOP/s, "
        f"{peaks['bytes'] / 1e12:.2f} TB/s.\n"
    )


def _compiled(part: Mapping[str, Any], device: str, case: compilers.Case) -> Iterator[str]:
    """What full steps cost by the compiler of an accelerator."""
    yield f"## Compiled for {case.target}, {case.each} images on each\n"
    versions = part["versions"]
    known = {name: versions[name] for name in ("commit", "jax", "keras") if name in versions}
    yield (
        f"Full steps, bfloat16, 224 px, 1,000 classes, Adam, trained BatchNorm: counted, not run "
        f"(`python scripts/bench.py --device {device}`, {part['date']}, "
        f"{', '.join(' '.join(pair) for pair in known.items())}). Goals for the bytes: at most "
        f"{compilers.AT_MOST:g} of Keras', hoped for {compilers.HOPED:g}; for the temporaries: at "
        "most Keras'.\n"
    )
    networks: dict[str, dict[str, Any]] = {}
    for row in part["rows"]:
        networks.setdefault(row["network"], {})[row["who"]] = row
    lines = []
    for network, by in networks.items():
        keras = by.get("Keras on JAX")
        for who in filter(by.get, compilers.FRAMEWORKS):
            found, moved, kept = by[who], ("", ""), ("", "")
            if keras and who == "jaxtl":
                moved = _reached(found, keras, "moved_bytes", compilers.AT_MOST, compilers.HOPED)
                kept = _reached(found, keras, "temporary_bytes", 1)
            lines.append(
                (
                    *(network, who, f"{found['moved_bytes'] / 1e9:.2f}"),
                    f"{found['moved_bytes'] / found['each'] / 1e6:,.0f}",
                    *(*moved, f"{found['temporary_bytes'] / 1e9:.2f}", *kept),
                    f"{found['all_reduces']:,}",
                )
            )
    columns = ("network", "", "GB moved", "MB an image", "ratio", "reached")
    yield _table((*columns, "temporary GB", "ratio", "reached", "all-reduces"), lines)


def _reached(
    ours: Mapping[str, int], keras: Mapping[str, int], key: str, at_most: float, hoped: float = 0
) -> tuple[str, str]:
    """A number as a fraction of Keras', and whether it reaches its goal."""
    ratio = ours[key] / keras[key]
    return f"**{ratio:.3f}**", _verdict(ratio, at_most, hoped)


def _verdict(ratio: float, at_most: float, hoped: float) -> str:
    return "hoped for" if ratio <= hoped else "yes" if ratio <= at_most else "**no**"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _table(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    rows = [list(columns), *map(list, lines)]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


@plt.rc_context(_STYLE)
def _draw_ratios(rows: Sequence[tuple[Row, str, Sequence[float]]], path: Path) -> None:
    """Draws the median ratio of each row and peer, its range, and the goal."""
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(rows) + 1.1))
    for place, (row, _, values) in enumerate(rows):
        middle = statistics.median(values)
        color = _REACHED if middle <= row.at_most else _MISSED
        axes.plot((min(values), max(values)), (place, place), color=color, linewidth=3, alpha=0.35)
        axes.plot(middle, place, "o", color=color, markersize=7)
        axes.plot(row.at_most, place, "|k", markersize=13, markeredgewidth=2)
        beside = axes.get_yaxis_transform()
        axes.text(1.02, place, f"{middle:.2g}", transform=beside, va="center", color=color)
    axes.axvline(1, color="grey", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [f"{row.title}  /  {peer}" for row, peer, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xscale("log")
    _unscientific(axes.xaxis)
    title = "jaxtl / peer, less is better   ( ● median   ▬ range   | goal )"
    axes.set_title(title, loc="left")
    figure.savefig(path)
    plt.close(figure)


@plt.rc_context(_STYLE)
def _draw_scaling(growth: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Draws seconds by axis, line and number: a panel for each axis."""
    figure, panels = plt.subplots(2, 2, figsize=(8.5, 6))
    for axes, (name, lines) in zip(panels.flat, growth.items(), strict=True):
        for line, points in lines.items():
            axes.plot([*map(int, points)], [*points.values()], "o-", label=line, markersize=4)
        axes.set(title=name, ylabel="seconds", xscale="log", yscale="log")
        numbers = [*map(int, next(iter(lines.values())))]
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
        axes.xaxis.set_minor_locator(NullLocator())
        _unscientific(axes.yaxis)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


def _unscientific(axis: Axis) -> None:
    """Writes 0.5 in place of a power of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())
