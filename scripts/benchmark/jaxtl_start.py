"""`jaxtl.train`, which says when the first training step is done; `scripts/bench.py` runs it.

python -m benchmark.jaxtl_start --cfg FILE ...
"""

from __future__ import annotations

from benchmark.protocol import FIRST_STEP
from jaxtl import cli, train
from jaxtl.console import EpochProgress
from jaxtl.metrics import Sums
from jaxtl.training import loop


class SayFirst(EpochProgress):
    """Prints a line when steps are done."""

    def batches(self, count: int, sums: Sums, images: int) -> None:
        """Prints, and shows what it always does."""
        print(FIRST_STEP, flush=True)
        super().batches(count, sums, images)


if __name__ == "__main__":
    loop.EpochProgress = SayFirst  # type: ignore[misc]
    cli.run(train.main)
