"""What the makers of accelerators publish of them: memory, and the most bytes and operations."""

from __future__ import annotations

from typing import NamedTuple


class Accelerator(NamedTuple):
    """One chip or GPU; a bandwidth counts one direction.

    Attributes:
        name: the usual name.
        kind: `jax.Device.device_kind`.
        memory_bytes: the size of its memory.
        memory_bandwidth: bytes a second that its memory reads and writes.
        flops: bfloat16 operations a second of dense matrix products; an addition counts as one.
        link_bandwidth: bytes a second that it sends over all links to its neighbours.
        linked: the most accelerators that such links join.
        network_bandwidth: bytes a second that its part of the network sends, which joins more of
            them; None if that is not published.
    """

    name: str
    kind: str
    memory_bytes: float
    memory_bandwidth: float
    flops: float
    link_bandwidth: float
    linked: int
    network_bandwidth: float | None


# TPUs: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tables "specifications": the "interchip
# interconnect" in bit/s; the network of a pod divided by its chips. NVIDIA: data sheets of A100,
# H100 and H200 (SXM); half of NVLink's bandwidth, which counts both directions; the network of
# eight GPUs from the data sheets of DGX A100, H100 and H200.
ACCELERATORS = (
    Accelerator("v4", "TPU v4", 32e9, 1200e9, 275e12, 300e9, 4096, None),
    Accelerator("v5e", "TPU v5 lite", 16e9, 819e9, 197e12, 200e9, 256, 3.125e9),
    Accelerator("v5p", "TPU v5", 95e9, 2765e9, 459e12, 600e9, 8960, 6.25e9),
    Accelerator("v6e", "TPU v6 lite", 32e9, 1600e9, 918e12, 400e9, 256, 12.5e9),
    Accelerator("a100", "NVIDIA A100-SXM4-80GB", 80e9, 2039e9, 312e12, 300e9, 8, 25e9),
    Accelerator("h100", "NVIDIA H100 80GB HBM3", 80e9, 3350e9, 989e12, 450e9, 8, 50e9),
    Accelerator("h200", "NVIDIA H200", 141e9, 4800e9, 989e12, 450e9, 8, 50e9),
)
"""The accelerators with published numbers."""


def accelerator_of(device_kind: str) -> Accelerator | None:
    """The accelerator of a `jax.Device.device_kind`; None if its numbers are not known here."""
    return next((known for known in ACCELERATORS if known.kind == device_kind), None)
