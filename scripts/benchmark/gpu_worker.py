"""jaxtl on a GPU in bfloat16; `scripts/bench.py --device gpu` runs it.

    python -m benchmark.gpu_worker WEIGHTS

The last line is a JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmark.jaxtl_model import NETWORK, Training
from benchmark.protocol import CLASSES, Setup
from benchmark.roofline import peaks, program_cost
from jaxtl.cli import keep_compiled_programs
from jaxtl.config.config_file import Phase
from jaxtl.models import build, merge, split
from jaxtl.training.parallel import shard

DTYPE = "bfloat16"
SIZE = 224
BATCHES = (256, 1024)
STEPS_PER_CALL = 64  # of training on cached features
CALLS, REPEATS = 20, 5

_PHASES = {
    "forward": Phase(name="bench", train={"head/.*": 1.0}, epochs=1),
    "frozen": Phase(name="bench", train={"head/.*": 1.0}, epochs=1),
    "full": Phase(name="bench", train={".*": 1.0}, epochs=1, batch_norm="train"),
}


def main() -> None:
    """Measures and prints."""
    keep_compiled_programs()
    weights = sys.argv[1]
    limits = peaks(DTYPE, side=8192, numbers=2**29)
    rows = [_row(weights, row, batch, limits) for batch in BATCHES for row in _PHASES]
    stages = _stages(BATCHES[0], limits)
    worst = min(stages, key=lambda stage: stages[stage]["roofline"])
    metadata = {
        "device": jax.local_devices()[0].device_kind,
        "peaks": limits,
        "rows": [*rows, _head(weights, BATCHES[-1])],
        "stages": stages,
        "worst": {"stage": worst, "kernels": _profile(_stage(worst, BATCHES[0]))},
    }
    print(json.dumps(metadata))


def _row(weights: str, row: str, batch: int, limits: dict[str, float]) -> dict[str, object]:
    """Images a second, and the share of what the memory's bandwidth allows."""
    training = Training(weights, SIZE, _PHASES[row], steps_per_epoch=100, dtype=DTYPE)
    images, labels = Setup(batch, SIZE, weights, "", "", 0.0, 1, 1).batch()
    if row == "forward":
        sharded = shard(images, training.devices)
        cost = training.predict_cost(sharded)
        seconds = _seconds(lambda: training.predict(sharded))
    else:
        chunk = training.chunk(images, labels)
        cost = training.train_cost(chunk)
        seconds = _seconds(lambda: training.train(chunk))
    return {
        "row": row,
        "batch": batch,
        "per_second": batch / seconds,
        "roofline": cost["bytes"] / limits["bytes"] / seconds,
    }


def _head(weights: str, batch: int) -> dict[str, object]:
    """Training on cached features: features a second."""
    phase = _PHASES["frozen"]
    training = Training(weights, SIZE, phase, steps_per_epoch=100, cached=True, dtype=DTYPE)
    features = training.variables["head/kernel"].shape[0]
    random = np.random.default_rng(0)
    table = jnp.asarray(random.standard_normal((batch, features), np.float32))
    labels = random.integers(0, CLASSES, batch, dtype=np.int32)
    chunk = training.chunk(np.arange(batch, dtype=np.int32), labels, steps=STEPS_PER_CALL)
    seconds = _seconds(lambda: training.train(chunk, table))
    return {"row": "head", "batch": batch, "per_second": batch * STEPS_PER_CALL / seconds}


def _stages(batch: int, limits: dict[str, float]) -> dict[str, dict[str, float]]:
    """Of each stage's forward pass, the seconds and the share of the roofline."""
    measured = {}
    for stage in build(NETWORK, num_classes=CLASSES).between("stem", "pool"):
        call = _stage(stage, batch)
        cost, seconds = program_cost(*call), _seconds(lambda call=call: call[0](*call[1:]))
        best = max(cost["flops"] / limits["flops"], cost["bytes"] / limits["bytes"])
        measured[stage] = {"seconds": seconds, "roofline": best / seconds}
    return measured


def _stage(stage: str, batch: int) -> tuple[Callable[..., jax.Array], dict, jax.Array]:
    """A stage as a compiled function, its variables and its input."""
    network = build(NETWORK, num_classes=CLASSES, dtype=DTYPE)
    graph, variables = split(network)
    following = (*network.between(stage, None), None)[1]
    run = jax.jit(lambda variables, x: merge(graph, variables)(x, start=stage, stop=following))
    shape = (batch, SIZE, SIZE, 3)
    before = jax.eval_shape(lambda x: network(x, stop=stage), jax.ShapeDtypeStruct(shape, np.uint8))
    return run, variables, jnp.ones(before.shape, before.dtype)


def _seconds(call: Callable[[], object]) -> float:
    """The median over repeats of the mean of some calls, one queued behind the other."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        for _ in range(CALLS):
            result = call()
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - begun) / CALLS)
    return statistics.median(seconds)


def _profile(call: tuple[Callable[..., jax.Array], dict, jax.Array]) -> dict[str, float]:
    """Microseconds of each kernel in one call, the longest first."""
    run, *given = call
    run(*given).block_until_ready()
    totals: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(*given).block_until_ready()
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if plane.name.startswith("/device:GPU"):
                for line in plane.lines:
                    if line.name.startswith("Stream"):
                        for event in line.events:
                            totals[event.name] += event.duration_ns / 1e3
    return dict(totals.most_common(10))


if __name__ == "__main__":
    main()
