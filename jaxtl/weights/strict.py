"""Puts the arrays of a file into a network: all of them, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, Network, build, merge, split

HEAD = "head/"


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
        left_out: the parameters of the file's head that were not used, by their names in the file.
    """

    network: Network
    head: Literal["loaded", "new", "none"]
    left_out: tuple[str, ...]


def load_into(
    network: Network, stored: Mapping[str, Stored], *, file: str, fresh_head: bool = False
) -> Loaded:
    """Replaces the variables of a network by those of a file.

    The trunk must match completely. The head is loaded when it has as many classes as the file's,
    unless a fresh one is asked for; else it stays as it is.

    Args:
        network: the network; it is left as it was.
        stored: what the file holds, by our paths.
        file: the file's name, for messages.
        fresh_head: keep the network's own head whatever the file holds.

    Raises:
        UserError: a parameter is missing, unexpected, of another shape, or no finite float; the
            message names every one.
    """
    graph, variables = split(network)
    head = _head(network, stored, fresh_head)
    left_out = {} if head == "loaded" else {p: s for p, s in stored.items() if p.startswith(HEAD)}
    used = {path: entry for path, entry in stored.items() if path not in left_out}
    kept = {p: v for p, v in variables.items() if p.startswith(HEAD) and head != "loaded"}
    shapes = {path: v.shape for path, v in variables.items() if path not in kept}

    _check_shapes(network, shapes, used, file)
    _check_values(used, file)
    loaded = {path: jnp.asarray(entry.value, jnp.float32) for path, entry in used.items()}
    merged = merge(graph, {**loaded, **kept})
    return Loaded(merged, head, tuple(entry.name for entry in left_out.values()))


def _head(
    network: Network, stored: Mapping[str, Stored], fresh: bool
) -> Literal["loaded", "new", "none"]:
    if network.num_classes is None:
        return "none"
    kernel = stored.get(f"{HEAD}kernel")
    same = kernel is not None and kernel.value.shape[-1] == network.num_classes
    return "loaded" if same and not fresh else "new"


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
    problem = f"{file} does not fit {network.name} of width {network.width}"
    if misshaped and not (missing or unexpected):
        problem += _fitting_width(network, used)
    for what, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", misshaped),
    ):
        if names:
            problem += f"; {what}: {', '.join(names)}"
    raise UserError(problem)


def _fitting_width(network: Network, used: Mapping[str, Stored]) -> str:
    """Says which width the shapes are of, if one: worth the time only once loading has failed."""
    trunk = {path: e.value.shape for path, e in used.items() if not path.startswith(HEAD)}
    for width in REGISTRY[network.name].widths:
        _, variables = split(build(network.name, num_classes=None, width=width))
        if width != network.width and trunk == {path: v.shape for path, v in variables.items()}:
            return f": its shapes fit width {width}"
    return ""


def _check_values(used: Mapping[str, Stored], file: str) -> None:
    wrong = []
    for path, entry in used.items():
        if not np.issubdtype(entry.value.dtype, np.floating):
            wrong.append(f"{path} holds {entry.value.dtype}")
        elif not np.all(np.isfinite(entry.value)):
            wrong.append(f"{path} is not finite")
    if wrong:
        raise UserError(f"{file} holds what cannot be weights: {', '.join(wrong)}")
