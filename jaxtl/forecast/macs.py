"""Counts the multiplications of a program that JAX has traced."""

from __future__ import annotations

import math
from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_macs(program: Jaxpr) -> int:
    """The multiply-adds of convolutions and matrix products in a traced program.

    Of several branches, the one with the most counts: the lowering for some platform may compute
    the same without a convolution.

    Raises:
        ValueError: the program has a loop whose length is known only when it runs.
    """
    return sum(map(_macs_of_equation, program.eqns))


def _macs_of_equation(equation: JaxprEqn) -> int:
    inner = [count_macs(program) for program in _inside(equation)]
    name, inputs = equation.primitive.name, [getattr(v.aval, "shape", ()) for v in equation.invars]
    results = sum(getattr(v.aval, "size", 0) for v in equation.outvars)
    if name == "conv_general_dilated":
        filters = inputs[1][equation.params["dimension_numbers"].rhs_spec[0]]
        zeros = math.prod(equation.params["lhs_dilation"])  # between the pixels, in gradients
        return results * math.prod(inputs[1]) // filters // zeros
    if name == "dot_general":
        (summed, _), _ = equation.params["dimension_numbers"]
        return results * math.prod(inputs[0][axis] for axis in summed)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("how often a while loop runs is not known before it does")
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _inside(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for program in value if isinstance(value, tuple | list) else (value,):
            if isinstance(program, ClosedJaxpr):
                yield program.jaxpr
            elif isinstance(program, Jaxpr):
                yield program
