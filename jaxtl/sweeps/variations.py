"""The variations of a config: what its `sweep()` yields, checked, each with a name of its own.

def sweep():
    yield from grid({"phases.head.lr": (1e-3, 3e-3), "seed": (0, 1)})
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxtl.config.config_file import (
    Config,
    Count,
    check_counted,
    complete,
    find,
    plain,
    read,
    readable,
    vary,
)
from jaxtl.errors import UserError

_LONGEST = 100  # characters of a name


@dataclasses.dataclass(frozen=True)
class Variation:
    """One run of a sweep.

    Attributes:
        name: its number and varied values, as the name of a folder.
        values: the varied values, by dotted key.
        config: the whole config.
    """

    name: str
    values: dict[str, Any]
    config: Config


def grid(axes: Mapping[str, Iterable[Any]]) -> Iterator[dict[str, Any]]:
    """Yields the cross product of the values of dotted keys; the last key varies fastest."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def folds(count: int) -> Iterator[dict[str, Any]]:
    """Yields the folds of a cross-validation (`data.folds`), each of which validates once."""
    yield from grid({"data.folds": (count,), "data.fold": range(count)})


def load_sweep(
    name: str, overrides: Mapping[str, str], count: Count | None = None
) -> list[Variation]:
    """Reads a config file with a `sweep()`; one without varies the fold, if it has `data.folds`.

    Args:
        name: a config file, as for `config_file.load`.
        overrides: flags, dotted keys with values as typed; they apply before the variations.
        count: counts images, as for `config_file.load`.

    Raises:
        UserError: the file has no `sweep()` and no folds, or `sweep()` yields something else than
            variations.
    """
    names, config = read(name, overrides, count)
    path = find(name)
    sweep = names.get("sweep")
    if not callable(sweep):
        if callable(names.get("search")):
            raise UserError(f"{path} has a search(trial) and no sweep(): search by --trials 30")
        if not config.data.folds:
            raise UserError(
                f"{path} has no sweep(); add one that yields dicts such as "
                '{"phases.head.lr": 1e-3}, or train it with python -m jaxtl.train, or over folds '
                "with --cfg.data.folds=5"
            )
        if "data.fold" in overrides:
            raise UserError("--cfg.data.fold: the sweep trains every fold; leave the flag out")
        sweep = functools.partial(grid, {"data.fold": range(config.data.folds)})
    with readable(path):
        yielded = list(sweep() or ())
    if not yielded:
        raise UserError(f"{path}: sweep() yields nothing; let it yield one dict for each run")
    variations: list[Variation] = []
    for number, values in enumerate(yielded):
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise UserError(f"{path}: sweep() yields {values!r}, and not a dict of dotted keys")
        refuse_flags(overrides, values, "sweep()")
        plain_values = {key: plain(value) for key, value in values.items()}
        run = run_name(number, len(yielded), plain_values)
        try:
            varied = complete(vary(config, plain_values))
            check_counted(names, config.data, varied.data)
        except UserError as error:
            raise UserError(f"{path}: variation {run}: {error}") from error
        variations.append(Variation(run, plain_values, varied))
    _refuse_equals(variations)
    return variations


def run_name(number: int, count: int, values: Mapping[str, Any]) -> str:
    """The name of a variation, such as `07-phases.head.lr=0.001,seed=1`; a long one is cut.

    `number` counts from 0; `count` is the number of variations, which sets its digits.
    """
    digits = max(2, len(str(count - 1)))
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values.values()]
    said = ",".join(map("=".join, zip(values, texts, strict=True))) or "as-it-is"
    safe = re.sub(r"[^\w.,=+-]", "_", said, flags=re.ASCII)  # Orbax takes [ ] * ? for a pattern
    return f"{number:0{digits}}-{safe}"[:_LONGEST]


def refuse_flags(overrides: Mapping[str, str], values: Mapping[str, Any], by: str) -> None:
    """Refuses flags for keys that vary; `by` is the function of the config that varies them.

    Raises:
        UserError: there is such a flag.
    """
    for flag, key in itertools.product(overrides, values):
        if f"{flag}.".startswith(f"{key}.") or f"{key}.".startswith(f"{flag}."):
            raise UserError(
                f"--cfg.{flag}: {by} varies {key} itself; leave the flag out, or take {key} out of "
                f"{by}"
            )


def _refuse_equals(variations: Iterable[Variation]) -> None:
    known: dict[str, str] = {}
    for variation in variations:
        text = json.dumps(variation.config.model_dump())  # the order of patterns counts
        if text in known:
            raise UserError(
                f"variations {known[text]} and {variation.name} are the same run; let sweep() "
                "yield each once"
            )
        known[text] = variation.name
