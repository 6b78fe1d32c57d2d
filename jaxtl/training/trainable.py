"""What trains in a phase, what is frozen, and where the frontier lies."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flax import nnx

from jaxtl.config.phases import Stages
from jaxtl.errors import UserError
from jaxtl.models import (
    BatchNorm,
    InvertedResidual,
    Network,
    Variables,
    batch_statistics,
    layer_of,
    merge,
    split,
    stage_of,
)

FROZEN = "frozen"


@dataclass(frozen=True)
class Trainable:
    """What trains in a phase.

    Attributes:
        multipliers: the learning-rate multiplier of each parameter that trains, by path.
        labels: the optimizer group of every parameter, by path: its multiplier, or `frozen`.
        statistics: the batch statistics that training updates.
        frontier: the first stage with anything to train.
    """

    multipliers: dict[str, float]
    labels: dict[str, str]
    statistics: frozenset[str]
    frontier: str

    @property
    def variables(self) -> frozenset[str]:
        """All variables that the phase may change; every other variable keeps its bits."""
        return frozenset(self.multipliers) | self.statistics


def select_trainable(
    network: Network, rules: Mapping[str, float] | Stages, batch_norm: str
) -> Trainable:
    """Applies the rules of a phase to a network.

    Args:
        network: the structure of the network.
        rules: regular expressions over whole parameter paths, with learning-rate multipliers; the
            first match counts, and a parameter without a match is frozen. Or the stages that train.
        batch_norm: `train` updates the statistics of BatchNorms with a trained scale or bias,
            `frozen` updates none.

    Raises:
        UserError: a pattern is not a regular expression, matches nothing, or matches only what
            earlier patterns match; no stage of that name has parameters; or `batch_norm="train"`
            would update nothing.
    """
    all_statistics = batch_statistics(network)
    paths = [path for path in split(network)[1] if path not in all_statistics]
    if isinstance(rules, Stages):
        multipliers = _of_stages(network, paths, rules)
    else:
        multipliers = _first_matches(paths, rules)
    labels = dict.fromkeys(paths, FROZEN) | {p: f"x{m!r}" for p, m in multipliers.items()}
    statistics: frozenset[str] = frozenset()
    if batch_norm == "train":
        trained_layers = {layer_of(path) for path in multipliers}
        statistics = frozenset(p for p in all_statistics if layer_of(p) in trained_layers)
        if not statistics:
            raise UserError(
                "batch_norm='train' updates no statistics: no pattern trains a BatchNorm's scale "
                "or bias; take batch_norm='frozen', or train such a BatchNorm too"
            )
    stages = {stage_of(path) for path in multipliers}
    frontier = next(stage for stage in network.stage_names if stage in stages)
    return Trainable(multipliers, labels, statistics, frontier)


def training_graph(
    network: Network,
    trainable: Trainable,
    *,
    momentum: float,
    axis_name: str,
    fused: bool = False,
    recomputed: bool = False,
) -> nnx.GraphDef:
    """The network's structure, with the BatchNorms that train in training mode.

    Args:
        network: the structure; it is not changed.
        trainable: what trains.
        momentum: the fraction of the running statistics that a training step keeps.
        axis_name: the mapped axis over which batch statistics are shared.
        fused: whether they take the operations beside them in, as for `BatchNorm`.
        recomputed: whether blocks around them compute maps again, as for `InvertedResidual`.
    """
    copy = merge(*split(network))
    layers = {layer_of(path) for path in trainable.statistics}
    for path, module in nnx.iter_modules(copy):
        name = "/".join(map(str, path))
        if isinstance(module, BatchNorm):
            module.training = name in layers
            module.momentum, module.axis_name = momentum, axis_name
            module.fused = fused
        elif isinstance(module, InvertedResidual):
            module.recomputes = recomputed and f"{name}/depthwise_bn" in layers
    return split(copy)[0]


def running_momentum(steps: int) -> float:
    """A BatchNorm momentum with which the statistics settle well within a phase.

    The running mean forgets with a time constant of 1 / (1 - momentum) steps: a twentieth of the
    phase, but at least 10 steps (enough batches to average) and at most 100 (Keras' default of
    0.99). Statistics that lag behind the parameters ruin short runs
    (docs/decisions/0004-batchnorm-momentum.md).
    """
    return 1 - 1 / min(max(steps / 20, 10.0), 100.0)


def partition(variables: Variables, paths: Iterable[str]) -> tuple[Variables, Variables]:
    """Splits variables into those at `paths` and the others."""
    chosen = frozenset(paths)
    inside = {path: value for path, value in variables.items() if path in chosen}
    return inside, {path: value for path, value in variables.items() if path not in chosen}


def _first_matches(paths: list[str], rules: Mapping[str, float]) -> dict[str, float]:
    multipliers: dict[str, float] = {}
    for pattern, multiplier in rules.items():
        try:
            matched = [path for path in paths if re.fullmatch(pattern, path)]
        except re.error as error:
            raise UserError(f"pattern {pattern!r} is not a regular expression: {error}") from error
        if not matched:
            raise UserError(
                f"pattern {pattern!r} matches no parameter; the paths are {_summary(paths)}"
            )
        fresh = [path for path in matched if path not in multipliers]
        if not fresh:
            raise UserError(
                f"pattern {pattern!r} has no effect: earlier patterns match all its parameters"
            )
        multipliers |= dict.fromkeys(fresh, float(multiplier))
    return multipliers


def _of_stages(network: Network, paths: list[str], rule: Stages) -> dict[str, float]:
    filled = {stage_of(path) for path in paths}
    stages = [stage for stage in network.stage_names if stage in filled]
    first = stages[0] if rule.from_stage is None else rule.from_stage
    if first not in stages:
        near = difflib.get_close_matches(first, stages, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{network.name} has no stage {first!r} with parameters, only {', '.join(stages)}{hint}"
        )
    trained = stages[stages.index(first) :]
    multipliers = {stage: rule.decay**back for back, stage in enumerate(reversed(trained))}
    return {path: multipliers[s] for path in paths if (s := stage_of(path)) in multipliers}


def _summary(paths: list[str]) -> str:
    """All parameter paths in one line; stages with the same parameters share an entry."""
    inner: dict[str, list[str]] = {}
    for path in paths:
        stage, _, rest = path.partition("/")
        inner.setdefault(stage, []).append(rest)
    stages: dict[tuple[str, ...], list[str]] = {}
    for stage, rests in inner.items():
        stages.setdefault(tuple(sorted(rests)), []).append(stage)
    return ", ".join(
        f"{_any_of(sorted(names, key=_natural))}/{_any_of(rests)}"
        for rests, names in stages.items()
    )


def _any_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"({'|'.join(names)})"


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
