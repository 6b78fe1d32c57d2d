"""Writes a run as one file for other runtimes: `python -m jaxtl.export --run DIR --to FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtl import cli

_HELP = """Writes a trained run as one file that runs without jaxtl.

Normalisation, network and softmax are in it: it takes any number of uint8 images, RGB, of the
run's size, and gives their probabilities. FILE.json says which classes they are of, and how images
are resized. The suffix decides:
  .onnx        for onnxruntime and what else reads ONNX
  .stablehlo   for jax.export on CPUs, NVIDIA GPUs and TPUs
  .keras       for Keras 3
  .tflite      for TensorFlow Lite
The file is measured in its own runtime on the run's validation images before it is there."""


def main(arguments: Sequence[str]) -> int:
    """Reads the flags, writes the file and says how accurate it is; returns the exit code."""
    flags = cli.parser("jaxtl.export", _HELP)
    flags.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run directory")
    flags.add_argument("--to", required=True, type=Path, metavar="FILE", help="must not exist")
    flags.add_argument(
        "--int8", action="store_true", help="weights and feature maps of eight bits (.onnx)"
    )
    given = flags.parse_args(arguments)

    from jaxtl.exporting.export import export_run

    done = export_run(given.run, given.to, int8=given.int8)
    names = {
        "run": "the run",
        "float": f"float32 in {done.runtime}",
        "file": f"{done.path} in {done.runtime}",
    }
    for key, sums in done.sums.items():
        accuracy = int(sums.top1) / int(sums.images)
        print(f"{names[key]}: accuracy {accuracy:.4f} ({sums.top1}/{sums.images} correct)")
    print(f"probabilities differ by at most {done.difference:.2g}")
    print(f"{done.path}: {done.bytes / 1e6:.1f} MB, described in {done.about}; run: {done.line}")
    return 0


if __name__ == "__main__":
    cli.run(main)
