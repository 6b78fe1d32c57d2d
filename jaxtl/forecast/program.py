"""What a program needs and does on each of its devices, as its compiler tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from jaxtl.forecast.hlo import traffic
from jaxtl.forecast.macs import count_macs


@dataclass(frozen=True)
class Program:
    """The cost of a compiled program on one device.

    Attributes:
        argument_bytes: the memory of its arguments.
        temporary_bytes: the most memory that it takes besides arguments and results.
        result_bytes: the memory of results that do not take that of an argument.
        moved_bytes: what its instructions read from and write to memory.
        operations: multiplications and additions of convolutions and matrix products.
        all_reduced_bytes: the size of what is added up over the devices.
        all_reduces: how many reductions there are.
    """

    argument_bytes: int
    temporary_bytes: int
    result_bytes: int
    moved_bytes: int
    operations: int
    all_reduced_bytes: int
    all_reduces: int

    @property
    def memory_bytes(self) -> int:
        """The memory that it needs at once."""
        return self.argument_bytes + self.temporary_bytes + self.result_bytes


def compile_program(step: Any, *arguments: Any) -> Program:
    """Compiles a step for the devices of its arguments, and counts.

    Bytes that are moved are XLA's own count (`cost_analysis`) where the compiler has one, which is
    that of TPUs; for GPUs they are counted in the optimised program.

    Args:
        step: made by `jax.pmap` or `jax.jit`.
        arguments: its arguments, or `jax.ShapeDtypeStruct`s with shardings in their place.
    """
    macs = count_macs(jax.make_jaxpr(step)(*arguments).jaxpr)
    lowered = step.lower(*arguments)
    # To choose among kernels by their speed, a GPU would be needed.
    on_gpu = {d.platform for d in _devices(arguments)} == {"gpu"}
    compiled = lowered.compile({"xla_gpu_autotune_level": 0} if on_gpu else None)
    sizes: Any = compiled.memory_analysis()
    counted, cost = traffic(compiled.as_text()), compiled.cost_analysis() or {}
    return Program(
        argument_bytes=sizes.argument_size_in_bytes,
        temporary_bytes=sizes.temp_size_in_bytes,
        result_bytes=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        moved_bytes=int(cost.get("bytes accessed", counted.moved)),
        operations=2 * macs,
        all_reduced_bytes=counted.all_reduced,
        all_reduces=counted.all_reduces,
    )


def _devices(arguments: Any) -> frozenset[jax.Device]:
    shardings = (leaf.sharding for leaf in jax.tree.leaves(arguments))
    return frozenset().union(*(sharding.device_set for sharding in shardings))
