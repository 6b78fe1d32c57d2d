"""What is known of accelerators, by the names that JAX gives them."""

import pytest

from jaxtl.accelerators import ACCELERATORS, accelerator_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_a_device_is_known_by_its_kind(kind, name):
    assert accelerator_of(kind).name == name


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "TPU v2",
        "NVIDIA GeForce RTX 3090",
        "TPU v4 lite",
        "NVIDIA H100 PCIe",
        "NVIDIA A100-SXM4-40GB",
    ],
)
def test_nothing_is_said_of_other_devices(kind):
    assert accelerator_of(kind) is None


def test_memory_operations_and_links_are_in_plausible_proportion():
    """A slipped power of ten: memory is read in 10 to 60 ms, links are slower than memory."""
    for known in ACCELERATORS:
        assert 0.01 < known.memory_bytes / known.memory_bandwidth < 0.06
        assert 100 < known.flops / known.memory_bandwidth < 600
        assert 2 < known.memory_bandwidth / known.link_bandwidth < 12
        assert known.network_bandwidth is None or known.network_bandwidth < known.link_bandwidth / 8
