"""The benchmark script refuses what it cannot do before it measures or writes anything."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "scripts" / "bench.py"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--render",), "to render; measure first"),
        (("--device", "gpu", "--rows", "forward"), "--rows chooses among those of the CPU"),
    ],
)
def test_what_cannot_be_measured_or_rendered_is_refused(tmp_path, flags, message):
    page = tmp_path / "page.md"
    page.write_text("an older page")
    command = [sys.executable, str(BENCH), "--out", str(page), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert page.read_text() == "an older page"
