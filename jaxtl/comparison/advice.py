"""What a comparison comes to, in words: what each network is good and bad at, and which to take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtl.comparison.linear_probe import Probe
from jaxtl.comparison.results import (
    WITHIN,
    Failure,
    Row,
    Tuned,
    accuracy_text,
    beats,
    number,
    pareto_front,
)
from jaxtl.errors import UserError


class _Measure(NamedTuple):
    """Something that networks are ranked by: more of `value` is better."""

    value: Callable[[Row], float | None]
    best: str
    worst: str
    what: str


_MEASURES = (
    _Measure(lambda row: row.accuracy, "most accurate", "least accurate", "accuracy"),
    _Measure(
        lambda row: -row.milliseconds, "fastest at inference", "slowest at inference", "latency"
    ),
    _Measure(
        lambda row: row.finetuning_rate,
        "fastest to fine-tune",
        "slowest to fine-tune",
        "speed of fine-tuning",
    ),
    _Measure(lambda row: -row.megabytes, "smallest", "largest", "size"),
    _Measure(
        lambda row: -row.cost.finetuning.memory,
        "needs least memory to fine-tune",
        "needs most memory to fine-tune",
        "memory of fine-tuning",
    ),
    _Measure(
        lambda row: row.density,
        "most accuracy per parameter",
        "least accuracy per parameter",
        "accuracy per parameter",
    ),
)


class _Limit(NamedTuple):
    value: Callable[[Row], float]
    unit: str


_LIMITS = {
    "ms": _Limit(lambda row: row.milliseconds, "ms an image"),
    "mb": _Limit(lambda row: row.megabytes, "MB of weights"),
    "macs": _Limit(lambda row: row.cost.macs / 1e6, "million MACs"),
}


@dataclasses.dataclass(frozen=True)
class Budget:
    """The most that a network may cost.

    Attributes:
        key: `ms` (inference of one image), `mb` (weights, in 1e6 bytes) or `macs` (in millions).
        most: above 0, and finite.
    """

    key: str
    most: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads `ms=20`.

        Raises:
            UserError: it is no budget.
        """
        key, _, value = text.partition("=")
        if key not in _LIMITS:
            raise UserError(
                f"--budget {text}: the budgets are ms=20 (milliseconds for one image), mb=10 "
                "(megabytes of weights) and macs=300 (millions of MACs)"
            )
        try:
            most = float(value)
        except ValueError:
            most = 0.0
        if not 0 < most < math.inf:
            raise UserError(f"--budget {text}: give a number above 0, such as {key}=20")
        return cls(key, most)

    def of(self, row: Row) -> float:
        """What a network takes of it."""
        return _LIMITS[self.key].value(row)

    @property
    def unit(self) -> str:
        """What its number counts, in words."""
        return _LIMITS[self.key].unit


def characters(rows: Sequence[Row]) -> list[str]:
    """One line for each network: what it is best and worst at among those that were measured."""
    return [f"{row.model}: {'; '.join(_traits(row, rows))}" for row in rows]


def advice(rows: Sequence[Row], budgets: Sequence[Budget]) -> list[str]:
    """Which network to take: under each budget and all of them, or, without any, of the front.

    Args:
        rows: at least one.
        budgets: the most that it may cost.
    """
    if not budgets:
        front = pareto_front(rows)
        if not front:
            return ["no network has an accuracy, so none can be recommended"]
        names = [
            f"{row.model} ({accuracy_text(row)}, {number(row.milliseconds)} ms)" for row in front
        ]
        alike = _alike(_best(front), rows)
        if len(front) == 1:
            return [f"take {names[0]}, alone on the Pareto front{alike}"]
        return [f"take one of the Pareto front, the fastest first: {', '.join(names)}{alike}"]
    lines = [_within([budget], rows) for budget in budgets]
    return lines if len(budgets) == 1 else [*lines, _within(budgets, rows)]


