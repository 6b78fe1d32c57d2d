"""The accelerators to compile for, described to the compilers of TPUs and NVIDIA GPUs."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtl.accelerators import ACCELERATORS, Accelerator
from jaxtl.errors import UserError

if TYPE_CHECKING:
    import jax

# The shapes of a slice, by its number of chips (cloud.google.com/tpu/docs/v5e, v5p).
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBIC = {
    1: "1x1x1",
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
}
_SHAPES = {"v4": _CUBIC, "v5e": _FLAT, "v5p": _CUBIC, "v6e": _FLAT}
_GPUS_A_HOST = 8

# What the compiler knows of a GPU besides the `Accelerator`, in XLA's terms
# (xla/stream_executor/device_description.proto). From NVIDIA's tuning guides for Ampere and Hopper
# and the white papers of A100 and H100.
_AMPERE = """
    shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 core_count: 108
    fpus_per_core: 64 l2_cache_size: 41943040 clock_rate_ghz: 1.41
    cuda_compute_capability { major: 8 }"""
_HOPPER = """
    shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 core_count: 132
    fpus_per_core: 128 l2_cache_size: 52428800 clock_rate_ghz: 1.98
    cuda_compute_capability { major: 9 }"""
_GPUS = {"a100": _AMPERE, "h100": _HOPPER, "h200": _HOPPER}
_PACKAGES = {
    "tpu": ("libtpu",),
    "gpu": ("jax-cuda13-pjrt", "jax-cuda13-plugin", "nvidia-cuda-nvcc", "nvidia-nvvm"),
}
_EXAMPLES = "such as tpu:v5e-8, tpu:v6e-256 or gpu:h100x8"


@dataclass(frozen=True)
class Target:
    """Accelerators of one kind.

    Attributes:
        name: as the user writes it.
        platform: `tpu` or `gpu`.
        accelerator: one of them.
        count: how many there are.
    """

    name: str
    platform: str
    accelerator: Accelerator
    count: int


def target(text: str) -> Target:
    """Reads a target such as `tpu:v5e-8` (chips) or `gpu:h100x8`.

    Raises:
        UserError: it names no accelerator that is known here, or a number of them that is not sold
            together.
    """
    parts = re.fullmatch(r"(?:(tpu):(\w+)-|(gpu):(\w+)x)([1-9]\d{0,5})", text)
    names = _SHAPES.keys() | _GPUS.keys()
    kind = parts and (parts[2] or parts[4])
    if not parts or (kind not in (_SHAPES if parts[1] else _GPUS)):
        raise UserError(
            f"--compile-for={text} names no accelerator; take one of {', '.join(sorted(names))}, "
            f"{_EXAMPLES}"
        )
    accelerator = next(known for known in ACCELERATORS if known.name == kind)
    platform, count = parts[1] or parts[3], int(parts[5])
    if platform == "gpu":
        possible = count <= _GPUS_A_HOST or count % _GPUS_A_HOST == 0
        if not possible:
            lower = count // _GPUS_A_HOST * _GPUS_A_HOST
            near = (f"gpu:{kind}x{n}" for n in (lower, lower + _GPUS_A_HOST))
            raise UserError(
                f"--compile-for={text}: more than 8 GPUs are hosts of 8; take {' or '.join(near)}"
            )
    else:
        shapes = _SHAPES[accelerator.name]
        several = accelerator.linked in shapes and count % accelerator.linked == 0
        if count not in shapes and not several:
            raise UserError(
                f"--compile-for={text}: a slice has {', '.join(map(str, shapes))} chips"
                + (f", several a multiple of {max(shapes)}" if accelerator.linked in shapes else "")
            )
    return Target(text, platform, accelerator, count)


def check_compiler(described: Target) -> None:
    """Looks for the packages that compile for a target.

    Raises:
        UserError: some are not installed; the message says how to get them.
    """
    missing = []
    for name in _PACKAGES[described.platform]:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        raise UserError(
            f"compiling for {described.name} needs {', '.join(missing)}: "
            f"pip install 'jaxtl[compile-{described.platform}]'"
        )


def prepare_environment() -> None:
    """Sets what compilers and JAX read when they are loaded, so before jax is imported.

    The work stays on the CPU. The TPU's library does not ask the network where it runs, does not
    mind that another process uses it, and has a name of some TPUs, without which it warns.
    """
    os.environ |= {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # JAX cannot load such programs again
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }


def devices(described: Target) -> Sequence[jax.Device]:
    """The devices of a target, for which programs can be compiled and not run."""
    from jax.experimental import topologies

    if described.platform == "gpu":
        hosts = -(-described.count // _GPUS_A_HOST)
        return topologies.get_topology_desc(
            described.accelerator.name,
            "cuda",
            topology=f"1x{hosts}x{described.count // hosts}",
            target_config=_gpu(described.accelerator),
        ).devices
    shapes = _SHAPES[described.accelerator.name]
    options: dict[str, object] = {}
    if described.accelerator.name == "v4":
        options["chip_config_name"] = "megacore"  # a chip is one device, as it is for training
    if described.count not in shapes:
        options["num_slices"] = described.count // max(shapes)
    shape = shapes.get(described.count) or shapes[max(shapes)]
    return topologies.get_topology_desc(
        f"{described.accelerator.name}:{shape}", "tpu", **options
    ).devices


def _gpu(accelerator: Accelerator) -> str:
    """XLA's description of a GPU, a `GpuTargetConfigProto` as text."""
    return f"""
        gpu_device_info {{
            threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
            block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            registers_per_core_limit: 65536 registers_per_block_limit: 65536
            shared_memory_per_block: 49152
            memory_bandwidth: {accelerator.memory_bandwidth:.0f}
            device_memory_size: {accelerator.memory_bytes:.0f} {_GPUS[accelerator.name]}
        }}
        platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
        device_description_str: "{accelerator.kind}" """
