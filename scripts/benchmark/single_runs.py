"""The variations of configs/sweep_heads.py one after the other; `scripts/bench.py` runs it.

    python -m benchmark.single_runs FOLDER COUNT EPOCHS WEIGHTS

It trains the first COUNT of them in one process, each as `python -m jaxtl.train` would.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jaxtl.cli import keep_compiled_programs
from jaxtl.console import console
from jaxtl.sweeps.variations import load_sweep
from jaxtl.training.setup import open_data, train


def main() -> None:
    """Trains."""
    folder, count, epochs, weights = sys.argv[1:]
    keep_compiled_programs()
    flags = {"phases.head.epochs": epochs, "model.weights": weights}
    for variation in load_sweep("sweep_heads.py", flags)[: int(count)]:
        train(
            variation.config, open_data(variation.config), Path(folder) / variation.name, console()
        )


if __name__ == "__main__":
    main()
