"""What a program has to do, and what the machine can do at most."""

from __future__ import annotations

import timeit
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun


def program_cost(function: Any, *given: Any) -> dict[str, float]:
    """The operations and the bytes of a call, as XLA counts them.

    Its bytes are what its fused operations read and write, whether or not a cache holds them. XLA
    counts the body of a loop once; here it counts as often as it runs.

    Args:
        function: made by `jax.jit` or `jax.pmap`.
        given: its arguments.
    """
    cost = _counted(function.lower(*given))
    if jax.default_backend() == "cpu":  # elsewhere the programs of jaxtl have no such loops
        for length, body in _loops(jax.make_jaxpr(function)(*given).jaxpr):
            shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in body.in_avals]
            run = jax.jit(jaxpr_as_fun(body))
            once, whole = _counted(run.lower(*shapes)), program_cost(run, *shapes)
            cost = {key: cost[key] - once[key] + length * whole[key] for key in cost}
    return cost


def peaks(dtype: str, *, side: int, numbers: int) -> dict[str, float]:
    """The most operations and bytes a second of the first device, the fastest of ten calls.

    Args:
        dtype: of the matrices.
        side: of the square matrices that are multiplied.
        numbers: float32 numbers to read and to write; more than the caches hold.
    """
    matrix, product = jnp.ones((side, side), dtype), jax.jit(jnp.matmul)
    # In place: memory that was never touched before would be measured too.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = add(jnp.zeros(numbers, jnp.float32))

    def multiply() -> None:
        product(matrix, matrix).block_until_ready()

    def move() -> None:
        nonlocal array
        array = add(array).block_until_ready()

    multiply()
    multiplying, moving = (min(timeit.repeat(of, number=1, repeat=10)) for of in (multiply, move))
    return {"flops": 2 * side**3 / multiplying, "bytes": 2 * 4 * numbers / moving}


def _counted(lowered: jax.stages.Lowered) -> dict[str, float]:
    counted: Any = lowered.compile().cost_analysis()
    return {"flops": float(counted["flops"]), "bytes": float(counted["bytes accessed"])}


def _loops(jaxpr: Jaxpr) -> Iterator[tuple[int, ClosedJaxpr]]:
    """The outermost loops that run more than once: how often, and their bodies."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] > 1:
            yield equation.params["length"], equation.params["jaxpr"]
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    yield from _loops(getattr(inner, "jaxpr", inner))
