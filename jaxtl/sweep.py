"""Trains the variations of a config: `python -m jaxtl.sweep --cfg sweep_heads.py`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.errors import Interrupted, UserError

_HELP = """Trains the variations that a config's sweep() yields, one run directory each; without a
sweep(), the folds of a cross-validation (--cfg.data.folds=5); with --trials, those that its
search(trial) suggests to Optuna, until there are so many.

Any other key of the config can be set by a flag, as in jaxtl.train.

Runs that only train a head, on features that fit in memory, and differ only in learning rate,
weight decay, label smoothing or seed, train together in groups, each in one program. The best run
of each group gets a report.html; `python -m jaxtl.report DIR` draws that of any other
run.

A run that fails does not end the sweep: the others train, the table at the end says what failed
and why, and the exit code is 1.

Run the same command with the same --workdir to continue a sweep that was stopped, or to try again
what failed: runs that are complete stay as they are, and those that were training together begin
again."""


def main(arguments: Sequence[str]) -> int:
    """Reads the flags and trains; returns the exit code."""
    flags = cli.parser("jaxtl.sweep", _HELP)
    flags.add_argument("--cfg", required=True, metavar="FILE", help="has sweep() or search(trial)")
    flags.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="where the run directories lie [runs/CONFIG-sweep-DATE-TIME]",
    )
    flags.add_argument("--trials", type=int, metavar="N", help="search in so many trials")
    flags.add_argument(
        "--storage", metavar="URL", help="the database of a search [sqlite in the workdir]"
    )
    given, rest = flags.parse_known_args(arguments)

    from jaxtl.console import console
    from jaxtl.data.splits import OpenOnce
    from jaxtl.sweeps.failure import failed
    from jaxtl.sweeps.search import load_search, search
    from jaxtl.sweeps.sweep import sweep
    from jaxtl.sweeps.variations import load_sweep
    from jaxtl.training.cluster import warn_if_several

    warn_if_several("jaxtl.sweep")
    overrides, images = cli.overrides(rest), OpenOnce()
    searches = given.trials is not None or given.storage is not None
    what = load_search(given.cfg, overrides, images.count) if searches else None
    if searches and what is None:
        raise UserError(f"{given.cfg} has no search(trial), which --trials and --storage are about")
    if searches and (given.trials is None or given.trials < 1):
        raise UserError("a search needs a number of trials, at least 1: --trials 30")
    now = time.strftime("%Y%m%d-%H%M%S")
    workdir = given.workdir or Path("runs") / f"{Path(given.cfg).stem}-sweep-{now}"
    out = console()
    begun = "to continue this sweep if it is stopped, name it with --workdir"
    try:
        if what:
            out.print(f"{workdir}: {begun}")
            return int(not search(what, workdir, given.trials, given.storage, out, images))
        variations = load_sweep(given.cfg, overrides, images.count)
        out.print(f"{workdir}: {begun}")
        outcomes = sweep(variations, workdir, out, images)
    except Interrupted as stopped:
        out.print(f"stopped; to continue: the same command with --workdir {workdir}")
        return stopped.exit_code
    return int(any(map(failed, outcomes.values())))


if __name__ == "__main__":
    cli.run(main)
