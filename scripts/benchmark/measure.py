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
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import platformdirs

from benchmark.jobs import FIRST_STEP
from benchmark.protocol import COMPILED, PEERS, WEIGHTS, Finished, Sizes, Worker, run

SINGLE_RUNS = "64 single runs"
ONE_BATCH = "the same batch"
STEPS = ("forward", "frozen", "full", "block_14")

_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_GROWN_REPEATS = 3
_PLAIN = ("views=1", "augment.shear=0", "augment.zoom=0", "augment.horizontal_flip=False")

Results = dict[str, Any]
T = TypeVar("T")


class Bench(NamedTuple):
    """What every row is measured with.

    Attributes:
        sizes: how much.
        peers: the frameworks that are there.
        repeats: measurements of each row.
        seed_repeats: runs of what takes minutes: the seed job in Keras, the 64 single runs.
        folder: for everything that is written.
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
        """Calls a method of `Inputs`, apart: this process has to stay small."""
        with self.worker("benchmark.inputs:Inputs") as worker:
            worker.ask(method, *arguments)

    def new_folder(self) -> Path:
        """A folder that is not there yet."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / "new"

    def caches(self, *, programs: bool = True) -> dict[str, str]:
        """The environment in which jaxtl finds weights and no activations, and compiled programs
        of earlier runs if they are asked for.
        """
        home, stored = self.new_folder(), self.folder / "xla"
        (home / "jaxtl").mkdir(parents=True)
        (home / "jaxtl/weights").symlink_to(platformdirs.user_cache_path("jaxtl") / "weights")
        if programs:
            stored.mkdir(exist_ok=True)
            (home / "jaxtl/xla").symlink_to(stored)
        return {"XDG_CACHE_HOME": str(home)}


def operation(bench: Bench, row: str) -> Results:
    """A step on one batch, or a pass over the JPEG files, in every framework.

    Each warms up, is measured in turn, and tells to what accuracy such steps train.
    """
    name = row.removesuffix("_pages")
    environment = {} if name == row else _LARGE_PAGES
    decodes = row.startswith("jpeg")
    peers = [peer for peer in bench.peers if not (decodes and peer == COMPILED)]
    with contextlib.ExitStack() as stack:
        workers = {p: stack.enter_context(bench.worker(p, **environment)) for p in peers}
        for worker in workers.values():
            worker.ask("prepare", name)
        calls = {peer: partial(worker.ask, "seconds") for peer, worker in workers.items()}
        measured = _values(_in_turn(calls, bench.repeats))
        for peer, worker in workers.items() if row in STEPS else ():
            measured[peer]["accuracy"] = worker.ask("accuracy", row)
    return {row: measured}


def data(bench: Bench, row: str) -> Results:
    """An epoch of steps on decoded files, and as many steps on one batch, in jaxtl."""
    with bench.worker("jaxtl") as fed, bench.worker("jaxtl") as one:
        fed.ask("prepare", "data")
        one.ask("prepare", "data:one")
        calls = {"jaxtl": partial(fed.ask, "seconds"), ONE_BATCH: partial(one.ask, "seconds")}
        return {row: _values(_in_turn(calls, bench.repeats))}


def seed_job(bench: Bench, row: str) -> Results:
    """The seed job of jaxtl and of Keras from start to exit, their accuracies and peak memory.

    jaxtl finds compiled programs, and no activations; `cold_s` are its seconds without programs.
    """
    plain, epochs = row == "seed_plain", bench.sizes.job_epochs
    settings = (f"data.source={bench.folder / 'seed'}", f"phases.head.epochs={epochs}")
    jaxtl = partial(_train, bench, "seed.py", *settings, *(_PLAIN if plain else ("views=8",)))
    job = ("-m", "benchmark.jobs", "keras_seed", bench.folder, epochs, *["plain"] * plain)
    cold = jaxtl(environment=bench.caches(programs=False))[0]
    jaxtl(environment=bench.caches())  # compiles
    calls = {
        "jaxtl": lambda: jaxtl(environment=bench.caches()),
        "Keras": lambda: (run(*job), bench.folder),
    }
    done = _in_turn(_there(bench, calls), bench.repeats, bench.seed_repeats)
    measured = _values({peer: [end.seconds for end, _ in ends] for peer, ends in done.items()})
    lines = (done["jaxtl"][-1][1] / "metrics.jsonl").read_text().splitlines()
    accuracies = [of["accuracy"] for of in map(json.loads, lines) if of["split"] == "val"]
    measured["jaxtl"] |= {"accuracy": accuracies[-1], "best": max(accuracies)}
    measured["jaxtl"] |= {"cold_s": cold.seconds}
    if "Keras" in done:
        measured["Keras"] |= json.loads(done["Keras"][-1][0].output.splitlines()[-1])
    peaks = _values({peer: [end.peak_bytes for end, _ in ends] for peer, ends in done.items()})
    return {row: measured} if plain else {row: measured, "memory": peaks}


def sweep(bench: Bench, row: str) -> Results:
    """64 heads on the same cached features: one sweep, and a process that trains one by one.

    Both from start to exit, with programs and activations cached, and their best accuracies.
    """
    epochs, warm, folders = bench.sizes.sweep_epochs, bench.caches(), {}
    flags = (f"--cfg.phases.head.epochs={epochs}", f"--cfg.model.weights={WEIGHTS}")

    def together() -> float:
        folders["jaxtl"] = folder = bench.new_folder()
        command = ("-m", "jaxtl.sweep", "--cfg", "sweep_heads.py", *flags, "--workdir", folder)
        return run(*command, **warm).seconds

    def one_by_one(count: int = 64) -> float:
        folders[SINGLE_RUNS] = folder = bench.new_folder()
        job = ("-m", "benchmark.jobs", "single_runs", folder, count, epochs, WEIGHTS)
        return run(*job, **warm).seconds

    together()  # compiles and fills the cache
    one_by_one(1)
    calls = {"jaxtl": together, SINGLE_RUNS: one_by_one}
    measured = _values(_in_turn(calls, bench.repeats, bench.seed_repeats))
    for name, folder in folders.items():
        runs = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
        measured[name]["accuracy"] = max(of["result"]["accuracy"] for of in runs)
    return {row: measured}


