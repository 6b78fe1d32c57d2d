"""`jaxtl.train`, which says when the first training step is done; `scripts/bench.py` runs it.

python -m benchmark.jaxtl_start --cfg FILE ...
"""

from __future__ import annotations

from benchmark.protocol import FIRST_STEP
from jaxtl import cli, loop, train
from jaxtl.metrics import Sums
from jaxtl.report.terminal import EpochProgress


class SayFirst(EpochProgress):
    """Prints a line when steps are done."""

    def batches(self, count: int, sums: Sums, pictures: int) -> None:
        """Prints, and shows what it always does."""
        print(FIRST_STEP, flush=True)
        super().batches(count, sums, pictures)


if __name__ == "__main__":
    loop.EpochProgress = SayFirst  # type: ignore[misc]
    cli.run(train.main)
