"""A report on a data set as tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from jaxtl.data.checking import Report
from jaxtl.errors import printable

_SHOWN = 5  # findings of a kind; --json has all


def check_table(report: Report) -> Group:
    """Counts by class, what the images are like, and what was found, the worst first."""
    return Group(_classes(report), "", _properties(report), *_findings(report))


def _classes(report: Report) -> Table:
    table = Table("class", title=printable(report.source), title_justify="left")
    for split in report.splits:
        table.add_column(split, justify="right")
    table.add_column("fraction", justify="right")
    total = sum(report.images.values())
    names = dict.fromkeys(name for counts in report.splits.values() for name in counts)
    for name in names:
        counts = [counts.get(name, 0) for counts in report.splits.values()]
        shown = (f"{count:,}" for count in counts)
        table.add_row(Text(printable(name)), *shown, f"{sum(counts) / max(total, 1):.1%}")
    table.add_section()
    sums = (f"{images:,}" for images in report.images.values())
    table.add_row("all", *sums, "100.0%" if total else "-")
    return table


def _properties(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    sizes: dict[str, int] = {}
    for counts in report.splits.values():
        for name, count in counts.items():
            sizes[name] = sizes.get(name, 0) + count
    if sizes and min(sizes.values()):
        times = max(sizes.values()) / min(sizes.values())
        table.add_row(
            "balance", f"the largest class has {times:.1f} times the images of the smallest"
        )
    for name, values in (("width", report.widths), ("height", report.heights)):
        if values:
            low, middle, high = values
            table.add_row(name, f"{low:g} to {high:g} pixels, median {middle:g}")
    for name, counted in (("format", report.formats), ("mode", report.modes)):
        if counted:
            table.add_row(name, ", ".join(f"{key} {count:,}" for key, count in counted.items()))
    return table


def _findings(report: Report) -> Iterator[RenderableType]:
    refused = [report.refused] if report.refused else []
    leaks = [f"{val} = {train}" for train, val in report.leaks]
    wrong = {
        "what training refuses": refused,
        "images that cannot be used": _pairs(report.bad),
        "class folders without images": report.empty_classes,
        "images that are in two splits": leaks,
    }
    others = {
        "images that look like one of another split": _alike(report.near_leaks),
        "groups of equal files": [" = ".join(group) for group in report.duplicates],
        "images that look like another of their split": _alike(report.near),
        "files named like another format, which is fine": _pairs(report.mismatched),
        "odd names": report.odd_names,
        "files that are not images": report.other_files,
        "hidden files and folders": report.hidden,
    }
    yield from _section("to be mended", "bold red", wrong)
    yield from _section("worth a look", "bold", others)
    if not report.wrong:
        yield Text("\nnothing is wrong", style="green")


def _pairs(pairs: list[tuple[str, str]]) -> list[str]:
    return [f"{name}: {text}" for name, text in pairs]


def _alike(pairs: list[tuple[str, str, int]]) -> list[str]:
    return [f"{second} ~ {first} ({bits} of 64 bits differ)" for first, second, bits in pairs]


def _section(heading: str, style: str, lists: dict[str, list[str]]) -> Iterator[RenderableType]:
    if any(lists.values()):
        yield Text(f"\n{heading}", style=style)
    for title, found in lists.items():
        if not found:
            continue
        yield Text(f"  {title}: {len(found):,}")
        lines = Table.grid(padding=(0, 1, 0, 0))  # lines that are too long go on below their start
        for name in found[:_SHOWN]:
            lines.add_row("   -", Text(printable(name), overflow="fold"))
        if len(found) > _SHOWN:
            lines.add_row("", f"and {len(found) - _SHOWN:,} more; --json FILE has them all")
        yield lines
