"""Looks at every image before training does: `python -m jaxtl.check --data SOURCE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli

_HELP = """Looks at every image of a data set: what cannot be decoded, what is in two splits, which
images are the same or look the same, and what the images are like.

The exit code is 1 where something has to be mended: an image that cannot be used, the same image in
two splits, a class without images, or anything else that training refuses. A second check costs
little: what is known of a file is kept until it changes."""


def main(arguments: Sequence[str]) -> int:
    """Reads the flags, checks the data and prints what was found; returns the exit code."""
    flags = cli.parser("jaxtl.check", _HELP)
    flags.add_argument(
        "--data", required=True, metavar="SOURCE", help="a folder, csv:FILE, tfds:NAME or digits"
    )
    flags.add_argument("--json", type=Path, metavar="FILE", help="write everything found to it")
    given = flags.parse_args(arguments)
    if given.json is not None and not given.json.resolve().parent.is_dir():
        flags.error(f"argument --json: there is no folder {given.json.parent}")

    from jaxtl.console import console
    from jaxtl.data.check_table import check_table
    from jaxtl.data.checking import check
    from jaxtl.files import write_json

    report = check(given.data)
    if given.json is not None:
        write_json(given.json, report.as_json())
    console().print(check_table(report))
    return 1 if report.wrong else 0


if __name__ == "__main__":
    cli.run(main)
