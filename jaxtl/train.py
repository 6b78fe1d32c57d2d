"""Fine-tunes an image classifier: `python -m jaxtl.train --cfg mnv2.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.errors import Interrupted, UserError

_HELP = """Fine-tunes an image classifier.

Any key of the config can be set by a flag: --cfg.data.source=path/to/images
--cfg.data.batch_size=64 --cfg.phases.head.lr=0.003

To continue a run that was stopped, start the same command again. Without --workdir an unfinished
run of the same config and data in runs/ is continued."""


def main(arguments: Sequence[str]) -> int:
    """Reads the flags and trains; returns the exit code."""
    flags = cli.parser("jaxtl.train", _HELP)
    flags.add_argument("--cfg", required=True, metavar="FILE", help="the config, such as mnv2.py")
    cli.add_processes(flags)
    where = flags.add_mutually_exclusive_group()
    where.add_argument(
        "--workdir", type=Path, metavar="DIR", help="the run directory [runs/CONFIG-DATE-TIME]"
    )
    where.add_argument("--new", action="store_true", help="do not continue an unfinished run")
    compile_for = "train nothing: compile for accelerators, such as tpu:v5e-8 or gpu:h100x8"
    where.add_argument("--compile-for", metavar="TARGET", help=compile_for)
    flags.add_argument(
        "--profile", metavar="START:STOP", help="trace these steps into the run directory"
    )
    cli.add_trackers(flags)
    given, rest = flags.parse_known_args(arguments)
    if given.compile_for is not None:
        _compile(given, rest)
        return 0

    from jaxtl.config.config_file import load
    from jaxtl.console import console
    from jaxtl.data.splits import OpenOnce
    from jaxtl.training.cluster import joined
    from jaxtl.training.hosts import is_first, together
    from jaxtl.training.profiling import steps_to_trace
    from jaxtl.training.setup import choose_workdir, train

    profile = range(0) if given.profile is None else steps_to_trace(given.profile)
    out, workdir, overrides = console(), given.workdir, cli.overrides(rest)
    again = "the same command without --new" if given.new else "the same command"
    begun = False
    try:
        with joined(given.coordinator, given.num_processes, given.process_id, out):
            out.quiet = not is_first()
            images = OpenOnce()
            config = together(lambda: load(given.cfg, overrides, images.count))
            data = together(lambda: images(config.data))
            if workdir is None:
                workdir = choose_workdir(config, data, Path(given.cfg).stem, given.new, out)
            begun = True
            if folds := config.data.folds:
                out.print(f"fold {config.data.fold} (of 0 to {folds - 1}) is for validation")
            out.print(f"{workdir}: if the run is stopped, {again} continues it")
            train(config, data, workdir, out, profile, trackers=given.track, show_test=True)
    except Interrupted as stopped:
        if not begun:
            raise
        saved = "" if stopped.__cause__ else " and saved"
        instead = " in place of --new" if given.new else ""
        out.print(
            f"stopped{saved}; to continue: the same command with --workdir {workdir}{instead}"
        )
        return stopped.exit_code
    return 0


def _compile(given: argparse.Namespace, rest: Sequence[str]) -> None:
    """Compiles for accelerators that are not there."""
    besides = (given.profile, given.coordinator, given.num_processes, given.process_id)
    if given.track or any(flag is not None for flag in besides):
        raise UserError("--compile-for trains nothing: leave out flags but --cfg and its keys")
    from jaxtl.training.compiling import compile_and_print

    compile_and_print(given.compile_for, given.cfg, cli.overrides(rest))


if __name__ == "__main__":
    cli.run(main)
