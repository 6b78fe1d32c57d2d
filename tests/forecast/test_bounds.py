"""Bounds by published peaks, and the largest batch that fits."""

from fractions import Fraction

import jax
import pytest

from jaxtl.accelerators import ACCELERATORS
from jaxtl.forecast.bounds import all_reduce_seconds, largest_that_fits, speeds, usable_memory
from jaxtl.forecast.program import Program
from jaxtl.forecast.target import target

KNOWN = {known.name: known for known in ACCELERATORS}


def program(memory=0, **costs):
    zero = dict.fromkeys(
        ("result_bytes", "moved_bytes", "operations", "all_reduced_bytes", "all_reduces"), 0
    )
    return Program(argument_bytes=0, temporary_bytes=memory, **{**zero, **costs})


def sent_in_a_ring(devices):
    """The parts of an array that each device sends until all of them have every sum."""
    have = [{part: {device} for part in range(devices)} for device in range(devices)]
    sent = 0
    for step in range(2 * (devices - 1)):
        moving = [(d, (d - step) % devices, have[d][(d - step) % devices]) for d in range(devices)]
        for device, part, terms in moving:
            have[(device + 1) % devices][part] = have[(device + 1) % devices][part] | terms
        sent += 1
    assert all(terms == set(range(devices)) for parts in have for terms in parts.values())
    return Fraction(sent, devices)


@pytest.mark.parametrize("devices", [2, 5, 8])
def test_devices_on_links_send_what_a_ring_sends(devices):
    known = KNOWN["h100"]
    seconds = float(sent_in_a_ring(devices)) * 1e9 / known.link_bandwidth
    assert all_reduce_seconds(10**9, known, devices) == pytest.approx(seconds)


def test_one_device_sends_nothing():
    assert all_reduce_seconds(10**9, KNOWN["v5e"], 1) == 0


@pytest.mark.parametrize(("name", "slower"), [("a100", "network"), ("h100", "links")])
def test_more_than_links_join_are_bound_by_the_slower_of_links_and_network(name, slower):
    known = KNOWN[name]
    # Four hosts of eight: each GPU brings the sums of an eighth of the array to the other hosts.
    seconds = {
        "links": float(sent_in_a_ring(8)) * 1e9 / known.link_bandwidth,
        "network": float(sent_in_a_ring(4)) * 1e9 / 8 / known.network_bandwidth,
    }
    assert max(seconds, key=seconds.get) == slower
    assert all_reduce_seconds(10**9, known, 32) == pytest.approx(seconds[slower])


def test_the_slowest_of_memory_arithmetic_and_links_bounds_the_speed():
    costs = {"moved_bytes": 819 * 10**9, "operations": 2 * 197 * 10**12, "all_reduced_bytes": 8}
    found = speeds(program(**costs), 1024, target("tpu:v5e-8"))
    assert found["memory"] == pytest.approx(1024)
    assert found["arithmetic"] == pytest.approx(512)
    assert found["links"] == pytest.approx(1024 / (2 * 7 / 8 * 8 / 200e9))
    assert speeds(program(moved_bytes=1), 4, target("tpu:v5e-1")).keys() == {"memory"}


def test_a_gpu_lends_three_quarters_of_its_memory_and_a_tpu_all():
    assert usable_memory(target("gpu:h200x1")) == 0.75 * 141e9
    assert usable_memory(target("tpu:v6e-4")) == 32e9


def refusing_above(most):
    def build(images):
        if images > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: it does not fit")
        return program(memory=100 + 7 * images)

    return build


@pytest.mark.parametrize(
    ("images", "limit", "most", "largest"),
    [
        (8, 1000, 10**9, 128),  # 100 + 7 x 128 = 996
        (64, 1000, 10**9, 128),
        (128, 1000, 10**9, 128),
        (512, 1000, 10**9, 128),
        (512, 1000, 130, 128),  # the compiler itself refuses 512 and 256
        (1, 1000, 10**9, 128),
        (8, 106, 10**9, 0),  # not even one image
        (8, 1000, 0, 0),
    ],
)
def test_the_largest_batch_follows_from_two_that_compile(images, limit, most, largest):
    found, fits = largest_that_fits(refusing_above(most), images, limit)
    assert fits == largest
    assert (found is None) == (images > most)


def test_another_error_of_the_compiler_is_not_taken_for_too_little_memory():
    def build(images):
        raise jax.errors.JaxRuntimeError("INTERNAL: no")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        largest_that_fits(build, 8, 1000)


def test_a_program_that_takes_the_same_memory_for_any_batch_has_no_largest_one():
    assert largest_that_fits(lambda images: program(memory=5), 8, 1000)[1] is None
