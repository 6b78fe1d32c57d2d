"""Variables that a run began with, or that runs share: those that cannot be had again are stored.

PLACE/         the arrays, written by Orbax
PLACE.json     their digests, where the variables came from, and a digest of those that are left
               out because a published source has them
               (docs/decisions/0032-a-checkpoint-says-what-it-holds.md)
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from jaxtl.errors import UserError
from jaxtl.files import sealed, write_json
from jaxtl.models import Variables
from jaxtl.runs.arrays import (
    Damaged,
    HostArrays,
    digests,
    explaining_failed_writes,
    on_host,
    read_arrays,
    refusing_damage,
    write_arrays,
)
from jaxtl.runs.records import read_record
from jaxtl.weights import Origin

_log = logging.getLogger("jaxtl")


class _About(pydantic.BaseModel):
    """The JSON beside the arrays; `others` is None where none are left out."""

    model_config = pydantic.ConfigDict(extra="forbid")

    arrays: dict[str, str]
    others: str | None
    origin: Origin | None


def write_variables(
    place: Path, variables: Variables, origin: Origin | None = None, *, full: bool = True
) -> None:
    """Writes variables; returns when they are on disk.

    Args:
        place: a folder, which is replaced.
        variables: the variables.
        origin: where they came from; None for random ones.
        full: store them all; else the head alone where the origin is a published one.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    arrays = on_host(variables)
    others = {} if full or not origin else {p: a for p, a in arrays.items() if origin.publishes(p)}
    stored = {path: array for path, array in arrays.items() if path not in others}
    about = _About(arrays=digests(stored), others=_of_all(others), origin=origin)
    if stored:  # Orbax takes no empty tree
        write_arrays(place, stored)
    with explaining_failed_writes(place):
        write_json(_json(place), sealed(about.model_dump()))


def read_variables(place: Path, like: Mapping[str, Any], *, repair: bool = False) -> Variables:
    """Reads what `write_variables` wrote, and from its source what that left out.

    Variables that are damaged are made again from their source if that gives the same ones.

    Args:
        place: the folder.
        like: all variables, or `jax.ShapeDtypeStruct`s of them.
        repair: whether to write variables that were made again.

    Raises:
        UserError: the files are damaged, or belong to another network; or the source is needed and
            cannot be had.
    """
    about = _about(place)
    own = like if about.others is None else {p: like[p] for p in like if p in about.arrays}
    try:
        stored = read_arrays(place, own, about.arrays) if about.arrays else {}
    except Damaged as damage:
        made_again = _made_again(about, like, damage)
        if repair:
            own = {path: made_again[path] for path in about.arrays}
            write_arrays(place, on_host(own))
        return made_again
    if about.origin is None or about.others is None:
        return stored
    try:
        variables = about.origin.variables(head=False) | stored
        _check(about, like, variables)
    except UserError as error:
        raise UserError(
            f"{place} has the head alone, and the rest cannot be read again: {error}; try again "
            "with a network connection (runs with --cfg.checkpoint.full=True need none)"
        ) from error
    return variables


def _made_again(about: _About, like: Mapping[str, Any], damage: Damaged) -> Variables:
    """All variables by their origin, if they are the same as those that are damaged."""
    try:
        if about.origin is None:
            raise UserError("no source of it is known")
        all_of_them = about.origin.variables(head=True)
        variables = {path: value for path, value in all_of_them.items() if path in like}
        _check(about, like, variables)
    except UserError as error:
        raise UserError(
            f"{damage}; it cannot be made again: {error}; copy it back from a backup, or train "
            "again in another --workdir"
        ) from error
    _log.warning("%s; it was made again", damage)
    return variables


def _check(about: _About, like: Mapping[str, Any], variables: Variables) -> None:
    """Refuses variables of a source that are not those that the run began with."""
    found = on_host(variables)
    stored = {path: array for path, array in found.items() if path in about.arrays}
    others = {path: array for path, array in found.items() if path not in about.arrays}
    same = digests(stored) == about.arrays and _of_all(others) == about.others
    if not same or found.keys() != like.keys():
        raise UserError("this version of jaxtl makes other variables of the source")


def _about(place: Path) -> _About:
    with refusing_damage(_json(place)):
        about = read_record(_json(place), _About)
        if about.others is not None and not (about.origin and about.origin.published):
            raise ValueError("it does not say where the variables are that it does not hold")
        return about


def _json(place: Path) -> Path:
    return place.with_name(f"{place.name}.json")


def _of_all(arrays: HostArrays) -> str | None:
    """One digest for several arrays; None if there are none."""
    text = json.dumps(digests(arrays), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest() if arrays else None
