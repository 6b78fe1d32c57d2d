"""How each row is measured; `rows.py` says which of these functions measures which row.

Each takes the bench and the name of a row, and returns what belongs in the results, by row: for
each competitor `values`, the seconds of each measurement, and perhaps `accuracy` and more.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

from benchmark.gpu import NETWORKS
from benchmark.jobs import FIRST_STEP
from benchmark.protocol import (
    COMPILED,
    FLOAT,
    INT8,
    OURS,
    PEERS,
    WEIGHTS,
    Finished,
    Sizes,
    Worker,
    run,
)

SINGLE_RUNS, ONE_BATCH, FILES = "64 single runs", "the same batch", "jaxtl, the files"
STEPS = ("forward", "frozen", "full", "full_frozen", "block_14")

_EXPORTED_BATCHES = 1, 32
_JOB = ("-m", "benchmark.jobs")
_WEIGHTS = f"--cfg.model.weights={WEIGHTS}"
_SEED = ("-m", "jaxtl.train", "--cfg", "seed.py", _WEIGHTS)
_PLAIN = ("views=1", "augment.shear=0", "augment.zoom=0", "augment.horizontal_flip=False")

Results = dict[str, Any]


class Bench(NamedTuple):
    """What every row is measured with.

    Attributes:
        sizes: the sizes of the inputs and the numbers of epochs.
        peers: the frameworks that are installed.
        repeats: the number of measurements of each row.
        seed_repeats: the same for what takes minutes: the seed job in Keras, the 64 single runs.
        folder: the folder for all written files.
    """

    sizes: Sizes
    peers: list[str]
    repeats: int
    seed_repeats: int
    folder: Path

    def worker(self, target: str, sizes: Sizes | None = None, **environment: str) -> Worker:
        """A process for a peer, or for another class."""
        target = PEERS[target][0] if target in PEERS else target
        return Worker(target, sizes or self.sizes, self.folder, **environment)

    def inputs(self, method: str, *arguments: Any) -> None:
        """Calls a method of `Inputs` in another process, since this one has to stay small."""
        with self.worker("benchmark.inputs:Inputs") as worker:
            worker.ask(method, *arguments)

    def new_folder(self) -> Path:
        """A folder that is not there yet."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / "new"

    def caches(self, programs: str = "programs") -> dict[str, str]:
        """The environment in which jaxtl finds its weights, no activations, and the compiled
        programs of the runs with the same `programs`.
        """
        home = self.new_folder() / "jaxtl"
        home.mkdir(parents=True)
        (self.folder / programs).mkdir(exist_ok=True)
        (home / "xla").symlink_to(self.folder / programs)
        (home / "weights").symlink_to(platformdirs.user_cache_path("jaxtl") / "weights")
        return {"XDG_CACHE_HOME": str(home.parent)}

    def in_turn(
        self, calls: Mapping[str, Callable[[], Any]], peer_repeats: int | None = None
    ) -> dict[str, list[Any]]:
        """What the calls of the competitors that are there return, one after the other, so that a
        busy minute meets all of them; `peer_repeats` are those of all but jaxtl.
        """
        there = [name for name in calls if name in self.peers or name not in PEERS]
        often = dict.fromkeys(there, peer_repeats or self.repeats) | {"jaxtl": self.repeats}
        done: dict[str, list[Any]] = {name: [] for name in there}
        for turn in range(max(often.values())):
            for name in (name for name in there if turn < often[name]):
                done[name].append(calls[name]())
        return done


def operation(bench: Bench, row: str) -> Results:
    """A step on one batch, or a pass over the JPEG files, in every framework.

    Each warms up, is measured in turn, and tells to what accuracy such steps train.
    """
    name = row.removesuffix("_pages")
    peers = [peer for peer in bench.peers if not (row.startswith("jpeg") and peer == COMPILED)]
    # jaxtl's commands take large pages by themselves.
    ours = ["jaxtl"] if row in ("full", "full_frozen") else []
    large = peers if row == "full_pages" else ours
    environment = {peer: {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} for peer in large}
    with contextlib.ExitStack() as stack:
        workers = {
            peer: stack.enter_context(bench.worker(peer, **environment.get(peer, {})))
            for peer in peers
        }
        for worker in workers.values():
            worker.ask("prepare", name)
        calls = {peer: partial(worker.ask, "seconds") for peer, worker in workers.items()}
        measured = _values(bench.in_turn(calls))
        peaks = {peer: {"values": [worker.ask("peak_bytes")]} for peer, worker in workers.items()}
        for peer, worker in workers.items() if row in STEPS else ():
            measured[peer]["accuracy"] = worker.ask("accuracy", row)
    return {row: measured} | ({f"{row}_memory": peaks} if row == "full_frozen" else {})


