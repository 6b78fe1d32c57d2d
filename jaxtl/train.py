"""Fine-tunes an image classifier: `python -m jaxtl.train --cfg mnv2.py`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.config.config_file import load
from jaxtl.console import console
from jaxtl.training.loop import Interrupted
from jaxtl.training.setup import train

_HELP = """Fine-tunes an image classifier.

Any key of the config can be set by a flag: --cfg.data.source=path/to/images
--cfg.data.batch_size=64 --cfg.phases.head.lr=0.003

Run the same command with the same --workdir to continue a run that was stopped."""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    flags = cli.parser("jaxtl.train", _HELP)
    flags.add_argument("--cfg", required=True, metavar="FILE", help="the config, such as mnv2.py")
    flags.add_argument(
        "--workdir", type=Path, metavar="DIR", help="the run directory [runs/CONFIG-DATE-TIME]"
    )
    given, rest = flags.parse_known_args(arguments)
    config = load(given.cfg, cli.overrides(rest))
    now = time.strftime("%Y%m%d-%H%M%S")
    workdir = given.workdir or Path("runs") / f"{Path(given.cfg).stem}-{now}"
    try:
        train(config, workdir, console())
    except Interrupted:
        print(f"stopped and saved; to continue: the same command with --workdir {workdir}")
        return 130
    return 0


if __name__ == "__main__":
    cli.run(main)
