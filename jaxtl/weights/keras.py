"""Reads the weights of Keras files by our paths, with h5py alone.

Keras names layers in three ways: by their own names (legacy `.h5`), by class and position in the
model (`.weights.h5`), or by class and position beside a `config.json` that holds their own names
(`.keras`). Own names decide where the file has them and they are known; else position decides, as
in Keras itself.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import h5py
import numpy as np

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, Network
from jaxtl.weights.strict import Stored

# The variables of each layer class in the order in which it creates them, which is how
# `.weights.h5` numbers them (keras/src/layers: convolutional, normalization and core).
_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}

# Keras' names of variables and ours. Keras 2 calls the kernel of a depthwise convolution
# differently.
_OURS = {
    "kernel": "kernel",
    "depthwise_kernel": "kernel",
    "bias": "bias",
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}

# What h5py, zipfile and json raise on bytes that are not what they should be.
_DAMAGED = (
    OSError,
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer with weights.

    Attributes:
        name: its own name, or its group where the file has no own name.
        kind: its class in snake case, such as `conv2d`.
        position: its place among the layers of its class in its model; None where the file hides
            it.
        model: the model that it belongs to, as the group or the name of that model.
        variables: its arrays, by Keras' name of the variable.
    """

    name: str
    kind: str
    position: int | None
    model: str
    variables: dict[str, np.ndarray]


def read_keras(data: bytes, file: PurePath, network: Network) -> dict[str, Stored]:
    """Reads every weight in a Keras file.

    Args:
        data: the file's bytes.
        file: its name, for its suffix and for messages.
        network: the network that the weights are meant for; of its parameters only the names
            matter.

    Returns:
        The arrays by our paths, in our layouts; what has no place in the network is there by the
        name that it has in the file. The one dense layer of a classifier is `head`, whatever its
        name.

    Raises:
        UserError: it is no Keras file, is damaged, holds another network, or has two classifier
            layers.
    """
    try:
        layers = _layers_of_zip(data) if file.suffix == ".keras" else _layers_of_hdf5(data, {})
    except _DAMAGED as error:
        message = " ".join(str(error).split())
        raise UserError(f"{file} is damaged, or is no Keras weights file: {message}") from error
    return _by_our_paths(layers, file, network)


