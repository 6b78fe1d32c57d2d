"""jaxtl on the first GPU in bfloat16; `scripts/bench.py --device gpu` measures it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmark.jaxtl_peer import NETWORK, JaxtlPeer, Program
from benchmark.protocol import CLASSES, Sizes
from benchmark.roofline import peaks, program_cost
from jaxtl.models import build, merge, split

DTYPE, IMAGE_SIZE, BATCHES = "bfloat16", 224, (256, 1024)
STEPS_PER_CALL = 64  # of training on cached features
CALLS, REPEATS = 20, 5
MATRIX, NUMBERS = 8192, 2**29  # to measure the peaks with


class GpuPeer(JaxtlPeer):
    """jaxtl on a GPU; a measurement is the median of some means of calls queued in a row."""

    def __init__(self, sizes: Sizes, folder: Path):
        super().__init__(sizes._replace(image_size=IMAGE_SIZE), folder, dtype=DTYPE)

    def everything(self) -> dict[str, Any]:
        """All that is measured.

        Returns:
            `device`: its name; `peaks`: operations and bytes a second at best; `rows`: images a
            second by row and batch; `stages`: seconds of each stage's forward pass, and the
            fraction of the roofline that it reaches; `worst`: the kernels of the lowest of these.
        """
        limits = peaks(DTYPE, side=MATRIX, numbers=NUMBERS)
        rows = ("forward", "frozen", "full")
        measured = [self._row(row, batch, limits) for batch in BATCHES for row in rows]
        names = build(NETWORK, num_classes=CLASSES).between("stem", "pool")
        stages = {name: _reached(name, limits) for name in names}
        worst = min(stages, key=lambda name: stages[name]["roofline"])
        return {
            "device": jax.local_devices()[0].device_kind,
            "peaks": limits,
            "rows": [*measured, self._head(BATCHES[-1])],
            "stages": stages,
            "worst": {"stage": worst, "kernels": _kernels(worst)},
        }

    def _row(self, row: str, batch: int, limits: dict[str, float]) -> dict[str, Any]:
        """Images a second, and the fraction of what the memory's bandwidth allows."""
        self.sizes = self.sizes._replace(batch=batch)
        call, cost = self.program(row)
        best = cost()["bytes"] / limits["bytes"]
        seconds = _seconds(call)
        measured = {"per_second": batch / seconds, "roofline": best / seconds}
        return {"row": row, "batch": batch, **measured}

    def _head(self, batch: int) -> dict[str, Any]:
        """Training on cached features: features a second."""
        training, random = self.training("frozen", cached=True), np.random.default_rng(0)
        features = len(training.state.variables["head/kernel"])
        table = jnp.asarray(random.standard_normal((batch, features), np.float32))
        labels = random.integers(0, CLASSES, batch, dtype=np.int32)
        chunk = training.chunk(np.arange(batch, dtype=np.int32), labels, steps=STEPS_PER_CALL)
        seconds = _seconds(training.train(table, chunk)[0])
        return {"row": "head", "batch": batch, "per_second": batch * STEPS_PER_CALL / seconds}


def _stage(name: str) -> Program:
    """A stage's forward pass."""
    network = build(NETWORK, num_classes=CLASSES, dtype=DTYPE)
    graph, variables = split(network)
    following = (*network.between(name, None), None)[1]
    run = jax.jit(lambda variables, x: merge(graph, variables)(x, start=name, stop=following))
    images = jax.ShapeDtypeStruct((BATCHES[0], IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    before = jax.eval_shape(lambda x: network(x, stop=name), images)
    given = variables, jnp.ones(before.shape, before.dtype)
    return partial(run, *given), partial(program_cost, run, *given)


def _reached(stage: str, limits: dict[str, float]) -> dict[str, float]:
    call, cost = _stage(stage)
    best = max(operations / limits[of] for of, operations in cost().items())
    seconds = _seconds(call)
    return {"seconds": seconds, "roofline": best / seconds}


def _seconds(call: Callable[[], Any]) -> float:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        for _ in range(CALLS):
            result = call()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - begun) / CALLS)
    return statistics.median(seconds)


def _kernels(stage: str) -> dict[str, float]:
    """Microseconds of each kernel in one call, the longest first."""
    call, totals = _stage(stage)[0], Counter[str]()
    call().block_until_ready()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call().block_until_ready()
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines if plane.name.startswith("/device:GPU") else ():
                for event in line.events if line.name.startswith("Stream") else ():
                    totals[event.name] += event.duration_ns / 1e3
    return dict(totals.most_common(10))
