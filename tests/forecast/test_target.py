"""Accelerators by their names, and the compilers that they need."""

import importlib.util
import subprocess
import sys

import pytest

from jaxtl.errors import UserError
from jaxtl.forecast.target import check_compiler, target


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [
        ("tpu:v5e-8", "TPU v5 lite", 8),
        ("tpu:v6e-256", "TPU v6 lite", 256),
        ("tpu:v5e-1024", "TPU v5 lite", 1024),
        ("tpu:v5p-1024", "TPU v5", 1024),
        ("tpu:v4-1", "TPU v4", 1),
        ("gpu:h100x8", "NVIDIA H100 80GB HBM3", 8),
        ("gpu:a100x3", "NVIDIA A100-SXM4-80GB", 3),
        ("gpu:h200x1024", "NVIDIA H200", 1024),
    ],
)
def test_a_target_names_accelerators_and_how_many(text, kind, count):
    described = target(text)
    assert (described.accelerator.kind, described.count) == (kind, count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tpu:v2-8", "take one of a100, h100"),
        ("gpu:v5e-8", "such as tpu:v5e-8"),
        ("tpu:h100x8", "names no accelerator"),
        ("h100x8", "names no accelerator"),
        ("gpu:h100x0", "names no accelerator"),
        ("tpu:v5e-12", "1, 4, 8, 16, 32, 64, 128, 256 chips, several a multiple of 256"),
        ("tpu:v4-4096", "2048 chips"),
        ("gpu:h100x12", "take gpu:h100x8 or gpu:h100x16"),
        ("", "names no accelerator"),
    ],
)
def test_what_is_not_known_or_not_sold_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        target(text)


@pytest.mark.parametrize(
    ("text", "package", "extra"),
    [("tpu:v5e-8", "libtpu", "compile-tpu"), ("gpu:h100x8", "jax_cuda13_plugin", "compile-gpu")],
)
def test_a_missing_compiler_is_named_with_the_extra_that_has_it(text, package, extra):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=rf"pip install 'jaxtl\[{extra}\]'"):
        check_compiler(target(text))


def test_the_command_refuses_a_target_in_one_line_before_it_reads_anything():
    command = [
        sys.executable,
        "-m",
        "jaxtl.train",
        "--cfg",
        "no-such.py",
        "--compile-for",
        "tpu:v9",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --compile-for=tpu:v9 names no accelerator")
    assert len(done.stderr.splitlines()) == 1
