"""Prints the tables of docs/scaling.md: what 1 to 1,024 accelerators allow, by their compilers.

    pip install -e '.[compile-tpu,compile-gpu]'
    python scripts/scaling.py [gpu:h100 tpu:v5e]

It compiles the training steps of MobileNetV2 and ResNet-50 in bfloat16 at 224 px for eight
accelerators of each kind, and derives the other numbers of them: the bytes and operations of one
accelerator hardly change with their number (a single one moves up to 3 % fewer), nor does the size
of what is added up. It takes about 5 minutes for H100 on two cores.
"""

from __future__ import annotations

import dataclasses
import sys

from jaxtl.forecast.target import prepare_environment, target

prepare_environment()  # before jax is imported

from jaxtl.config import Cache, Config, Data, Model, Phase, everything, from_stage, head_only  # noqa: E402
from jaxtl.errors import UserError  # noqa: E402
from jaxtl.forecast.bounds import speeds  # noqa: E402
from jaxtl.forecast.program import Program  # noqa: E402
from jaxtl.forecast.target import Target  # noqa: E402
from jaxtl.training.forecast import training_programs  # noqa: E402

_COUNTS = (1, 8, 64, 256, 1024)
_EACH = {"gpu:h100": 256, "tpu:v5e": 128}  # images
_IMAGES = 1_281_167  # of ImageNet, for the size of the table of activations
_JPEGS_A_CORE = 421  # images/s: 842 on two cores, `JPEG decode and resize` in docs/benchmarks.md
_PHASES = {
    "mobilenet_v2": {
        "head, cached": (head_only(), "frozen", 1),
        "head": (head_only(), "frozen", 0),
        "from block_14": (from_stage("block_14", decay=1.0), "frozen", 0),
        "everything": (everything(), "train", 0),
    },
    "resnet50": {
        "head, cached": (head_only(), "frozen", 1),
        "head": (head_only(), "frozen", 0),
        "from conv5_block1": (from_stage("conv5_block1", decay=1.0), "frozen", 0),
        "everything": (everything(), "train", 0),
    },
}
"""What trains, whether BatchNorm's statistics do, and the views: 0 runs the trunk in each step."""


def main(kinds: list[str]) -> None:
    """Prints two tables for each kind of accelerator."""
    if unknown := set(kinds) - set(_EACH):
        raise SystemExit(f"no sizes are known here for {min(unknown)}; take {' or '.join(_EACH)}")
    for kind in kinds:
        join = "x" if kind.startswith("gpu") else "-"
        eight, each = target(f"{kind}{join}8"), _EACH[kind]
        programs = {
            (network, phase): _program(network, phase, eight, each)
            for network, phases in _PHASES.items()
            for phase in phases
        }
        known = eight.accelerator
        print(f"### {known.kind}, {each} images on each\n")
        print(_row("network", "trains", "MB an image", "M operations an image", "MB all-reduced"))
        print(_row(*["---"] * 5))
        for (network, phase), program in programs.items():
            costs = program.moved_bytes / 1e6 / each, program.operations / 1e6 / each
            reduced = f"{program.all_reduced_bytes / 1e6:,.3g}"
            print(_row(network, phase, *(f"{cost:,.3g}" for cost in costs), reduced))
        print("\nMost images/s of all accelerators together, and what bounds them:\n")
        counts = (f"{count:,}" for count in _COUNTS)
        links = (f"links bind {count:,} below" for count in _COUNTS[1::3])
        print(_row("network", "trains", *counts, *links, "cores to decode for one"))
        print(_row(*["---"] * (len(_COUNTS) + 5)))
        for (network, phase), program in programs.items():
            bounds = {
                count: speeds(program, each * count, dataclasses.replace(eight, count=count))
                for count in _COUNTS
            }
            cells = []
            for found in bounds.values():
                what = min(found, key=found.__getitem__)
                cells.append(f"{_short(found[what])}, {what}")
            # Fewer images on each take less time for memory and arithmetic, and as much for links.
            for found in (bounds[count] for count in _COUNTS[1::3]):
                fewest = each * min(found["memory"], found["arithmetic"]) / found["links"]
                cells.append(f"{fewest:,.1f} on each")
            cores = min(bounds[1].values()) / _JPEGS_A_CORE
            cells.append("-" if "cached" in phase else f"{cores:,.0f}")
            print(_row(network, phase, *cells))
        print()


def _program(network: str, phase: str, described: Target, each: int) -> Program:
    rules, batch_norm, views = _PHASES[network][phase]
    config = Config(
        model=Model(name=network, weights=None, dropout=0.0),
        data=Data(source="digits", batch_size=each * described.count),
        phases=(Phase(name="p", train=rules, epochs=10, batch_norm=batch_norm),),
        views=views,
        cache=Cache(dtype="bfloat16", memory_gb=6),
        dtype="bfloat16",
    )
    (program,) = training_programs(config, described, classes=1000, train_images=_IMAGES)
    print(f"{described.name} {network} {phase}", file=sys.stderr)
    return program


def _short(number: float) -> str:
    """With three digits and k, M or G."""
    for name, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {name}"
    return f"{number:.3g}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    try:
        main(sys.argv[1:] or list(_EACH))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
