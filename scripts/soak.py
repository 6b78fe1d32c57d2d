"""Trains for long in one process, and measures whether its memory, threads and open files grow.

    python scripts/soak.py epochs docs/images       a run of 2,000 epochs
    python scripts/soak.py sweep docs/images        a sweep of 64 single runs

It writes soak-epochs.csv and .svg, or soak-sweep.csv and .svg, and prints the slope of the memory
after the first quarter. Both train heads on a narrow MobileNet V1 and scikit-learn's digits. Linux.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

_CONFIG = """
from jaxtl.config import Config, Data, Model, Phase
from jaxtl.sweeps.variations import grid
def get_config() -> Config:
    return Config(
        model=Model(name="mobilenet_v1", width=0.25, image_size=32, weights=None),
        data=Data(source="digits", batch_size=256),
        phases=(Phase(name="head", train={{"head/.*": 1.0}}, epochs={count}),),
    )

def sweep():
    return grid({{"phases.head.epochs": range(1, {count} + 1)}})  # runs that train one by one
"""
# The command, what is counted, how many, and for how many the slope is told.
_JOBS = {"epochs": ("train", "epochs", 2000, 1000), "sweep": ("sweep", "runs", 64, 64)}


def main() -> None:
    """Runs, samples, writes and draws."""
    flags = argparse.ArgumentParser(usage=__doc__)
    flags.add_argument("job", choices=_JOBS)
    flags.add_argument("folder", type=Path, help="where the CSV file and the drawing go")
    flags.add_argument("--count", type=int, help="how many epochs, or runs")
    given = flags.parse_args()
    module, what, count, per = _JOBS[given.job]
    count = given.count or count
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        (Path(folder) / "soak.py").write_text(_CONFIG.format(count=count))
        command = [sys.executable, "-m", f"jaxtl.{module}", "--cfg", f"{folder}/soak.py"]
        process = subprocess.Popen([*command, "--workdir", run], stdout=subprocess.DEVNULL)
        samples = _sampled(process, lambda: _done(run))
    if process.returncode:
        sys.exit(f"the process ended with code {process.returncode}")
    samples = samples[samples[:, 0] < count]  # then comes the report, and the end
    path = given.folder / f"soak-{given.job}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([what, "seconds", "memory_mb", "threads", "open_files"])
        writer.writerows(samples.round(1).tolist())
    slope = per * np.polyfit(*samples[samples[:, 0] >= count / 4][:, [0, 2]].T, 1)[0]
    text = f"{count:,} {what} in one process: memory {slope:+.1f} MB per {per:,} {what}"
    print(f"{text}, in {samples[-1, 1]:.0f} s")
    _draw(path.with_suffix(".svg"), samples, what, text)


def _sampled(process: subprocess.Popen, done: Callable[[], int]) -> np.ndarray:
    """What was done, seconds, memory in MB, threads and open files, twice a second."""
    begun, rows, about = time.monotonic(), [], Path(f"/proc/{process.pid}")
    while process.poll() is None:
        try:
            # With what is swapped out: the kernel may take pages that are not used for a while.
            kilobytes = sum(_value(about / "smaps_rollup", key) for key in ("Pss:", "SwapPss:"))
            threads, files = _value(about / "status", "Threads:"), len(os.listdir(about / "fd"))
            rows.append((done(), time.monotonic() - begun, 1.024e-3 * kilobytes, threads, files))
        except (OSError, StopIteration):  # the process ended
            continue
        time.sleep(0.5)
    return np.array(rows)


def _value(file: Path, key: str) -> int:
    return next(
        int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(key)
    )


def _done(run: Path) -> int:
    """The epochs that are logged, two lines each, or the runs that are in the table."""
    for name, header, lines in (("metrics.jsonl", 0, 2), ("sweep.csv", 1, 1)):
        if (run / name).exists():
            return ((run / name).read_bytes().count(b"\n") - header) // lines
    return 0


def _draw(path: Path, samples: np.ndarray, what: str, title: str) -> None:
    count, _, memory, threads, files = samples.T
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(2, 1))
    upper.plot(count, memory, color="#2a6f97")
    upper.set(ylabel="memory (MB)", ylim=(0, 1.25 * memory.max()))
    upper.set_title(title, loc="left")
    lower.plot(count, threads, color="#2a6f97", label="threads")
    lower.plot(count, files, color="#c1666b", label="open files")
    lower.set(xlabel=what, ylabel="number", ylim=(0, 1.4 * max(threads.max(), files.max())))
    lower.legend(frameon=False, ncols=2, loc="upper left")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
