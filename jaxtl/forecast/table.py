"""The table of `jaxtl train --compile-for`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from jaxtl.forecast.bounds import Forecast, usable_memory
from jaxtl.forecast.target import Target


def forecast_table(title: str, steps: Sequence[Forecast], described: Target) -> Table:
    """What each step of a phase costs, and its bounds: a column for each step."""
    table = Table(title=title, title_justify="left")
    table.add_column("on each device")
    for step in steps:
        table.add_column(step.name, justify="right")
    programs = [step.program for step in steps]
    for name, key in (
        ("memory: arguments", "argument_bytes"),
        ("temporaries", "temporary_bytes"),
        ("results", "result_bytes"),
        ("in all", "memory_bytes"),
        ("bytes moved", "moved_bytes"),
        ("all-reduced", "all_reduced_bytes"),
    ):
        table.add_row(name, *(_bytes(getattr(p, key)) if p else "-" for p in programs))
    table.add_row("all-reduces", *(f"{p.all_reduces:,}" if p else "-" for p in programs))
    table.add_row("operations", *(f"{p.operations / 1e9:,.1f} G" if p else "-" for p in programs))
    limit = usable_memory(described)
    fit = ["yes" if p and p.memory_bytes <= limit else "no" for p in programs]
    table.add_row(f"fits in {_bytes(limit)}", *fit)
    table.add_section()
    table.add_row(f"on {described.count:,} together", *[""] * len(steps))
    table.add_row("images a step", *(f"{step.images:,}" for step in steps))
    for what in ("memory", "arithmetic", "links"):
        speeds = (step.images_per_second.get(what) for step in steps)
        table.add_row(f"images/s by {what}", *(f"{s:,.0f}" if s else "-" for s in speeds))
    table.add_row("bound by", *(step.bound_by or "memory it lacks" for step in steps))
    largest = (step.largest_batch for step in steps)
    table.add_row("largest batch that fits", *("-" if n is None else f"{n:,}" for n in largest))
    return table


def caption(described: Target) -> str:
    """What the numbers of the table are, and what they are not."""
    known = described.accelerator
    kept = "; JAX takes three quarters of it" if described.platform == "gpu" else ""
    beyond = ""
    if described.count > known.linked and known.network_bandwidth:
        beyond = f", {known.network_bandwidth / 1e9:,.3g} GB/s through the network"
    return (
        "Nothing was trained. These are bounds and not measurements: what the compiler counts, "
        f"over the published peaks of {known.kind} ({known.memory_bytes / 1e9:,.0f} GB{kept}; "
        f"memory {known.memory_bandwidth / 1e9:,.0f} GB/s, bfloat16 {known.flops / 1e12:,.0f} "
        f"TFLOP/s, links {known.link_bandwidth / 1e9:,.0f} GB/s{beyond}). The largest batch "
        "follows from two compilations, as memory grows linearly with the batch."
    )


def _bytes(count: float) -> str:
    if count < 1e6:
        return f"{count / 1e3:,.1f} kB"
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