def _within(budgets: Sequence[Budget], rows: Sequence[Row]) -> str:
    under = "under " + " and ".join(f"{budget.most:g} {budget.unit}" for budget in budgets)
    fitting = [row for row in rows if _excess(row, budgets) <= 1]
    known = [row for row in fitting if row.accuracy is not None]
    if known:
        row = _best(known)
        return f"{under}: {row.model}, {accuracy_text(row)}{_alike(row, known)}"
    if fitting:
        names = ", ".join(row.model for row in fitting)
        return f"{under}: {names}, of which no accuracy is known"
    nearest = min(rows, key=lambda row: _excess(row, budgets))
    has = " and ".join(f"{number(budget.of(nearest))} {budget.unit}" for budget in budgets)
    return f"{under}: none; {nearest.model} comes nearest with {has}, {accuracy_text(nearest)}"


def _best(rows: Sequence[Row]) -> Row:
    """The most accurate; of equals the fastest, and of those the smallest."""
    return max(rows, key=lambda row: (row.accuracy or 0.0, -row.milliseconds, -row.megabytes))


def _alike(best: Row, rows: Sequence[Row]) -> str:
    """The networks whose accuracy is within a spread of the best, its own or theirs, in words."""
    close = [
        row.model
        for row in rows
        if row is not best
        and row.accuracy is not None
        and row.accuracy + max(row.spread, best.spread) >= (best.accuracy or 0.0)
    ]
    one = f"; not distinguishable from {best.model} in accuracy: "
    return one + ", ".join(close) if close else ""


def _excess(row: Row, budgets: Sequence[Budget]) -> float:
    """The largest share that it takes of a budget; at most 1 fits."""
    return max(budget.of(row) / budget.most for budget in budgets)


def _traits(row: Row, rows: Sequence[Row]) -> list[str]:
    best, worst, between = [], [], []
    for measure in _MEASURES:
        own = measure.value(row)
        values = [value for other in rows if (value := measure.value(other)) is not None]
        if own is None or min(values) == max(values):
            continue
        if own == max(values):
            best.append(measure.best)
        elif own == min(values):
            worst.append(measure.worst)
        else:
            rank = 1 + sum(value > own for value in values)
            between.append(_Place(rank / len(values), rank, len(values), measure.what))
    traits = [", ".join(words) for words in (best, worst) if words]
    ranks = sorted({place.share for place in between})
    if not traits and len(ranks) == 1:
        traits.append(_places(between, ranks[0]))
    elif ranks:
        if not best:
            traits.insert(0, f"at best {_places(between, ranks[0])}")
        if not worst:
            traits.append(f"at worst {_places(between, ranks[-1])}")
    if row.accuracy is None:
        failed = isinstance(row.tuned, Failure)
        traits.append(f"{row.lack} when fine-tuned" if failed else f"{row.lack}, so no accuracy")
    if isinstance(row.tuned, Tuned) and _gained_nothing(row.tuned, row.probe):
        traits.append("no better than its linear probe: more epochs of --finetune may help")
    if better := [other for other in pareto_front(rows) if beats(other, row)]:
        traits.append(f"{better[-1].model} is at least as accurate and, {WITHIN}, at least as fast")
    return traits or ["nothing tells it from the others"]


def _gained_nothing(tuned: Tuned, probe: Probe | None) -> bool:
    return probe is not None and tuned.accuracy <= probe.mean and tuned.right < tuned.images


class _Place(NamedTuple):
    share: float
    rank: int
    of: int
    what: str


def _places(places: Sequence[_Place], share: float) -> str:
    """`2nd of 10 in accuracy, size`: the measures with this share of the ranks."""
    same = [place for place in places if place.share == share]
    names = ", ".join(place.what for place in same)
    return f"{_ordinal(same[0].rank)} of {same[0].of} in {names}"


def _ordinal(rank: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{'th' if rank % 100 in (11, 12, 13) else ending}"
