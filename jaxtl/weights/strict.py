"""Loads the arrays of a file into a network: all of them, or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from jaxtl.errors import UserError
from jaxtl.models import Network, definition, split, stage_of

HEAD = "head"
"""The stage whose last dimension is the classes."""

_LISTED = 10  # names in a message; hundreds are wrong where a file holds another network


class Mismatch(UserError):
    """A file's names or shapes differ from the network's."""


class AnotherNetwork(UserError):
    """A file holds the weights of another network."""


@dataclass(frozen=True)
class Stored:
    """An array of a file, with its name there."""

    name: str
    value: np.ndarray


@dataclass(frozen=True)
class Loaded:
    """The variables that a network takes from a file.

    Attributes:
        variables: arrays by path; those of a new head are not among them.
        head: `loaded` from the file, `new`, or `none` if the network has no head.
        left_out: parameters of the file's classifier that were not used, by their names there.
    """

    variables: dict[str, jax.Array]
    head: Literal["loaded", "new", "none"]
    left_out: tuple[str, ...]


def published(network: Network) -> Network:
    """The same stages with the spec of the whole published network.

    It lists the layers of a weights file by name; it cannot run.
    """
    stages = {name: getattr(network, name) for name in network.stage_names}
    classes = network.num_classes or 1
    return Network(stages, dataclasses.replace(network.spec, num_classes=classes, top=True))


def load_into(
    network: Network, stored: Mapping[str, Stored], *, file: str, fresh_head: bool = False
) -> Loaded:
    """Takes the variables of a network from a file.

    Names and shapes must match completely, except for classifier stages that the network does not
    have. The head is loaded when it has as many classes as the file's and follows the same layers,
    unless `fresh_head` asks for a new one.

    Raises:
        Mismatch: a parameter is missing, unexpected or of another shape; the message names them.
        UserError: a parameter is not a finite float, or the file's head is inconsistent.
    """
    expected = split(network)[1]
    _check_head(network, stored, file)
    head = _head(network, stored, fresh_head)
    # Classifier stages must match exactly like the trunk, unless a new head is drawn.
    loose = set(definition(network.name).classifier) - set(network.stage_names)
    if head != "loaded":
        loose |= {HEAD}
    left_out = [path for path in stored if stage_of(path) in loose]
    used = {path: entry for path, entry in stored.items() if stage_of(path) not in loose}
    expected = {path: spec for path, spec in expected.items() if stage_of(path) not in loose}

    _check_shapes(network, {p: spec.shape for p, spec in expected.items()}, used, file)
    values = _float32(used, file)
    variables = jax.device_put(values)
    return Loaded(variables, head, tuple(stored[path].name for path in left_out))


def _check_head(network: Network, stored: Mapping[str, Stored], file: str) -> None:
    """Rejects a head whose kernel and bias disagree on the number of classes."""
    kernel, bias = (stored.get(f"{HEAD}/{name}") for name in ("kernel", "bias"))
    problem = f"{file} does not fit {network.name}; "
    if kernel is None and bias is not None:
        raise UserError(f"{problem}missing: {HEAD}/kernel, to which {bias.name} belongs")
    if kernel is not None and bias is not None and bias.value.shape != kernel.value.shape[1:]:
        raise UserError(
            f"{problem}of another shape: {HEAD}/kernel, called {kernel.name}, is "
            f"{kernel.value.shape}, which is not (features, classes) with {bias.name} of "
            f"{bias.value.shape}"
        )


def _head(
    network: Network, stored: Mapping[str, Stored], fresh: bool
) -> Literal["loaded", "new", "none"]:
    if network.num_classes is None:
        return "none"
    kernel = stored.get(f"{HEAD}/kernel")
    same = kernel is not None and kernel.value.shape[-1:] == (network.num_classes,)
    not_here = set(definition(network.name).classifier) - set(network.stage_names)
    hidden = not_here & {stage_of(path) for path in stored}
    return "loaded" if same and not hidden and not fresh else "new"


def _check_shapes(
    network: Network, shapes: Mapping[str, tuple[int, ...]], used: Mapping[str, Stored], file: str
) -> None:
    missing = [path for path in shapes if path not in used]
    unexpected = [entry.name for path, entry in used.items() if path not in shapes]
    misshaped = [
        f"{path} is {used[path].value.shape}, not {shape}"
        for path, shape in shapes.items()
        if path in used and used[path].value.shape != shape
    ]
    if not (missing or unexpected or misshaped):
        return
    problem = f"{file} does not fit {network.name} of width {network.width:g}"
    for what, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", misshaped),
    ):
        if names:
            problem += f"; {what}: {listed(names)}"
    raise Mismatch(problem)


def listed(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = [f"and {len(names) - _LISTED:,} more"] if len(names) > _LISTED else []
    return ", ".join([*names[:_LISTED], *more])


def _float32(used: Mapping[str, Stored], file: str) -> dict[str, np.ndarray]:
    wrong, values = [], {}
    for path, entry in used.items():
        if not np.issubdtype(entry.value.dtype, np.floating):
            wrong.append(f"{path} holds {entry.value.dtype}")
            continue
        with np.errstate(over="ignore"):
            values[path] = entry.value.astype(np.float32, copy=False)
        if not np.all(np.isfinite(values[path])):
            wrong.append(f"{path} is not finite")
    if wrong:
        raise UserError(f"{file} holds values that cannot be weights: {listed(wrong)}")
    return values
