"""The machine and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

_PACKAGES = (
    *("jaxtl", "jax", "jaxlib", "flax", "optax", "numpy", "pillow"),
    *("keras", "tensorflow", "torch", "timm"),
)


def machine() -> dict[str, str | int]:
    """What the numbers depend on besides the software."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next(line.split() for line in lines if line.startswith("flags"))
    return {
        "cpu": models[0],
        "cores": os.cpu_count() or 1,
        "avx512": "avx512f" in flags,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of Python, this checkout and the packages that are installed."""
    found = {"python": platform.python_version(), "commit": _commit()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def today() -> str:
    """The date."""
    return time.strftime("%Y-%m-%d")


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or "none"