def data(bench: Bench, row: str) -> Results:
    """An epoch of steps on decoded files, and as many steps on one batch, in jaxtl."""
    with bench.worker("jaxtl") as fed, bench.worker("jaxtl") as one:
        fed.ask("prepare", "data")
        one.ask("prepare", "data:one")
        calls = {"jaxtl": partial(fed.ask, "seconds"), ONE_BATCH: partial(one.ask, "seconds")}
        return {row: _values(bench.in_turn(calls))}


def packed(bench: Bench, row: str) -> Results:
    """The JPEG files, packed, and as they are, in jaxtl."""
    with bench.worker("jaxtl") as one, bench.worker("jaxtl") as other:
        one.ask("prepare", "packed")
        other.ask("prepare", "jpeg")
        calls = {"jaxtl": partial(one.ask, "seconds"), FILES: partial(other.ask, "seconds")}
        return {row: _values(bench.in_turn(calls))}


def seed_job(bench: Bench, row: str) -> Results:
    """The seed job of jaxtl and of Keras from start to exit, their accuracies and peak memory.

    jaxtl finds compiled programs, and no activations; `cold_s` are its seconds without programs.
    """
    plain, epochs = row == "seed_plain", bench.sizes.job_epochs
    settings = (f"data.source={bench.folder / 'seed'}", f"phases.head.epochs={epochs}")
    command = (*_SEED, *_flags(*settings, *(_PLAIN if plain else ("views=8",))), "--workdir")
    keras = (*_JOB, "keras_seed", bench.folder, epochs, *["plain"] * plain)

    def jaxtl(programs: str = "programs") -> Finished:
        return run(*command, bench.new_folder(), **bench.caches(programs))

    cold = jaxtl(f"nothing-{row}")
    jaxtl()  # compiles
    done = bench.in_turn({"jaxtl": jaxtl, "Keras": lambda: run(*keras)}, bench.seed_repeats)
    measured, peaks = (_values(done, attrgetter(name)) for name in ("seconds", "peak_bytes"))
    lines = (done["jaxtl"][-1].arguments[-1] / "metrics.jsonl").read_text().splitlines()
    accuracies = [m["accuracy"] for m in map(json.loads, lines) if m["split"] == "val"]
    measured["jaxtl"] |= {"accuracy": accuracies[-1], "best": max(accuracies)}
    measured["jaxtl"] |= {"cold_s": cold.seconds}
    if "Keras" in done:
        measured["Keras"] |= json.loads(done["Keras"][-1].output.splitlines()[-1])
    return {row: measured} if plain else {row: measured, "memory": peaks}


def sweep(bench: Bench, row: str) -> Results:
    """64 heads on the same cached features: one sweep, and a process that trains one by one.

    Both from start to exit, with programs and activations cached, and their best accuracies.
    """
    epochs, warm = bench.sizes.sweep_epochs, bench.caches()
    flags = (_WEIGHTS, f"--cfg.phases.head.epochs={epochs}", "--workdir")
    command = ("-m", "jaxtl.sweep", "--cfg", "sweep_heads.py", *flags)

    def together() -> Finished:
        return run(*command, bench.new_folder(), **warm)

    def one_by_one(count: int = 64) -> Finished:
        return run(*_JOB, "single_runs", count, epochs, WEIGHTS, bench.new_folder(), **warm)

    together()  # compiles and fills the cache
    one_by_one(1)
    done = bench.in_turn({"jaxtl": together, SINGLE_RUNS: one_by_one}, bench.seed_repeats)
    measured = _values(done, attrgetter("seconds"))
    for name, ends in done.items():
        runs = [json.loads(file.read_text()) for file in ends[-1].arguments[-1].glob("*/run.json")]
        measured[name]["accuracy"] = max(run["result"]["accuracy"] for run in runs)
    return {row: measured}


def start(bench: Bench, row: str) -> Results:
    """From the command to its first trained step, in jaxtl with all caches warm, and in Keras."""
    flags, warm = ("--cfg", "mnv2.py", _WEIGHTS, "--workdir"), bench.caches()
    short = "--cfg.phases.finetune.epochs=1"
    run("-m", "jaxtl.train", *flags, bench.new_folder(), short, **warm)  # fills the caches
    jaxtl, keras = (*_JOB, "jaxtl_start", *flags), (*_JOB, "keras_start", bench.folder)
    calls = {
        "jaxtl": lambda: run(*jaxtl, bench.new_folder(), until=FIRST_STEP, **warm),
        "Keras": lambda: run(*keras, until=FIRST_STEP),
    }
    return {row: _values(bench.in_turn(calls), attrgetter("seconds"))}


