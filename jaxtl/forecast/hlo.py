"""Counts bytes in the text of an optimised XLA program (HLO)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_SHAPE = re.compile(r"\b(pred|token|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|body|to_apply)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# They name memory and do not touch it.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "domain"),
}
_REDUCTIONS = ("all-reduce", "all-reduce-start")
_CALLS = ("call", "while", "async-start")


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
        name: its name, unique in its computation.
        shape: the text of its result's shape.
        opcode: what it does.
        operands: the names of its operands.
        rest: the text after the operands.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str


Computations = dict[str, dict[str, Instruction]]


class Traffic(NamedTuple):
    """The bytes that one device moves in a run of a program.

    Attributes:
        moved: what instructions read from and write to its memory. A fusion reads its operands and
            writes its result once.
        all_reduced: the size of what is added up over the devices.
        all_reduces: how many reductions there are.
    """

    moved: int
    all_reduced: int
    all_reduces: int


def traffic(text: str) -> Traffic:
    """Counts the bytes of a program; the body of a loop counts as often as it runs.

    Args:
        text: from `jax.stages.Compiled.as_text`.
    """
    computations, entry = parse(text)
    reduced = list(_reduced(computations, entry))
    return Traffic(_moved(computations, entry), sum(reduced), len(reduced))


def parse(text: str) -> tuple[Computations, str]:
    """The instructions of each computation by name, and the name of the first one to run."""
    computations: Computations = {}
    current: dict[str, Instruction] = {}
    entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif begin := _INSTRUCTION.match(line):
            shape, rest = _cut(line[begin.end() :])
            opcode, _, rest = rest.strip().partition("(")
            operands, rest = _cut(f"({rest}")
            names = tuple(re.findall(r"%([\w.\-]+)", operands))
            current[begin[1]] = Instruction(begin[1], shape, opcode, names, rest)
    return computations, entry


def size(shape: str) -> int:
    """The bytes of an array or of all arrays of a tuple, without padding of its layout."""
    total = 0
    for kind, bits, sides in _SHAPE.findall(shape):
        width = 8 if kind == "pred" else int(bits or 0)
        numbers = 1
        for side in filter(None, sides.split(",")):
            numbers *= int(side)
        total += -(-numbers * width // 8)
    return total


def _cut(text: str) -> tuple[str, str]:
    """A shape or a list in parentheses at the beginning of a text, and what follows."""
    if not text.startswith("("):
        head, _, rest = text.partition(" ")
        return head, rest
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    return text, ""


def _trips(instruction: Instruction) -> int:
    known = _TRIPS.search(instruction.rest)
    return int(known[1]) if known and instruction.opcode == "while" else 1


def _reduced(computations: Computations, name: str) -> Iterator[int]:
    """The bytes of each all-reduce of a computation and of those that it calls."""
    here = computations[name]
    for instruction in here.values():
        if instruction.opcode in _REDUCTIONS:
            yield sum(size(here[operand].shape) for operand in instruction.operands)
        elif called := _CALLED.search(instruction.rest):
            yield from list(_reduced(computations, called[1])) * _trips(instruction)


def _moved(computations: Computations, name: str) -> int:
    here, total = computations[name], 0
    for instruction in here.values():
        called = _CALLED.search(instruction.rest)
        if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
            continue
        if instruction.opcode in _CALLS and called:
            total += _trips(instruction) * _moved(computations, called[1])
        elif instruction.opcode == "fusion" and called:
            total += _moved_by_fusion(computations[called[1]], instruction)
        elif instruction.opcode.endswith("-start"):
            total += 2 * sum(size(here[operand].shape) for operand in instruction.operands)
        else:
            total += _moved_by_one(instruction, here)
    return total


def _moved_by_one(instruction: Instruction, here: dict[str, Instruction]) -> int:
    """What an instruction reads and writes; of a slice or an update only the rows in question."""
    result = size(instruction.shape)
    operands = [size(here[operand].shape) for operand in instruction.operands]
    if instruction.opcode in ("gather", "dynamic-slice"):
        return 2 * result + sum(operands[1:])
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1]
    return result + sum(operands)


def _moved_by_fusion(inside: dict[str, Instruction], fusion: Instruction) -> int:
    users: dict[str, list[Instruction]] = {}
    for instruction in inside.values():
        for operand in instruction.operands:
            users.setdefault(operand, []).append(instruction)
    total = size(fusion.shape)
    root = list(inside.values())[-1]
    if root.opcode == "dynamic-update-slice":
        total = size(inside[root.operands[1]].shape)
    parameters = [line for line in inside.values() if line.opcode == "parameter"]
    for line in parameters:
        uses = users.get(line.name, [])
        if uses and all(_takes_rows(use, line.name) for use in uses):
            total += sum(size(use.shape) for use in uses if use.opcode != "dynamic-update-slice")
        else:
            total += size(line.shape)
    return total


def _takes_rows(use: Instruction, name: str) -> bool:
    """Whether an instruction touches a few rows of an operand alone."""
    few = use.opcode in ("gather", "dynamic-slice", "dynamic-update-slice")
    return few and use.operands[0] == name and name not in use.operands[1:]
