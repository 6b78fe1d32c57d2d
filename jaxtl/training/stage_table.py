"""The table that a run prints first: what each phase trains."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.table import Table

from jaxtl.config import Phase
from jaxtl.models import Network, batch_statistics, split, stage_of
from jaxtl.training.trainable import FROZEN, Trainable


def stage_table(
    network: Network, phases: Sequence[Phase], trainables: Sequence[Trainable]
) -> Table:
    """What each phase trains in each stage; adjacent stages with the same entries share a row."""
    table = Table(title=f"{network.name}, width {network.width:g}", title_justify="left")
    table.add_column("stage")
    table.add_column("parameters", justify="right")
    for phase in phases:
        table.add_column(f"phase {phase.name}")
    statistics = batch_statistics(network)
    sizes: dict[str, dict[str, int]] = {stage: {} for stage in network.stage_names}
    for path, value in split(network)[1].items():
        if path not in statistics:
            sizes[stage_of(path)][path] = value.size
    treatments = {
        stage: tuple(map(_treatment, itertools.repeat(of_stage), phases, trainables))
        for stage, of_stage in sizes.items()
        if of_stage
    }
    for treatment, group in itertools.groupby(treatments, treatments.__getitem__):
        stages = list(group)
        name = stages[0] if len(stages) == 1 else f"{stages[0]} ... {stages[-1]}"
        table.add_row(name, f"{sum(sum(sizes[s].values()) for s in stages):,}", *treatment)
    all_sizes = {path: size for of_stage in sizes.values() for path, size in of_stage.items()}
    total = sum(all_sizes.values())
    trained = [sum(all_sizes[path] for path in t.multipliers) for t in trainables]
    table.add_section()
    table.add_row("trained", "", *(f"{count:,}" for count in trained))
    table.add_row("frozen", f"{total:,}", *(f"{total - count:,}" for count in trained))
    table.add_row("frontier", "", *(trainable.frontier for trainable in trainables))
    return table


def _treatment(sizes: dict[str, int], phase: Phase, trainable: Trainable) -> str:
    labels = {trainable.labels[path] for path in sizes}
    if labels == {FROZEN}:
        return FROZEN
    multipliers = {trainable.multipliers[p] for p in sizes if p in trainable.multipliers}
    partly = "partly " if FROZEN in labels else ""
    auto = "auto times " if phase.lr == "auto" else ""
    lrs = ", ".join(f"{phase.base_lr * multiplier:g}" for multiplier in sorted(multipliers))
    return f"{partly}trained, learning rate {auto}{lrs}"
