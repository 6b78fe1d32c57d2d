"""The compiled programs in the user's cache directory."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
from jaxtl.cli import keep_compiled_programs

keep_compiled_programs()

import jax
import jax.numpy as jnp

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.config.jax_compilation_cache_max_size)
for size in SIZES:
    jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)(jnp.zeros((size, 3)))
"""


def compile_programs(home, sizes, **variables):
    """Compiles a program of each size in a process; returns the limit that JAX was given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("SIZES", repr(list(sizes)))],
        env=inherited | {"XDG_CACHE_HOME": str(home)} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cache" not in done.stderr  # JAX warns where it cannot read or write a program
    return int(done.stdout)


def programs(home):
    """The size in bytes of each program that is kept."""
    return {path.name: path.stat().st_size for path in home.glob("jaxtl/xla/*-cache")}


def test_programs_may_take_two_gigabytes(tmp_path):
    assert compile_programs(tmp_path, [1]) == 2 * 10**9
    assert programs(tmp_path)


@pytest.mark.slow
def test_programs_used_longest_ago_go_where_there_are_too_many(tmp_path):
    compile_programs(tmp_path, range(1, 4))
    before = programs(tmp_path)
    limit = sum(before.values())
    # What a version of jaxtl without a limit wrote, and a writer that was killed, has no time.
    for used in tmp_path.glob("jaxtl/xla/*-atime"):
        used.unlink()
    given = compile_programs(tmp_path, range(4, 8), JAX_COMPILATION_CACHE_MAX_SIZE=str(limit))
    assert given == limit
    after = programs(tmp_path)
    assert limit / 2 < sum(after.values()) <= limit
    assert after.keys() - before.keys()
    assert before.keys() - after.keys()
