"""Finds a learning rate: `python -m jaxtl.lr_find --cfg mnv2.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.errors import UserError

_HELP = """Finds a learning rate for a phase of a config.

It trains the phase for a hundred steps, each at a higher learning rate, and suggests the one at
which the loss falls fastest. Phases before it are trained first. Nothing is kept but the curve.
Any key of the config can be set by a flag, as in jaxtl.train."""

_FORMATS = (".svg", ".png", ".pdf")  # of the curve


def main(arguments: Sequence[str]) -> int:
    """Reads the flags and prints the suggestion; returns the exit code."""
    flags = cli.parser("jaxtl.lr_find", _HELP)
    flags.add_argument("--cfg", required=True, metavar="FILE", help="the config, such as mnv2.py")
    flags.add_argument("--phase", metavar="NAME", help="the phase [the first]")
    flags.add_argument(
        "--plot", type=Path, default=Path("lr_find.svg"), metavar="FILE", help="[lr_find.svg]"
    )
    given, rest = flags.parse_known_args(arguments)
    if given.plot.suffix.lower() not in _FORMATS:
        raise UserError(f"--plot {given.plot}: give a name that ends in {', '.join(_FORMATS)}")

    from jaxtl.config.config_file import load
    from jaxtl.console import console
    from jaxtl.data.splits import OpenOnce
    from jaxtl.training.cluster import warn_if_several
    from jaxtl.training.lr_finder import range_test
    from jaxtl.training.lr_range import write_curve

    warn_if_several("jaxtl.lr_find")
    out, images = console(), OpenOnce()
    config = load(given.cfg, cli.overrides(rest), images.count)
    name = given.phase or config.phases[0].name
    found = range_test(config, images(config.data), name, out)
    out.print(
        f"the loss falls fastest at a learning rate of {found.suggestion:.2g}: "
        f"--cfg.phases.{name}.lr={found.suggestion:.2g}  ({given.plot})"
    )
    write_curve(given.plot, found, f"{Path(given.cfg).name}, phase {name}")
    return 0


if __name__ == "__main__":
    cli.run(main)
