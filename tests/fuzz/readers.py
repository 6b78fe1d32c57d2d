"""The readers of files that strangers made, each as a function of bytes, and valid files for them.

A reader may return or raise `UserError`; whatever else it raises is an error of ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what the tests share

from small_network import SMALL, small_network

from jaxtl.data.csv_file import open_csv
from jaxtl.data.decoding import decode
from jaxtl.errors import UserError
from jaxtl.files import read_json, unsealed
from jaxtl.models import REGISTRY, Network, Variables, split
from jaxtl.runs.checkpoints import Checkpoints
from jaxtl.runs.directory import RunDirectory
from jaxtl.runs.groups import Group
from jaxtl.runs.metrics_log import read_metrics
from jaxtl.runs.progress import Progress
from jaxtl.weights import Origin
from jaxtl.weights.keras import read_keras
from jaxtl.weights.strict import load_into, published
from jaxtl.weights.torch import read_torch, variables_of
from jaxtl.weights.write import write_weights

DEFINITION = dataclasses.replace(
    SMALL,
    names={"fuzzed": SMALL.names["small"]},
    torch_layers=lambda network, _: [
        layer._replace(name=layer.path.replace("/", ".")) for layer in SMALL.keras_layers(network)
    ],
)
_SMALL = small_network(num_classes=None)
NETWORK = Network(
    {name: getattr(_SMALL, name) for name in _SMALL.stage_names},
    dataclasses.replace(_SMALL.spec, name="fuzzed"),
)
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


def registered() -> Any:
    """Lets jaxtl know the network `fuzzed` in a block."""
    return mock.patch.dict(REGISTRY, {"fuzzed": DEFINITION})


def read_weights(name: str) -> Callable[[bytes], None]:
    """The reader of weights files with that suffix."""
    read = read_keras if "h5" in name or "keras" in name else read_torch

    def reader(data: bytes) -> None:
        path = PurePath(f"file.{name}")
        with registered():
            load_into(NETWORK, read(data, path, NETWORK), file=str(path))

    return reader


def read_image(data: bytes) -> None:
    """Decodes an image."""
    assert decode(data, 16, "crop").shape == (16, 16, 3)


def read_run_file(name: str) -> Callable[[bytes], None]:
    """The reader of one file of a run directory, whose other files are whole."""

    def reader(data: bytes) -> None:
        (FOLDER / "config.json").write_text(json.dumps(CONFIG))
        (FOLDER / "run.json").write_text(json.dumps(RUN))
        (FOLDER / name).write_bytes(data)
        run = RunDirectory(FOLDER)
        run.config()
        run.metadata()
        if name == "metrics.jsonl":
            read_metrics(run.metrics)

    return reader


def read_checkpoint_file(name: str) -> Callable[[bytes], None]:
    """The reader of one of `CHECKPOINT_FILES`, where the others are whole."""

    def reader(data: bytes) -> None:
        for other, content in checkpoint_files().items():
            whole = json.dumps(content).encode()
            (FOLDER / CHECKPOINT_FILES[other]).write_bytes(data if other == name else whole)
        folder = FOLDER / CHECKPOINT_FILES[name].partition("/checkpoints/")[0] / "checkpoints"
        with registered(), contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
            if name == "initial.json":
                checkpoints.initial(shapes())
            else:
                progress = checkpoints.newest()
                assert progress is not None
                checkpoints.variables(progress.number, shapes())

    return reader


@functools.cache
def origin() -> Origin:
    """A file of weights, for a network with a new head."""
    file, data = FOLDER / "origin.h5", weights("h5")
    file.write_bytes(data)
    return Origin(
        source=str(file),
        sha256=hashlib.sha256(data).hexdigest(),
        name="fuzzed",
        width=1.0,
        num_classes=3,
        image_size=32,
        convention="keras",
        seed=0,
    )


def variables() -> Variables:
    """Those of the network with a new head."""
    with registered():
        return origin().variables(head=True)


@functools.cache
def shapes() -> dict[str, Any]:
    """The shapes of the variables."""
    return {p: jax.ShapeDtypeStruct(one.shape, one.dtype) for p, one in variables().items()}


@functools.cache
def checkpoint_files() -> dict[str, Any]:
    """Writes checkpoints of a run and of a group; their JSON by name, without the checksums."""
    progress = Progress(step=1).after_epoch(0.5, 1.0, 0.5)
    shared = variables()
    head = {path: shared.pop(path) for path in ("head/kernel", "head/bias")}
    stacked = {path: jnp.stack([array] * 2) for path, array in head.items()}
    (FOLDER / "heads").mkdir()
    (FOLDER / "member").mkdir()
    group = Group.write(FOLDER / "heads" / "group", shared, stacked)
    group.add(FOLDER / "member" / "checkpoints", 1, progress.number, progress)
    with contextlib.closing(Checkpoints(FOLDER / "run" / "checkpoints")) as checkpoints:
        checkpoints.save_initial(variables(), origin(), full=True)
        checkpoints.save(progress, head, head)
    files = {name: read_json(FOLDER / path) for name, path in CHECKPOINT_FILES.items()}
    return {name: unsealed(content) for name, content in files.items()}


PHASE = {"name": "head", "train": {"head/.*": 1.0}, "epochs": 2, "lr": 1e-3}
CONFIG = {"model": {"name": "small", "weights": None}, "data": {"source": "x"}, "phases": [PHASE]}
SPLIT = {"images": 3, "sha256": "0" * 64}
RUN = {
    "classes": ["a", "b"],
    "data": {"train": SPLIT, "val": SPLIT},
    "source": "/images",
    "weights": None,
    "versions": {"jax": "1"},
    "result": {"step": 3, "accuracy": 0.5},
}
LINE = {"phase": "p", "epoch": 1, "step": 1, "split": "val", "loss": 1.0, "accuracy": 0.5}


def encoded(image_format: str, **options: object) -> bytes:
    """A small image in that format."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, **options)
    return file.getvalue()