def scaling(bench: Bench, row: str) -> Results:
    """Seconds of jaxtl as the work grows, by axis, line and number.

    A whole run without augmentation on more images; a step on larger images, with more trained
    stages, and on more simulated devices.
    """
    sizes, stages = bench.sizes, bench.sizes.grown_stages
    cached = {count: f"cached:{stage}" for count, stage in stages.items() if stage != "stem"}
    devices = "--xla_force_host_platform_device_count"
    with bench.worker("jaxtl") as worker:
        from_stage = {n: _step(worker, f"from:{stage}") for n, stage in stages.items()}
        from_cache = {n: _step(worker, operation) for n, operation in cached.items()}
    sides = {n: (sizes._replace(image_size=n), {}) for n in sizes.grown_sizes}
    counts = {n: (sizes, {"XLA_FLAGS": f"{devices}={n}"}) for n in sizes.grown_devices}
    grown = {
        "images": {"run": {count: _run_on(bench, count) for count in sizes.grown_images}},
        "image size": _steps(bench, sides),
        "trained stages": {"not cached": from_stage, "cached": from_cache},
        "simulated devices": _steps(bench, counts),
    }
    return {row: json.loads(json.dumps(grown))}  # with names in place of numbers, as they are read


def exported(bench: Bench, row: str) -> Results:
    """Networks in jaxtl and, exported, in onnxruntime, by network and batch; and its version."""
    found: Results = {}
    with contextlib.ExitStack() as stack:
        workers = {
            who: stack.enter_context(bench.worker("benchmark.onnx_peer:OnnxPeer"))
            for who in (OURS, FLOAT, INT8)
        }
        for network in NETWORKS:
            workers[OURS].ask("export", network)
            for batch in _EXPORTED_BATCHES:
                for who, worker in workers.items():
                    worker.ask("prepare", f"{who}/{network}/{batch}")
                calls = {who: partial(worker.ask, "seconds") for who, worker in workers.items()}
                found.setdefault(network, {})[str(batch)] = _values(bench.in_turn(calls))
        return {row: {"version": workers[FLOAT].ask("version"), "networks": found}}


def roofline(bench: Bench, row: str) -> Results:
    """The steps of jaxtl beside the most operations and bytes a second that this machine does."""
    with bench.worker("jaxtl") as worker:
        peaks, costs = worker.ask("peaks"), {name: worker.ask("cost", name) for name in STEPS}
        seconds = {name: {"seconds": _step(worker, name, bench.repeats)} for name in STEPS}
    return {row: {"peaks": peaks, "rows": {name: costs[name] | seconds[name] for name in STEPS}}}


def _values(done: Mapping[str, list[Any]], read: Callable[[Any], float] = float) -> Results:
    return {name: {"values": list(map(read, measured))} for name, measured in done.items()}


def _flags(*settings: str) -> list[str]:
    return [f"--cfg.{setting}" for setting in settings]


def _step(worker: Worker, operation: str, repeats: int = 3) -> float:
    worker.ask("prepare", operation)
    return statistics.median(worker.ask("seconds") for _ in range(repeats))


def _steps(bench: Bench, cases: Mapping[int, tuple[Sizes, dict[str, str]]]) -> Results:
    """Seconds of three steps by number: a process for each, with its sizes and environment."""
    lines: dict[str, dict[int, float]] = {"forward": {}, "frozen": {}, "full": {}}
    for number, (sizes, environment) in cases.items():
        with bench.worker("jaxtl", sizes, **environment) as worker:
            for name, points in lines.items():
                points[number] = _step(worker, name)
    return lines


def _run_on(bench: Bench, count: int) -> float:
    """Seconds of the seed job without augmentation on so many images, from start to exit."""
    images, sizes = bench.new_folder(), bench.sizes
    bench.inputs("grow", images, count)
    size, epochs = f"model.image_size={sizes.run_size}", f"phases.head.epochs={sizes.run_epochs}"
    flags = _flags(f"data.source={images}", size, epochs, *_PLAIN)
    return run(*_SEED, *flags, "--workdir", bench.new_folder(), **bench.caches()).seconds
