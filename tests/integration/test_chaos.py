"""The short form of `scripts/chaos.py`, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "chaos.py"


@pytest.mark.slow
def test_runs_that_were_killed_at_random_moments_end_with_the_same_bits(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--runs", "3", "--out", tmp_path / "chaos.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "chaos.json").read_text())
    assert report["kills"] >= 3
    assert report["failed"] == 0
    assert report["arrays_compared"] > 300