def start(bench: Bench, row: str) -> Results:
    """From the command to its first trained step, in jaxtl with all caches warm, and in Keras."""
    warm = bench.caches()
    _train(bench, "mnv2.py", "phases.finetune.epochs=1", environment=warm)  # fills the caches
    command = ("-m", "benchmark.jobs", "jaxtl_start", "--cfg", "mnv2.py", "--workdir")
    flag = f"--cfg.model.weights={WEIGHTS}"
    keras = ("-m", "benchmark.jobs", "keras_start", bench.folder)
    until = partial(run, until=FIRST_STEP)
    calls = {
        "jaxtl": lambda: until(*command, bench.new_folder(), flag, **warm).seconds,
        "Keras": lambda: until(*keras).seconds,
    }
    return {row: _values(_in_turn(_there(bench, calls), bench.repeats))}


def scaling(bench: Bench, row: str) -> Results:
    """Seconds of jaxtl as the work grows, by axis, line and number.

    A whole run without augmentation on more images; a step on larger images, with more trained
    stages, and on more simulated devices.
    """
    sizes, flag = bench.sizes, "--xla_force_host_platform_device_count"
    runs, stages = {}, ({}, {})
    for count in sizes.grown_images:
        images, side = bench.new_folder(), f"model.image_size={sizes.run_size}"
        bench.inputs("grow", images, count)
        epochs = f"phases.head.epochs={sizes.run_epochs}"
        settings = (f"data.source={images}", side, epochs, *_PLAIN)
        done, _ = _train(bench, "seed.py", *settings, environment=bench.caches())
        runs[count] = done.seconds
    with bench.worker("jaxtl") as worker:
        for count, stage in sizes.grown_stages.items():
            stages[0][count] = _step(worker, f"from:{stage}")
            if stage != "stem":
                stages[1][count] = _step(worker, f"cached:{stage}")
    larger, more = {}, {}
    for side in sizes.grown_sizes:
        with bench.worker("jaxtl", sizes._replace(image_size=side)) as worker:
            larger[side] = {name: _step(worker, name) for name in STEPS[:3]}
    for count in sizes.grown_devices:
        with bench.worker("jaxtl", XLA_FLAGS=f"{flag}={count}") as worker:
            more[count] = {name: _step(worker, name) for name in STEPS[:3]}
    grown = {
        "images": {"run": runs},
        "image size": {name: {n: of[name] for n, of in larger.items()} for name in STEPS[:3]},
        "trained stages": {"not cached": stages[0], "cached": stages[1]},
        "simulated devices": {name: {n: of[name] for n, of in more.items()} for name in STEPS[:3]},
    }
    return {row: json.loads(json.dumps(grown))}  # with names in place of numbers, as they are read


def roofline(bench: Bench, row: str) -> Results:
    """The steps of jaxtl beside the most operations and bytes a second that this machine does."""
    rows = {}
    with bench.worker("jaxtl") as worker:
        peaks = worker.ask("peaks")
        for name in STEPS:
            cost = worker.ask("cost", name)
            rows[name] = {**cost, "seconds": _step(worker, name, bench.repeats)}
    return {row: {"peaks": peaks, "rows": rows}}


def gpu(bench: Bench, _: str) -> Results:
    """jaxtl on the first GPU, see `gpu.py`."""
    first = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "0"}
    with bench.worker("benchmark.gpu:GpuPeer", **first) as worker:
        return {"metadata": worker.ask("everything")}


def _there(bench: Bench, calls: Mapping[str, T]) -> dict[str, T]:
    """Those of the frameworks that are installed."""
    return {peer: call for peer, call in calls.items() if peer in bench.peers}


def _in_turn(
    calls: Mapping[str, Callable[[], T]], repeats: int, peer_repeats: int | None = None
) -> dict[str, list[T]]:
    """What each call returns so many times, one after the other: a busy minute meets all of them.

    Args:
        calls: by competitor.
        repeats: of each.
        peer_repeats: of all but jaxtl, if they are other ones.
    """
    often = dict.fromkeys(calls, repeats if peer_repeats is None else peer_repeats)
    often["jaxtl"] = repeats
    results: dict[str, list[T]] = {name: [] for name in calls}
    for turn in range(max(often.values())):
        for name in (name for name in calls if turn < often[name]):
            results[name].append(calls[name]())
    return results


def _values(measured: Mapping[str, list[float]]) -> Results:
    return {name: {"values": values} for name, values in measured.items()}


def _step(worker: Worker, row: str, repeats: int = _GROWN_REPEATS) -> float:
    """Seconds of a step, the median of some measurements."""
    worker.ask("prepare", row)
    return statistics.median(worker.ask("seconds") for _ in range(repeats))


def _train(
    bench: Bench, config: str, *settings: str, environment: dict[str, str]
) -> tuple[Finished, Path]:
    """Runs `jaxtl.train` with settings such as `views=8`; its end and its run directory."""
    flags = [f"--cfg.{setting}" for setting in (f"model.weights={WEIGHTS}", *settings)]
    workdir = bench.new_folder()
    command = ("-m", "jaxtl.train", "--cfg", config, *flags, "--workdir", workdir)
    return run(*command, **environment), workdir
