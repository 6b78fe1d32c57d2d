"""Writes a run as one file for other runtimes: `python -m jaxtl.export --run DIR --to FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtl import cli

if TYPE_CHECKING:  # the command answers --help at once
    from jaxtl.exporting.export import Exported

_HELP = """Writes a trained run as one file that runs without jaxtl.

Normalisation, network and softmax (of several labels sigmoid) are in it: it takes any number of
uint8 images, RGB, of the run's size, and gives their probabilities. FILE.json says which classes
they are of, from which threshold on an image has a label, and how images are resized. The suffix
decides:
  .onnx        for onnxruntime and what else reads ONNX
  .stablehlo   for jax.export on CPUs, NVIDIA GPUs and TPUs
  .keras       for Keras 3
  .tflite      for TensorFlow Lite
  .md          the model card alone: data, accuracy with intervals, limits
The file is measured in its own runtime on the run's validation images before it is there."""


def main(arguments: Sequence[str]) -> int:
    """Reads the flags, writes the file and says how accurate it is; returns the exit code."""
    flags = cli.parser("jaxtl.export", _HELP)
    flags.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run directory")
    flags.add_argument("--to", required=True, type=Path, metavar="FILE", help="must not exist")
    flags.add_argument(
        "--int8", action="store_true", help="weights and feature maps of eight bits (.onnx)"
    )
    flags.add_argument(
        "--push", metavar="hf:USER/NAME", help="upload the file, its JSON and the model card"
    )
    given = flags.parse_args(arguments)

    from jaxtl.exporting import export, push
    from jaxtl.exporting.card import model_card
    from jaxtl.training.cluster import warn_if_several

    warn_if_several("jaxtl.export")
    if given.push:
        push.check_target(given.push)
    run = export.open_run(given.run, given.to, int8=given.int8)
    if run.unfinished:
        print(f"{given.run} has not ended: {run.unfinished}")
    repository = push.create_repository(given.push) if given.push else None
    if given.to.suffix == export.CARD:
        export.write_card(run, given.to)
        print(f"{given.to}: written")
        files = {"README.md": given.to}
    else:
        done = export.export_run(run, given.to, int8=given.int8)
        _say(done)
        files = {path.name: path for path in (done.path, done.about)}
        if repository:
            files["README.md"] = model_card(run, done.evaluation).encode()
    if repository:
        print(f"uploaded: {push.upload(repository, files)}")
    return 0


def _say(done: Exported) -> None:
    """Prints how accurate a file is, and what runs it."""
    from jaxtl.console import correct_text

    names = {
        "run": "the run",
        "float": f"float32 in {done.runtime}",
        "file": f"{done.path} in {done.runtime}",
    }
    for key, sums in done.sums.items():
        correct, images = int(sums.top1), int(sums.images)
        print(f"{names[key]}: accuracy {correct / images:.4f} {correct_text(correct, images)}")
    print(f"probabilities differ by at most {done.difference:.2g}")
    print(f"{done.path}: {done.bytes / 1e6:.1f} MB, described in {done.about}; run: {done.usage}")


if __name__ == "__main__":
    cli.run(main)
