"""Draws the page of a run, or compares runs: `python -m jaxtl.report RUN [RUN ...]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.errors import UserError

_HELP = """Draws the page of a run again, or a page that compares several runs.

Of one run it validates the result again; of several it reads what they wrote down."""


def main(arguments: Sequence[str]) -> int:
    """Reads the flags and draws; returns the exit code."""
    flags = cli.parser("jaxtl.report", _HELP)
    flags.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory")
    flags.add_argument(
        "--to", type=Path, metavar="FILE", help="the page to write [of one run RUN/report.html]"
    )
    given = flags.parse_args(arguments)
    if len(given.runs) > 1 and given.to is None:
        raise UserError("several runs are compared in a page of its own: name it with --to FILE")

    from jaxtl.reports import write_comparison
    from jaxtl.training.cluster import warn_if_several
    from jaxtl.training.report import draw_again

    warn_if_several("jaxtl.report")
    if len(given.runs) > 1:
        written = write_comparison(given.runs, given.to)
    else:
        written = draw_again(given.runs[0], given.to)
    print(written)
    return 0


if __name__ == "__main__":
    cli.run(main)
