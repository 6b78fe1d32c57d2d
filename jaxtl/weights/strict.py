"""Puts the arrays of a file into a network: all of them, or none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxtl.errors import UserError
from jaxtl.models import Network, merge, split

HEAD = "head"
"""The stage whose last dimension is the classes."""

CLASSIFIER = frozenset({"fc1", "fc2", HEAD})
"""The stages that a network may have or leave out, whatever the file of its weights holds."""

_NAMED = 10  # arrays of a kind that a message names: of another network, hundreds are wrong


class Misfit(UserError):
    """What a file holds has other names or shapes than the network."""


class AnotherNetwork(UserError):
    """A file holds the weights of another network."""


@dataclass(frozen=True)
class Stored:
    """An array of a file, with the name that it has there."""

    name: str
    value: np.ndarray


@dataclass(frozen=True)
class Loaded:
    """A network with the weights of a file.

    Attributes:
        network: the network.
        head: `loaded` from the file, `new` (random), or `none`: the network has no head.
        left_out: the parameters of the file's classifier that were not used, by their names there.
    """

    network: Network
    head: Literal["loaded", "new", "none"]
    left_out: tuple[str, ...]


def stage(path: str) -> str:
    """The stage that a path lies in."""
    return path.partition("/")[0]


def published(network: Network) -> Network:
    """The same stages, said to be all of the published network, of which files hold the layers.

    It serves to list the layers of a file by their names; it cannot run.
    """
    stages = {name: getattr(network, name) for name in network.stage_names}
    classes = network.num_classes or 1
    return Network(stages, dataclasses.replace(network.spec, num_classes=classes, top=True))


def load_into(
    network: Network, stored: Mapping[str, Stored], *, file: str, fresh_head: bool = False
) -> Loaded:
    """Replaces the variables of a network by those of a file.

    All must match completely, but for what the network does not have of the file's classifier. The
    head is loaded when it has as many classes as the file's and follows the same layers, unless a
    fresh one is asked for; else it stays as it is.

    Args:
        network: the network; it is left as it was.
        stored: what the file holds, by our paths.
        file: the file's name, for messages.
        fresh_head: keep the network's own head whatever the file holds.

    Raises:
        Misfit: a parameter is missing, unexpected, or of another shape; the message names them, ten
            of a kind where there are more, and how many.
        UserError: a parameter is no finite float, or the file's head is none in itself.
    """
    graph, variables = split(network)
    _check_head(network, stored, file)
    head = _head(network, stored, fresh_head)
    # What a network has of the classifier is as strict as its trunk, but for a head that stays.
    loose = CLASSIFIER - set(network.stage_names)
    if head != "loaded":
        loose |= {HEAD}
    left_out = [path for path in stored if stage(path) in loose]
    used = {path: entry for path, entry in stored.items() if path not in left_out}
    kept = {path: value for path, value in variables.items() if stage(path) in loose}
    shapes = {path: value.shape for path, value in variables.items() if path not in kept}

    _check_shapes(network, shapes, used, file)
    _check_values(used, file)
    loaded = {path: jnp.asarray(entry.value, jnp.float32) for path, entry in used.items()}
    merged = merge(graph, {**loaded, **kept})
    return Loaded(merged, head, tuple(stored[path].name for path in left_out))


def _check_head(network: Network, stored: Mapping[str, Stored], file: str) -> None:
    """Refuses a head that is none in itself, which would pass for one of other classes."""
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
    hidden = {stage(path) for path in stored} & CLASSIFIER - set(network.stage_names)
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
            more = [f"and {len(names) - _NAMED:,} more"] if len(names) > _NAMED else []
            problem += f"; {what}: {', '.join(names[:_NAMED] + more)}"
    raise Misfit(problem)


def fits(trunk: Network, stored: Mapping[str, Stored]) -> bool:
    """Whether a file holds exactly the arrays of a network without a head, but for a classifier."""
    found = {path: e.value.shape for path, e in stored.items() if stage(path) not in CLASSIFIER}
    return found == {path: value.shape for path, value in split(trunk)[1].items()}


def _check_values(used: Mapping[str, Stored], file: str) -> None:
    wrong = []
    for path, entry in used.items():
        if not np.issubdtype(entry.value.dtype, np.floating):
            wrong.append(f"{path} holds {entry.value.dtype}")
        elif not np.all(np.isfinite(entry.value)):
            wrong.append(f"{path} is not finite")
    if wrong:
        raise UserError(f"{file} holds what cannot be weights: {', '.join(wrong)}")
