"""The rows that are whole processes: jaxtl's commands, and Keras programs that do the same."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import platformdirs

from benchmark.goals import SINGLE_RUNS
from benchmark.material import WEIGHTS, Material
from benchmark.processes import Finished, run, run_until
from benchmark.protocol import FIRST_STEP


class Caches:
    """Cache directories for runs of jaxtl: empty ones, but for the weights.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._numbers = itertools.count()

    def empty(self, *, programs: bool) -> dict[str, str]:
        """The environment with an empty cache of activations.

        Args:
            programs: keep the compiled programs of all runs that asked for it.
        """
        home = self._folder / f"cache-{next(self._numbers)}"
        cache = home / "jaxtl"
        cache.mkdir(parents=True)
        (cache / "weights").symlink_to(platformdirs.user_cache_path("jaxtl") / "weights")
        if programs:
            kept = self._folder / "xla"
            kept.mkdir(exist_ok=True)
            (cache / "xla").symlink_to(kept)
        return {"XDG_CACHE_HOME": str(home)}

    def new_workdir(self) -> Path:
        """A run directory that is not there yet."""
        return self._folder / f"run-{next(self._numbers)}"


def seed_row(
    material: Material, caches: Caches, *, plain: bool, epochs: int, repeats: int, peer_repeats: int
) -> dict[str, dict[str, Any]]:
    """The seed job from start to exit.

    Args:
        material: its images and weights.
        caches: for jaxtl's runs: compiled programs are kept, activations are not.
        plain: without augmentation.
        epochs: passes over the training images.
        repeats: runs of jaxtl.
        peer_repeats: runs of Keras, of which jaxtl's are spread out; 0 where it is absent.

    Returns:
        For `jaxtl` and `Keras`: seconds and peak bytes of each run and the accuracy of the last;
        `cold_s` of a run of jaxtl with nothing compiled before.
    """
    arguments = _seed_flags(material, plain=plain, epochs=epochs)
    cold = run([*arguments, str(caches.new_workdir())], caches.empty(programs=False))
    run([*arguments, str(caches.new_workdir())], caches.empty(programs=True))
    keras = ["-m", "benchmark.keras_seed", str(material.seed), str(material.weights), str(epochs)]
    ours: list[Finished] = []
    theirs: list[Finished] = []
    for repeat in range(max(repeats, peer_repeats)):
        if repeat < repeats:
            workdir = caches.new_workdir()
            ours.append(run([*arguments, str(workdir)], caches.empty(programs=True)))
        if repeat < peer_repeats:
            theirs.append(run([*keras, *(["--plain"] if plain else [])]))
    row = {"jaxtl": {**_measured(ours), **_result(workdir), "cold_s": cold.seconds}}
    if theirs:
        row["Keras"] = {**_measured(theirs), **json.loads(theirs[-1].output.splitlines()[-1])}
    return row


def start_row(
    material: Material, caches: Caches, *, repeats: int, keras: bool
) -> dict[str, dict[str, Any]]:
    """From the command to its first trained step, all caches of jaxtl warm.

    Args:
        material: for the weights.
        caches: for jaxtl's runs.
        repeats: runs of either.
        keras: whether Keras is there.
    """
    flags = ["--cfg", "mnv2.py", f"--cfg.model.weights={WEIGHTS}"]
    warm = caches.empty(programs=True)
    run(["-m", "jaxtl.train", *flags, "--cfg.phases.finetune.epochs=1", *_into(caches)], warm)
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(
            run_until(["-m", "benchmark.jaxtl_start", *flags, *_into(caches)], FIRST_STEP, warm)
        )
        if keras:
            program = ["-m", "benchmark.keras_start", str(material.weights)]
            theirs.append(run_until(program, FIRST_STEP))
    row = {"jaxtl": {"values": ours}}
    return row | ({"Keras": {"values": theirs}} if theirs else {})


def sweep_row(
    caches: Caches, *, epochs: int, repeats: int, peer_repeats: int
) -> dict[str, dict[str, Any]]:
    """64 heads on the same cached features: one sweep, and one run after the other.

    Args:
        caches: for both.
        epochs: of each head.
        repeats: runs of the sweep.
        peer_repeats: of the single runs, a process for all 64.

    Returns:
        For both the seconds of each process and the accuracy of the best head.
    """
    flags = [f"--cfg.phases.head.epochs={epochs}", f"--cfg.model.weights={WEIGHTS}"]
    together = ["-m", "jaxtl.sweep", "--cfg", "sweep_heads.py", *flags, "--workdir"]
    alone = ["-m", "benchmark.single_runs"]
    warm = caches.empty(programs=True)
    run([*together, str(caches.new_workdir())], warm)
    run([*alone, str(caches.new_workdir()), "1", str(epochs), WEIGHTS], warm)
    ours: list[float] = []
    theirs: list[float] = []
    for repeat in range(max(repeats, peer_repeats)):
        if repeat < repeats:
            sweep = caches.new_workdir()
            ours.append(run([*together, str(sweep)], warm).seconds)
        if repeat < peer_repeats:
            single = caches.new_workdir()
            theirs.append(run([*alone, str(single), "64", str(epochs), WEIGHTS], warm).seconds)
    return {
        "jaxtl": {"values": ours, "accuracy": _best(sweep)},
        SINGLE_RUNS: {"values": theirs, "accuracy": _best(single)},
    }


def grown_job(images: Path, caches: Caches, *, size: int, epochs: int) -> float:
    """Seconds of the seed job without augmentation on other images, start to exit."""
    arguments = [
        *("-m", "jaxtl.train", "--cfg", "seed.py", f"--cfg.model.weights={WEIGHTS}"),
        *(f"--cfg.data.source={images}", f"--cfg.model.image_size={size}", "--cfg.views=1"),
        *(f"--cfg.phases.head.epochs={epochs}", *_PLAIN),
    ]
    return run([*arguments, *_into(caches)], caches.empty(programs=True)).seconds


_PLAIN = tuple(f"--cfg.augment.{off}" for off in ("shear=0", "zoom=0", "horizontal_flip=False"))


def _seed_flags(material: Material, *, plain: bool, epochs: int) -> list[str]:
    """The command up to the run directory."""
    return [
        *("-m", "jaxtl.train", "--cfg", "seed.py", f"--cfg.data.source={material.seed}"),
        *(f"--cfg.model.weights={WEIGHTS}", f"--cfg.phases.head.epochs={epochs}"),
        *([*_PLAIN, "--cfg.views=1"] if plain else ["--cfg.views=8"]),
        "--workdir",
    ]


def _into(caches: Caches) -> tuple[str, str]:
    return "--workdir", str(caches.new_workdir())


def _measured(runs: list[Finished]) -> dict[str, Any]:
    return {
        "values": [finished.seconds for finished in runs],
        "peak_bytes": [finished.peak_bytes for finished in runs],
    }


def _result(workdir: Path) -> dict[str, float]:
    """The last validation accuracy of a run of jaxtl and the best one."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    accuracies = [line["accuracy"] for line in lines if line["split"] == "val"]
    return {"accuracy": accuracies[-1], "best": max(accuracies)}


def _best(folder: Path) -> float:
    """The best accuracy of the runs in a folder."""
    runs = [json.loads(path.read_text()) for path in folder.glob("*/run.json")]
    return max(metadata["result"]["accuracy"] for metadata in runs)
