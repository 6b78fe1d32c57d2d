"""Measures networks on your own images: `python -m jaxtl.compare --data SOURCE`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.comparison import AUTO, HEAD_EPOCHS, NARROW
from jaxtl.errors import Interrupted, UserError

_HELP = f"""Measures networks on your own images: how accurate they are, and what they cost.

Accuracy is that of a linear probe: logistic regression on the features of the network with the
weights that a line names, cross-validated over all images. A network whose weights cannot be had
is measured for its cost alone.

With --finetune, a new head trains for {HEAD_EPOCHS} epochs, and then every parameter for as many
as you give; networks are ranked by their accuracy on the validation images in the best of
these."""

_FLAGS = (
    ("--models", None, "NAME[@WIDTH],...", f"the networks [all, and {' and '.join(NARROW)}]"),
    ("--weights", "auto", "SOURCE,...", "where weights come from, each network from the first that "
     f"holds it, or none for cost alone [auto: {','.join(AUTO)}]"),
    ("--image-size", "native", "N", "pixels a side, or smallest: what each network takes at least "
     "[native: 224, or 299]"),
    ("--batch-size", 32, "N", "[32]"),
    ("--finetune", 0, "EPOCHS", f"fine-tune too, {HEAD_EPOCHS} epochs of the head and so many of "
     "every parameter, and rank by that [0: rank by the linear probe]"),
    ("--out", None, "DIR", "where the results go [compare-DATE-TIME]"),
)  # fmt: skip
_BUDGET = "ms=20 an image, mb=10 of weights, or macs=300 million; may be given again"
_MOST = 10**12  # images in a batch: more than any memory holds


def main(arguments: Sequence[str]) -> int:
    """Reads the flags and measures; returns the exit code."""
    flags = cli.parser("jaxtl.compare", _HELP)
    flags.add_argument("--data", required=True, metavar="SOURCE", help="the labelled images")
    for name, default, metavar, text in _FLAGS:
        kind = int if isinstance(default, int) else str
        flags.add_argument(name, type=kind, default=default, metavar=metavar, help=text)
    flags.add_argument("--budget", action="append", default=[], metavar="KEY=MOST", help=_BUDGET)
    given = flags.parse_args(arguments)
    if not 1 <= given.batch_size <= _MOST:
        few = f"--batch-size {given.batch_size}: give a number of at least 1 that fits in memory"
        raise UserError(few)
    if given.finetune < 0:
        raise UserError(f"--finetune {given.finetune}: give a number of at least 0")

    from jaxtl.comparison.advice import Budget
    from jaxtl.comparison.candidates import candidates, sources
    from jaxtl.comparison.compare import Comparison, compare
    from jaxtl.console import console

    comparison = Comparison(
        source=given.data,
        candidates=candidates(given.models, given.image_size),
        weights=sources(given.weights),
        batch_size=given.batch_size,
        epochs=given.finetune,
        budgets=[Budget.parse(text) for text in given.budget],
        folder=Path(given.out or time.strftime("compare-%Y%m%d-%H%M%S")),
    )
    try:
        compare(comparison, console())
    except KeyboardInterrupt as stopped:
        print(
            f"stopped; to continue: the same command with --out {comparison.folder}, which "
            "measures times anew and goes on with fine-tuning"
        )
        return stopped.exit_code if isinstance(stopped, Interrupted) else 130
    return 0


if __name__ == "__main__":
    cli.run(main)
