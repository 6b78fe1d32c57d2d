"""Advice is given where it helps, and nowhere else."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxtl.hints import allocator_hint

_GLIBC = sys.platform == "linux" and Path("/proc/self/maps").exists()
pytestmark = pytest.mark.skipif(not _GLIBC, reason="the advice is for Linux")


@pytest.fixture
def maps(tmp_path):
    path = tmp_path / "maps"
    path.write_text("7f00-7f01 r-xp 00000000 08:01 1  /usr/lib/x86_64-linux-gnu/libc.so.6\n")
    return path


def test_a_process_with_small_pages_is_told_what_to_type(maps):
    hint = allocator_hint({}, maps)
    assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in hint
    assert "\n" not in hint


@pytest.mark.parametrize(
    "tunables", ["glibc.malloc.hugetlb=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=2"]
)
def test_a_process_with_large_pages_is_told_nothing(maps, tunables):
    assert allocator_hint({"GLIBC_TUNABLES": tunables}, maps) is None


def test_large_pages_that_are_turned_off_do_not_count(maps):
    assert allocator_hint({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, maps)


def test_a_process_with_another_allocator_is_told_nothing(maps):
    with maps.open("a") as file:
        file.write("7f02-7f03 r-xp 00000000 08:01 2  /usr/lib/libtcmalloc_minimal.so.4.5.9\n")
    assert allocator_hint({}, maps) is None


def test_the_hint_takes_effect_as_it_is_typed(maps):
    """glibc says which tunables it took from the environment; it ignores names it does not know."""
    name, _, value = allocator_hint({}, maps).split()[1].partition("=")
    tunable, _, number = value.partition("=")
    loader = next(
        line.split()[-1]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "/ld-linux" in line or "/ld-2" in line
    )
    listed = subprocess.run(
        [loader, "--list-tunables"], env={name: value}, capture_output=True, text=True, check=True
    ).stdout
    line = next(line for line in listed.splitlines() if line.startswith(tunable))
    assert f": 0x{int(number):x} " in line
