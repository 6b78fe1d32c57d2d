"""Exports a run, and measures the file before it is there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from jaxtl.data.sources import Subset
from jaxtl.errors import UserError, check_installed
from jaxtl.exporting import keras, onnx, stablehlo, tflite
from jaxtl.exporting.card import model_card
from jaxtl.exporting.classifier import Classify, Format, with_version
from jaxtl.files import as_text, sync, sync_entry, unfinished, write_json, write_whole
from jaxtl.metrics import NONE, Evaluation, Sums
from jaxtl.training.predictor import Predictor

FORMATS: Mapping[str, Format] = {
    ".onnx": Format(
        runtime="onnxruntime",
        needs=("onnx", "onnxruntime"),
        install="pip install 'jaxtl[onnx]'",
        write=onnx.write,
        load=onnx.load,
        usage='onnxruntime.InferenceSession("{file}").run(None, {{"images": images}})[0]',
    ),
    ".stablehlo": Format(
        runtime="jax",
        needs=("flatbuffers",),
        install="pip install 'jaxtl[stablehlo]'",
        write=stablehlo.write,
        load=stablehlo.load,
        usage='jax.export.deserialize(bytearray(open("{file}", "rb").read())).call(images)',
        dtype=None,
        apart=2e-2,  # of bfloat16, and of float32 as accelerators multiply it
    ),
    ".keras": Format(
        runtime="keras",
        needs=("keras",),
        install="pip install 'keras>=3.12'",
        write=keras.write,
        load=keras.load,
        usage='keras.saving.load_model("{file}").predict(images)',
    ),
    ".tflite": Format(
        runtime="ai_edge_litert",
        needs=("keras", "tensorflow", "ai_edge_litert"),
        install="pip install 'jaxtl[tflite]'",
        write=tflite.write,
        load=tflite.load,
        usage='ai_edge_litert.interpreter.Interpreter("{file}").get_signature_runner()'
        '(images=images)["output_0"]',
    ),
}
"""The kinds of files by suffix."""

CARD = ".md"
"""The suffix of a model card."""

_CALIBRATION_IMAGES = 256
_TOLERANCE, _TOLERANCE_INT8 = 0.001, 0.01  # of the accuracy; one image is allowed in any case


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file that was written and measured.

    Attributes:
        path: the file; `about` is the JSON beside it.
        bytes: its size.
        usage: Python that runs it.
        runtime: what measured it, with its version.
        evaluation: the validation of the run in jaxtl.
        sums: the result of the run on its validation images: of jaxtl, of the file, and with
            `int8` of the file before its numbers had eight bits.
        difference: the largest difference of a probability between jaxtl and the file.
    """

    path: Path
    about: Path
    bytes: int
    usage: str
    runtime: str
    evaluation: Evaluation
    sums: Mapping[str, Sums]
    difference: float


def open_run(directory: Path, path: Path, *, int8: bool = False) -> Predictor:
    """Opens a run for `export_run` or `write_card`, once nothing is in the way of the file.

    Args:
        directory: the run directory.
        path: the file to write.
        int8: whether it is to have eight bits.

    Raises:
        UserError: the path is impossible, a package is missing, or there is no run.
    """
    _check_path(path, int8=int8)
    if path.suffix == CARD:
        check_installed("a model card", ("huggingface_hub",), "pip install 'jaxtl[hf]'")
        return Predictor(directory)
    kind = FORMATS[path.suffix]
    check_installed(path.name, kind.needs, kind.install)
    return Predictor(directory, dtype=kind.dtype)


def export_run(predictor: Predictor, path: Path, *, int8: bool = False) -> Exported:
    """Writes a run as one file that takes images and gives probabilities.

    The file is measured in its own runtime, on the validation images of the run, and is there only
    if it is as accurate as the run, to one image or 0.1 % of all, and no probability differs by
    more than the format allows; with `int8` if it is at most 1 % worse.

    Args:
        predictor: the run, from `open_run`.
        path: the file, which must not exist; its suffix is one of `FORMATS`.
        int8: use weights and feature maps of eight bits (ONNX only). Their ranges are measured on
            training images.

    Raises:
        UserError: the data of the run changed, the format cannot express the network, or the file
            does not give what the run gives.
        OSError: the file cannot be written; nothing is left of it.
    """
    kind = FORMATS[path.suffix]
    runtime = with_version(kind.runtime)
    size = predictor.config.model.image_size
    about = path.with_name(f"{path.name}.json")
    with unfinished(path) as folder:
        folder.mkdir()
        file = folder / path.name
        kind.write(predictor.network, file, size, predictor.task.activation)
        files = {"file": kind.load(file)}
        if int8:
            whole = file.rename(folder / f"float.{path.name}")
            onnx.quantize(whole, file, _calibration_images(predictor))
            files = {"float": files["file"], "file": kind.load(file)}
        # As the runtimes on a CPU compute: accelerators give the products of float32 fewer bits.
        exact = jax.default_matmul_precision("highest") if kind.dtype else contextlib.nullcontext()
        with exact:
            evaluation, sums, difference = _measure(predictor, files)
        found = Exported(
            path,
            about,
            file.stat().st_size,
            kind.usage.format(file=path),
            runtime,
            evaluation,
            sums,
            difference,
        )
        _check(found, kind, int8)
        write_json(folder / about.name, _description(predictor, file, found, int8))
        sync(folder)
        os.replace(folder / about.name, about)  # first: a file never is without its description
        os.replace(file, path)
        sync_entry(path.parent)
    return found


