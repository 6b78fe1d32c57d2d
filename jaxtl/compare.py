"""Measures networks on your own images: `python -m jaxtl.compare --data SOURCE`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.comparison.advice import Budget
from jaxtl.comparison.candidates import AUTO, NARROW, candidates, sources
from jaxtl.comparison.compare import compare
from jaxtl.comparison.measuring import HEAD_EPOCHS, Comparison
from jaxtl.console import console
from jaxtl.errors import UserError
from jaxtl.training.loop import Interrupted

_HELP = f"""Measures networks on your own images: how accurate they are, and what they cost.

Accuracy is that of a linear probe: logistic regression on the features of the network with the
weights that a line names, cross-validated over all images. A network whose weights cannot be had
is measured for its cost alone.

With --finetune, a new head trains for {HEAD_EPOCHS} epochs, and then every parameter for as many
as you give; networks are ranked by their accuracy on the validation images in the best of
these."""

_MOST = 10**12  # images in a batch, of which no memory holds as many


def main(arguments: Sequence[str]) -> int:
    """The command."""
    given = _flags().parse_args(arguments)
    for flag, least in (("batch_size", 1), ("finetune", 0)):
        if getattr(given, flag) < least:
            name = flag.replace("_", "-")
            raise UserError(f"--{name} {getattr(given, flag)}: give a number of at least {least}")
    if given.batch_size > _MOST:
        raise UserError(f"--batch-size {given.batch_size}: give a number that fits in memory")
    comparison = Comparison(
        source=given.data,
        candidates=candidates(given.models, given.image_size),
        weights=sources(given.weights),
        batch_size=given.batch_size,
        epochs=given.finetune,
        budgets=[Budget.parse(text) for text in given.budget],
        folder=given.out or Path(time.strftime("compare-%Y%m%d-%H%M%S")),
    )
    try:
        compare(comparison, console())
    except (KeyboardInterrupt, Interrupted):
        print(
            f"stopped; to continue: the same command with --out {comparison.folder}, which "
            "measures times anew and goes on with fine-tuning"
        )
        return 130
    return 0


def _flags() -> argparse.ArgumentParser:
    flags = cli.parser("jaxtl.compare", _HELP)
    flags.add_argument("--data", required=True, metavar="SOURCE", help="the labelled images")
    flags.add_argument(
        "--models",
        metavar="NAME[@WIDTH],...",
        help=f"the networks [all, and {' and '.join(NARROW)}]",
    )
    flags.add_argument(
        "--weights",
        default="auto",
        metavar="SOURCE,...",
        help="where weights come from, each network from the first that holds it, or none for cost "
        f"alone [auto: {','.join(AUTO)}]",
    )
    flags.add_argument(
        "--image-size",
        default="native",
        metavar="N",
        help="pixels a side, or smallest: what each network takes at least [native: 224, or 299]",
    )
    flags.add_argument("--batch-size", type=int, default=32, metavar="N", help="[32]")
    flags.add_argument(
        "--finetune",
        type=int,
        default=0,
        metavar="EPOCHS",
        help=f"fine-tune too, {HEAD_EPOCHS} epochs of the head and so many of every parameter, "
        "and rank by that [0: rank by the linear probe]",
    )
    flags.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="KEY=MOST",
        help="ms=20 an image, mb=10 of weights, or macs=300 million; may be given again",
    )
    flags.add_argument(
        "--out", type=Path, metavar="DIR", help="where the results go [compare-DATE-TIME]"
    )
    return flags


if __name__ == "__main__":
    cli.run(main)