def weights(name: str) -> bytes:
    """The weights of the network as a file with that suffix."""
    if name in ("h5", "weights.h5"):
        path = FOLDER / f"whole.{name}"
        path.unlink(missing_ok=True)
        with registered():
            write_weights(NETWORK, path)
        return path.read_bytes()
    if name == "keras":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("config.json", '{"config": {"layers": []}}')
            archive.writestr("model.weights.h5", weights("weights.h5"))
        return file.getvalue()
    arrays = torch_arrays()
    if name == "safetensors":
        return safetensors.numpy.save(arrays)
    import torch

    file = io.BytesIO()
    torch.save({key: torch.from_numpy(value.copy()) for key, value in arrays.items()}, file)
    return file.getvalue()


def torch_arrays() -> dict[str, np.ndarray]:
    """The weights of the network by torch's names, in torch's layouts."""
    variables, arrays = split(NETWORK)[1], {}
    for layer in DEFINITION.torch_layers(published(NETWORK), "timm"):
        for theirs, ours in variables_of(layer).items():
            if f"{layer.path}/{ours}" in variables:
                value = np.asarray(variables[f"{layer.path}/{ours}"])
                value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
                arrays[f"{layer.name}.{theirs}"] = np.ascontiguousarray(value)
    return arrays


WEIGHTS = ("h5", "weights.h5", "keras", "safetensors")
RUN_FILES = {"config.json": CONFIG, "run.json": RUN, "metrics.jsonl": LINE}
CHECKPOINT_FILES = {
    "initial.json": "run/checkpoints/initial.json",
    "checkpoint": "run/checkpoints/steps/3/progress/metadata",
    "group.json": "member/checkpoints/group.json",
}
IMAGES = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


def read_list(data: bytes) -> None:
    """Opens a CSV file of images, two of which are there."""
    (FOLDER / "list.csv").write_bytes(data)
    open_csv(str(FOLDER / "list.csv"))


def lists() -> list[bytes]:
    """CSV files of one class and of several labels an image."""
    for name in ("a.png", "b.png"):
        (FOLDER / name).write_bytes(encoded("PNG"))
    return [
        b"image,label,split\na.png,cat,train\nb.png,dog,train\n",
        b'image,labels\n"a.png",cat;dog\nb.png,\n',
    ]


def targets() -> dict[str, tuple[Callable[[bytes], None], list[bytes]]]:
    """Every reader with valid files for it."""
    return {
        "image": (read_image, [encoded(name) for name in IMAGES]),
        "csv": (read_list, lists()),
        **{name: (read_weights(name), [weights(name)]) for name in WEIGHTS},
        **{
            name: (read_run_file(name), [(json.dumps(content) + "\n").encode()])
            for name, content in RUN_FILES.items()
        },
        **{
            name: (read_checkpoint_file(name), [json.dumps(content).encode()])
            for name, content in checkpoint_files().items()
        },
    }


def refuses_or_reads(reader: Callable[[bytes], None], data: bytes) -> bool:
    """Whether a reader takes a file; False if it refuses it in one line.

    Raises:
        Exception: anything else that the reader raises.
    """
    try:
        reader(data)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return False
    return True