def _layers_of_zip(data: bytes) -> list[_Layer]:
    """`.keras`: an HDF5 file numbered by class, and the layers' own names in a config."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        config = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")
    return _layers_of_hdf5(weights, dict(_own_names(config, "")))


def _own_names(config: dict[str, Any], group: str) -> Iterator[tuple[str, str]]:
    """The group of every layer in a model's config, with the layer's own name."""
    seen: Counter[str] = Counter()
    for layer in config["config"].get("layers", ()):
        kind = _snake_case(layer["class_name"])
        key = f"{kind}_{seen[kind]}" if seen[kind] else kind
        seen[kind] += 1
        yield f"{group}layers/{key}", layer["config"]["name"]
        yield from _own_names(layer, f"{group}layers/{key}/")


def _snake_case(name: str) -> str:
    """A class name as Keras writes it into files (keras/src/utils/naming.py)."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _layers_of_hdf5(data: bytes, own_names: dict[str, str]) -> list[_Layer]:
    with h5py.File(io.BytesIO(data)) as file:
        root = file.get("model_weights", file)
        names = _names(root, "layer_names")
        layers = _named_layers(root, names) if names else _numbered_layers(file, own_names)
        if not layers:
            raise ValueError(f"it holds no layers with weights, only {sorted(file)}")
    return layers


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names, which Keras cuts into numbered attributes when it is long."""
    parts = [group.attrs[attribute]] if attribute in group.attrs else []
    while (part := f"{attribute}{len(parts)}") in group.attrs:
        parts.append(group.attrs[part])
    names = [name for part in parts for name in part]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _named_layers(root: h5py.Group, layer_names: list[str]) -> list[_Layer]:
    """Legacy `.h5`: one group a layer, or one for all layers of a model within the model."""
    layers = []
    seen: Counter[str] = Counter()
    for group in layer_names:
        members: dict[str, dict[str, np.ndarray]] = {}
        for weight in _names(root[group], "weight_names"):
            # The last two parts: what comes before are the scopes of the models around it.
            layer, variable = ([group, *weight.removesuffix(":0").split("/")])[-2:]
            members.setdefault(layer, {})[variable] = root[group][weight][()]
        alone = len(members) == 1
        for name, variables in members.items():
            kind = _kind(variables)
            # Trained weights come first inside a model's group, so the order says nothing there.
            position = seen[kind] if alone else None
            seen[kind] += alone
            layers.append(_Layer(name, kind, position, "" if alone else group, variables))
    return layers


def _kind(variables: dict[str, np.ndarray]) -> str:
    """The class of a layer, which legacy files do not name."""
    if "moving_mean" in variables:
        return "batch_normalization"
    kernel = variables.get("depthwise_kernel", variables.get("kernel"))
    if kernel is not None and kernel.ndim == 4:
        depthwise = "depthwise_kernel" in variables or kernel.shape[-1] == 1
        return "depthwise_conv2d" if depthwise else "conv2d"
    return "dense" if kernel is not None and kernel.ndim == 2 else "other"


def _numbered_layers(file: h5py.File, own_names: dict[str, str]) -> list[_Layer]:
    """Keras 3: `[MODEL/]layers/CLASS_POSITION/vars/NUMBER`."""
    groups: dict[str, dict[int, np.ndarray]] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        group, _, number = name.rpartition("/vars/")
        # Dropout and augmentation keep the state of their random numbers here.
        generator = group.endswith("seed_generator")
        if group and isinstance(item, h5py.Dataset) and not generator:
            groups.setdefault(group, {})[int(number)] = item[()]

    for part in file:
        if part != "optimizer" and isinstance(file[part], h5py.Group):
            file[part].visititems(lambda name, item, part=part: visit(f"{part}/{name}", item))
    layers = []
    for group, arrays in groups.items():
        model, _, key = group.rpartition("/")
        kind, position = re.fullmatch(r"(.*?)(?:_(\d+))?", key).groups()  # type: ignore[union-attr]
        names = dict(enumerate(_VARIABLES.get(kind, ())))
        variables = {names.get(i, str(i)): value for i, value in sorted(arrays.items())}
        name = own_names.get(group, group)
        layers.append(_Layer(name, kind, int(position or 0), model, variables))
    return layers


def _by_our_paths(layers: list[_Layer], file: PurePath, network: Network) -> dict[str, Stored]:
    expected = [
        layer for layer in REGISTRY[network.name].keras_layers(network) if layer[2] != "head"
    ]
    names = {name for _, name, _ in expected}
    heads = [layer for layer in layers if layer.kind == "dense" and layer.name not in names]
    if len(heads) > 1:
        raise UserError(
            f"{file} has {len(heads)} dense layers where one classifier is expected: "
            f"{', '.join(layer.name for layer in heads)}"
        )
    rest = [layer for layer in layers if layer not in heads]
    places = _places(rest, expected)
    if not places:
        found = ", ".join(layer.name for layer in layers[:3])
        raise UserError(f"{file} does not hold {network.name}: its layers are {found}, ...")

    stored = {}
    for layer, place in [*((layer, "head") for layer in heads), *zip(rest, places, strict=True)]:
        for variable, value in layer.variables.items():
            name = f"{layer.name}/{variable}"
            known = place is not None and variable in _OURS
            path = f"{place}/{_OURS[variable]}" if known else name
            if layer.kind == "depthwise_conv2d" and known and value.ndim == 4:
                value = np.swapaxes(value, 2, 3)  # (H, W, C, 1) -> (H, W, 1, C)
            stored[path] = Stored(name, value)
    return stored


def _places(layers: list[_Layer], expected: list[tuple[str, str, str]]) -> list[str | None]:
    """Our path of each layer, None for those that have no place; empty if it is another network."""
    largest = Counter(layer.model for layer in layers).most_common(1)
    model = largest[0][0] if largest else ""
    by_name = {name: path for _, name, path in expected}
    by_position: dict[tuple[str, int | None], str] = {}
    for kind, _, path in expected:
        by_position[kind, sum(k == kind for k, _ in by_position)] = path

    inside = [layer for layer in layers if layer.model == model]
    known = sum(layer.name in by_name for layer in inside)
    if 2 * known > len(expected):
        return [by_name.get(layer.name) if layer.model == model else None for layer in layers]
    # The oldest published files name their layers otherwise.
    if not all(any(layer.kind == kind for layer in inside) for kind, _ in by_position):
        return []
    return [
        by_position.get((layer.kind, layer.position)) if layer.model == model else None
        for layer in layers
    ]
