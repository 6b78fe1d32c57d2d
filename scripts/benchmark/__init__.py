"""The parts of `scripts/bench.py`: workers, whole jobs, the cost as work grows, and the document."""