def write_card(predictor: Predictor, path: Path) -> None:
    """Measures a run and writes its model card.

    Args:
        predictor: the run, from `open_run`.
        path: the file, which must not exist.

    Raises:
        UserError: the data of the run changed.
        OSError: the file cannot be written; nothing is left of it.
    """
    evaluation = predictor.evaluate(predictor.images("val"))
    write_whole(path, model_card(predictor, evaluation).encode())


def _check_path(path: Path, *, int8: bool) -> None:
    """Refuses a path that nothing can be exported to."""
    if path.suffix not in (*FORMATS, CARD):
        raise UserError(f"{path} does not end in one of {', '.join(FORMATS)}, {CARD}")
    if int8 and path.suffix != ".onnx":
        raise UserError(f"--int8 is for .onnx files, not for {path.name}; leave it out")
    if path.exists():
        raise UserError(f"{path} exists; name another file, or delete it first")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to")


def _calibration_images(predictor: Predictor) -> np.ndarray:
    """Some of the training images, decoded and not augmented."""
    source = predictor.images("train")
    chosen = np.random.default_rng(0).permutation(len(source))[:_CALIBRATION_IMAGES]
    some = Subset(source, chosen, source.labels[chosen], source.classes)
    batches = predictor.loader(some).epoch(0)
    return np.concatenate([batch.inputs[batch.valid] for batch in batches])


def _measure(
    predictor: Predictor, files: Mapping[str, Classify]
) -> tuple[Evaluation, dict[str, Sums], float]:
    """The results of the run and of its files, and the largest difference of a probability."""
    sums, difference, task = dict.fromkeys(["run", *files], NONE), 0.0, predictor.task
    labels, logs = [], []
    for batch, expected in predictor.log_probabilities(predictor.images("val")):
        sums["run"] += task.score(expected, batch.labels, batch.valid)
        labels.append(batch.labels[batch.valid])
        logs.append(expected[batch.valid])
        for name, classify in files.items():
            found = classify(batch.inputs)
            with np.errstate(divide="ignore"):
                sums[name] += task.score(np.log(found), batch.labels, batch.valid)
        apart = np.abs(found - np.exp(expected))[batch.valid]
        difference = float(np.maximum(difference, apart.max(initial=0)))  # NaN stays
    known = np.concatenate(logs)
    evaluation = Evaluation(sums["run"], np.concatenate(labels), task.predicted(known), known)
    return evaluation, sums, difference


def _check(found: Exported, kind: Format, int8: bool) -> None:
    """Refuses a file that does not give what the run gives."""
    tolerance = _TOLERANCE_INT8 if int8 else _TOLERANCE
    run, file = found.sums["run"], found.sums["file"]
    worse = int(run.top1) - int(file.top1)
    if (worse if int8 else abs(worse)) > max(1, tolerance * int(run.images)):
        what = (
            f"it has {file.top1} of {run.images} validation images correct, and the run has "
            f"{run.top1}"
        )
    elif not int8 and not found.difference <= kind.apart:  # which is so of NaN too
        what = (
            f"a probability is {found.difference:.2g} from that of the run, and {kind.apart:g} is "
            "allowed"
        )
    else:
        return
    other = ".onnx" if found.path.suffix == ".stablehlo" else ".stablehlo"
    hint = "leave --int8 out" if int8 else f"write another format, such as {other}"
    raise UserError(f"{found.path.name} is not written: in {found.runtime} {what}; {hint}")


def _description(predictor: Predictor, file: Path, found: Exported, int8: bool) -> dict:
    """What the JSON beside a file says."""
    model, metadata = predictor.config.model, predictor.metadata
    weights = metadata.weights
    thresholds = {as_text(name): value for name, value in metadata.thresholds.items()}
    with file.open("rb") as read:
        digest = hashlib.file_digest(read, "sha256").hexdigest()
    return {
        "classes": [as_text(name) for name in predictor.classes],
        "image_size": model.image_size,
        "resize": predictor.config.data.resize,
        "input": "images: uint8 (N, image_size, image_size, 3), RGB, 0..255",
        "output": "probabilities: float32 (N, classes)",
        "task": predictor.task.name,
        "activation": predictor.task.activation,
        **({"thresholds": thresholds} if thresholds else {}),
        "network": model.name,
        "width": model.width,
        "int8": int8,
        "sha256": {
            "file": digest,
            "weights": weights and weights.sha256,
            "train": metadata.data.train.sha256,
            "val": metadata.data.val.sha256,
        },
        "result": {
            "images": int(found.sums["run"].images),
            "correct": int(found.sums["file"].top1),
            "correct_of_the_run": int(found.sums["run"].top1),
            "runtime": found.runtime,
        },
        "versions": {name: importlib.metadata.version(name) for name in ("jaxtl", "jax")},
    }
