"""A comparison in words: what each network is good and bad at, and which to take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtl.comparison.results import WITHIN, Failure, Row, Tuned, beats, number, pareto_front
from jaxtl.errors import UserError

_Value = Callable[[Row], float | None]
_MEASURES: tuple[tuple[str, str, str, _Value], ...] = (  # name, best, worst, value: more is better
    ("accuracy", "most accurate", "least accurate", lambda row: row.accuracy),
    ("latency", "fastest at inference", "slowest at inference", lambda row: -row.cost.latency_ms),
    ("speed of fine-tuning", "fastest to fine-tune", "slowest to fine-tune",
     lambda row: row.cost.finetuning_images_per_second),
    ("size", "smallest", "largest", lambda row: -row.cost.weights_mb),
    ("memory of fine-tuning", "needs least memory to fine-tune", "needs most memory to fine-tune",
     lambda row: -row.cost.finetuning_memory_mb),
    ("accuracy per parameter", "most accuracy per parameter", "least accuracy per parameter",
     lambda row: row.density),
)  # fmt: skip
_LIMITS: dict[str, tuple[str, Callable[[Row], float]]] = {
    "ms": ("ms an image", lambda row: row.cost.latency_ms),
    "mb": ("MB of weights", lambda row: row.cost.weights_mb),
    "macs": ("million MACs", lambda row: row.cost.macs / 1e6),
}


class Budget(NamedTuple):
    """The most that a network may cost.

    Attributes:
        most: a finite number above 0.
        unit: the unit of this number, in words.
        cost: the same cost of a network.
    """

    most: float
    unit: str
    cost: Callable[[Row], float]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads `ms=20` (for one image), `mb=10` (of weights) or `macs=300` (millions).

        Raises:
            UserError: the text is not a budget.
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
        return cls(most, *_LIMITS[key])


def characters(rows: Sequence[Row]) -> list[str]:
    """One line for each network: what it is best and worst at among those that were measured."""
    return [f"{row.model}: {'; '.join(_traits(row, rows))}" for row in rows]


def advice(rows: Sequence[Row], budgets: Sequence[Budget]) -> list[str]:
    """Which network to take: under each budget and all of them, or, without any, of the front."""
    if budgets:
        lines = [_within([budget], rows) for budget in budgets]
        return lines if len(budgets) == 1 else [*lines, _within(budgets, rows)]
    front = pareto_front(rows)
    if not front:
        return ["no network has an accuracy, so none can be recommended"]
    names = [f"{r.model} ({r.accuracy_text}, {number(r.cost.latency_ms)} ms)" for r in front]
    alike = _alike(_best(front), rows)
    if len(front) == 1:
        return [f"take {names[0]}, alone on the Pareto front{alike}"]
    return [f"take one of the Pareto front, the fastest first: {', '.join(names)}{alike}"]


def _within(budgets: Sequence[Budget], rows: Sequence[Row]) -> str:
    under = "under " + " and ".join(f"{budget.most:g} {budget.unit}" for budget in budgets)

    def excess(row: Row) -> float:
        return max(budget.cost(row) / budget.most for budget in budgets)

    fitting = [row for row in rows if excess(row) <= 1]
    if known := [row for row in fitting if row.score]:
        row = _best(known)
        return f"{under}: {row.model}, {row.accuracy_text}{_alike(row, known)}"
    if fitting:
        names = ", ".join(row.model for row in fitting)
        return f"{under}: {names}, of which no accuracy is known"
    nearest = min(rows, key=excess)
    has = " and ".join(f"{number(budget.cost(nearest))} {budget.unit}" for budget in budgets)
    return f"{under}: none; {nearest.model} comes nearest with {has}, {nearest.accuracy_text}"


def _best(rows: Sequence[Row]) -> Row:
    """The most accurate; of equals the fastest, and of those the smallest."""
    return max(rows, key=lambda r: (r.accuracy or 0.0, -r.cost.latency_ms, -r.cost.weights_mb))


def _alike(best: Row, rows: Sequence[Row]) -> str:
    """The networks whose accuracy is within a spread of the best, its own or theirs, in words."""
    close = [
        row.model
        for row in rows
        if row is not best
        and row.score
        and best.score
        and row.score.accuracy + max(row.score.spread, best.score.spread) >= best.score.accuracy
    ]
    names = ", ".join(close)
    return f"; not distinguishable from {best.model} in accuracy: {names}" if close else ""


def _traits(row: Row, rows: Sequence[Row]) -> list[str]:
    traits = _ranks(row, rows)
    if not row.score:
        when = " when fine-tuned" if isinstance(row.tuned, Failure) else ", so no accuracy"
        traits.append(row.missing + when)
    tuned, probe = row.tuned, row.probe
    if isinstance(tuned, Tuned) and probe and probe.accuracy >= tuned.accuracy < 100:
        traits.append("no better than its linear probe: more epochs of --finetune may help")
    if better := [other for other in pareto_front(rows) if beats(other, row)]:
        traits.append(f"{better[-1].model} is at least as accurate and, {WITHIN}, at least as fast")
    return traits or ["nothing tells it from the others"]


def _ranks(row: Row, rows: Sequence[Row]) -> list[str]:
    """What it is best and worst at; if it is neither at anything, its best and its worst rank."""
    bests, worsts = [], []
    between: dict[tuple[int, int], list[str]] = {}  # measures by rank and number of ranks
    for what, best, worst, value_of in _MEASURES:
        own = value_of(row)
        values = [value for other in rows if (value := value_of(other)) is not None]
        if own is None or min(values) == max(values):
            continue
        if own == max(values):
            bests.append(best)
        elif own == min(values):
            worsts.append(worst)
        else:
            rank = 1 + sum(value > own for value in values)
            between.setdefault((rank, len(values)), []).append(what)
    ranks = sorted(between.items(), key=lambda item: item[0][0] / item[0][1])
    places = [f"rank {rank} of {last} in {', '.join(names)}" for (rank, last), names in ranks]
    if not (bests or worsts) and len(places) == 1:
        return places
    traits = [", ".join(words) for words in (bests, worsts) if words]
    if places and not bests:
        traits.insert(0, f"at best {places[0]}")
    if places and not worsts:
        traits.append(f"at worst {places[-1]}")
    return traits
