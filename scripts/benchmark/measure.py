"""Measures rows: a step in every framework in turn, or whole jobs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark import jobs, material, scaling
from benchmark.goals import ONE_BATCH, PEERS_OF
from benchmark.material import Material
from benchmark.processes import run
from benchmark.protocol import LARGE_PAGES, STEP_ROWS, Setup
from benchmark.sizes import Sizes
from benchmark.workers import Worker

OPERATIONS = (*STEP_ROWS, "jpeg", "jpeg_smooth", f"full{LARGE_PAGES}")
JOBS = ("data", "seed", "seed_plain", "sweep", "start", "scaling", "roofline")

_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

Row = dict[str, dict[str, Any]]
"""By peer: `values`, one a measurement, and perhaps `accuracy` and more."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """Everything that is measured on the CPU.

    Attributes:
        sizes: how much.
        peers: the frameworks that are there.
        repeats: measurements of each row.
        seed_repeats: runs of what takes minutes: the seed job in Keras, the 64 single runs.
        folder: for everything that is written; an empty one.
    """

    sizes: Sizes
    peers: Sequence[str]
    repeats: int
    seed_repeats: int
    folder: Path

    def rows(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Measures rows: operations in all frameworks in turn, then whole jobs.

        Yields:
            The name of each row and what was measured, by where it belongs in the results.
        """
        sizes = self.sizes
        made = material.prepare(
            self.folder / "material",
            image_size=sizes.image_size,
            train=sizes.train,
            val=sizes.val,
            jpegs=sizes.jpegs,
        )
        setup = Setup(
            batch_size=sizes.batch,
            image_size=sizes.image_size,
            weights=str(made.weights),
            images=str(made.images),
            jpegs=str(made.jpegs),
            seconds=sizes.seconds,
            calls=sizes.calls,
            epochs=sizes.epochs,
        )
        asked = [name for name in names if name in OPERATIONS]
        large = [name for name in asked if name.endswith(LARGE_PAGES)]
        yield from self._operations([name for name in asked if name not in large], setup, {})
        yield from self._operations(large, setup, _LARGE_PAGES)
        caches = jobs.Caches(self.folder / "caches")
        for name in (name for name in names if name in JOBS):
            if name == "scaling":
                grown = self.folder / "grown"
                yield name, {name: scaling.measure(made, caches, grown, setup, sizes.scales)}
            elif name == "roofline":
                yield name, {name: roofline(setup, self.repeats)}
            elif name == "data":
                row = data(setup, self.repeats)
                _say(name, row)
                yield name, {"rows": {name: row}}
            else:
                rows = self._job(name, made, caches)
                _say(name, rows[name])
                yield name, {"rows": rows}

    def _operations(
        self, names: Sequence[str], setup: Setup, extra: Mapping[str, str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in names:
            operation = name.removesuffix(LARGE_PAGES)
            peers = [peer for peer in self.peers if peer in ("jaxtl", *PEERS_OF[name])]
            with contextlib.ExitStack() as stack:
                workers = {peer: stack.enter_context(Worker(peer, setup, extra)) for peer in peers}
                for worker in workers.values():
                    worker.ask("prepare", operation)
                row: Row = {peer: {"values": []} for peer in peers}
                for _ in range(self.repeats):
                    for peer, worker in workers.items():
                        row[peer]["values"].append(worker.ask("time", operation))
                for peer, worker in workers.items():
                    if name.startswith("jpeg"):
                        row[peer]["images"] = self.sizes.jpegs
                    elif name in STEP_ROWS:
                        row[peer]["accuracy"] = worker.ask("learn", name)
            _say(name, row)
            yield name, {"rows": {name: row}}

    def _job(self, name: str, made: Material, caches: jobs.Caches) -> dict[str, Row]:
        keras = "Keras" in self.peers
        if name == "start":
            return {name: jobs.start_row(made, caches, repeats=self.repeats, keras=keras)}
        if name == "sweep":
            return {
                name: jobs.sweep_row(
                    caches,
                    epochs=self.sizes.sweep_epochs,
                    repeats=self.repeats,
                    peer_repeats=self.seed_repeats,
                )
            }
        row = jobs.seed_row(
            made,
            caches,
            plain=name == "seed_plain",
            epochs=self.sizes.job_epochs,
            repeats=self.repeats,
            peer_repeats=self.seed_repeats if keras else 0,
        )
        peaks = {peer: {"values": measured.pop("peak_bytes")} for peer, measured in row.items()}
        return {name: row} if name == "seed_plain" else {name: row, "memory": peaks}


def data(setup: Setup, repeats: int) -> Row:
    """Steps on batch after batch of decoded files, and as many on the same batch."""
    with Worker("jaxtl", setup) as fed, Worker("jaxtl", setup) as one:
        fed.ask("prepare", "data")
        one.ask("prepare", "data:one")
        row: Row = {"jaxtl": {"values": []}, ONE_BATCH: {"values": []}}
        for _ in range(repeats):
            row["jaxtl"]["values"].append(fed.ask("time", "data"))
            row[ONE_BATCH]["values"].append(one.ask("time", "data:one"))
    return row


def roofline(setup: Setup, repeats: int) -> dict[str, Any]:
    """Holds steps of jaxtl against what the machine can do."""
    rows = {}
    with Worker("jaxtl", setup) as worker:
        limits = worker.ask("peaks", "")
        for name in STEP_ROWS:
            cost = worker.ask("cost", name)
            worker.ask("prepare", name)
            seconds = statistics.median(worker.ask("time", name) for _ in range(repeats))
            rows[name] = {**cost, "seconds": seconds}
    return {"peaks": limits, "rows": rows}


def gpu(weights: Path) -> dict[str, Any]:
    """Measures jaxtl on the first GPU."""
    first = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "0"}
    done = run(["-m", "benchmark.gpu_worker", str(weights)], first)
    return json.loads(done.output.splitlines()[-1])


def _say(name: str, row: Row) -> None:
    middles = (f"{peer} {statistics.median(of['values']):.3g} s" for peer, of in row.items())
    print(f"{name}: {', '.join(middles)}", flush=True)
