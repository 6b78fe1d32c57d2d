"""Times a run in jaxtl beside its exports in onnxruntime, in float32 and in eight bits.

    pip install -e '.[onnx]'
    python scripts/export_speed.py --run runs/pets

Each has a process of its own. They are measured in turn, and the table has the medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np

_BATCHES = 1, 32
_SECONDS = 2.0  # of calls in one measurement
_PAUSE = 1.0  # threads of onnxruntime spin for a while after a call


@cache
def classifier(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The compiled network of a run directory, or a session of an .onnx file."""
    from jaxtl.exporting import onnx

    if path.suffix == ".onnx":
        return onnx.load(path)
    import jax

    from jaxtl.training.predictor import load_run

    network = load_run(path).network
    compiled = jax.jit(lambda images: jax.nn.softmax(network(images)))
    return lambda images: np.asarray(compiled(images))


def seconds(path: Path, batch: int, size: int) -> float:
    """The median seconds of a call."""
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    classify = classifier(path)
    classify(images)
    found: list[float] = []
    while sum(found) < _SECONDS:
        begun = time.perf_counter()
        classify(images)
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def main() -> None:
    """Exports, measures and prints a table in Markdown."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--run", required=True, type=Path, metavar="DIR")
    flags.add_argument("--repeats", type=int, default=5, help="measurements of each [5]")
    given = flags.parse_args()

    from jaxtl.exporting.export import export_run, open_run
    from jaxtl.runs.directory import RunDirectory

    size = RunDirectory(given.run).config().model.image_size
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("float32", "int8")}
        for name, file in files.items():
            int8 = name == "int8"
            export_run(open_run(given.run, file, int8=int8), file, int8=int8)
        who = {"jaxtl": given.run} | {f"onnxruntime, {n}": file for n, file in files.items()}
        new = partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"))
        pools = {name: new() for name in who}
        cases = [(name, batch) for batch in _BATCHES for name in who]
        found: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
        for _ in range(given.repeats):
            for name, batch in cases:
                result = pools[name].submit(seconds, who[name], batch, size).result()
                found[name, batch].append(result)
                time.sleep(_PAUSE)
        for pool in pools.values():
            pool.shutdown()
    print(f"| {size} px | " + " | ".join(f"batch {batch}" for batch in _BATCHES) + " |")
    print("|---" * (1 + len(_BATCHES)) + "|")
    for name in who:
        times = [statistics.median(found[name, batch]) * 1e3 for batch in _BATCHES]
        print(f"| {name} | " + " | ".join(f"{ms:.1f} ms" for ms in times) + " |")


if __name__ == "__main__":
    main()
