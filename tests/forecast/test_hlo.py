"""Bytes in the text of compiled programs, against counts by hand and by parameters."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from step_setup import HEAD_ONLY, SmallSetup

from jaxtl.forecast.hlo import size, traffic

PROGRAM = """
HloModule step, is_scheduled=true

%rows (p: f32[100,8], q: s32[2]) -> f32[2,8] {
  %p = f32[100,8]{1,0} parameter(0)
  %q = s32[2]{0} parameter(1)
  ROOT %gather.1 = f32[2,8]{1,0} gather(%p, %q), offset_dims={1}
}

%body (state: (s32[], f32[4])) -> (s32[], f32[4]) {
  %state = (s32[], /*index=1*/f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4]{0} get-tuple-element(%state), index=1
  %sum = f32[4]{0} all-reduce(%x), replica_groups={}, to_apply=%add
  ROOT %next = (s32[], f32[4]{0}) tuple(%i, %sum)
}

ENTRY %main (a: bf16[64,128], t: f32[100,8], q: s32[2]) -> f32[] {
  %a = bf16[64,128]{1,0:T(8,128)} parameter(0)
  %t = f32[100,8]{1,0} parameter(1)
  %q = s32[2]{0} parameter(2)
  %double = bf16[64,128]{1,0} add(%a, %a)
  %seen = bf16[8192]{0} bitcast(%double)
  %chosen = f32[2,8]{1,0} fusion(%t, %q), kind=kLoop, calls=%rows
  %start = f32[8]{0} all-reduce-start(%bias), to_apply=%add
  %done = f32[8]{0} all-reduce-done(%start)
  %bias = f32[8]{0} constant({...})
  %loop = (s32[], f32[4]{0}) while(%init), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %init = (s32[], f32[4]{0}) tuple(%i0, %x0)
  ROOT %end = f32[] constant(0)
}
"""


def test_every_instruction_that_touches_memory_counts_once_and_a_loop_as_often_as_it_runs():
    found = traffic(PROGRAM)
    added = 3 * 64 * 128 * 2
    rows = 2 * (2 * 8 * 4) + 2 * 4  # of the table only those that are asked for
    reduced = 2 * 8 * 4
    loop = 5 * (2 * 4 * 4)
    assert found.moved == added + rows + reduced + loop
    assert found.all_reduced == 8 * 4 + 5 * 4 * 4
    assert found.all_reduces == 1 + 5


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("bf16[2,3]{1,0:T(8,128)(2,1)}", 12),
        ("pred[10]{0}", 10),
        ("f32[]", 4),
        ("(f32[2], (s8[3], u64[1]), token[])", 8 + 3 + 8),
        ("s4[5]", 3),
        ("f8e4m3fn[7]", 7),
    ],
)
def test_the_size_of_arrays_and_tuples(shape, expected):
    assert size(shape) == expected


def test_what_devices_add_up_is_what_trains_and_the_metrics():
    small = SmallSetup(HEAD_ONLY, 8)
    trained = sum(small.variables[path].size for path in small.trainable.multipliers)
    # Four metrics, and the number of valid images for the loss.
    assert traffic(small.compiled().as_text()).all_reduced == 4 * (trained + 4 + 1)


def test_a_compiled_loop_counts_as_often_as_it_runs():
    def program(x, length):
        return lax.scan(lambda y, _: (lax.psum(jnp.sin(y), "d"), None), x, length=length)[0]

    def reduced(length):
        mapped = jax.pmap(lambda x: program(x, length), axis_name="d", devices=jax.devices()[:2])
        return traffic(mapped.lower(jnp.ones((2, 50))).compile().as_text()).all_reduced

    assert reduced(3) == 3 * 50 * 4
