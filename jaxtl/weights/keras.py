"""Reads the weights of Keras files by our paths, with h5py alone.

Keras names layers in three ways: by their own names (legacy `.h5`), by class and position in the
model (`.weights.h5`), or by class and position next to a `config.json` with their own names
(`.keras`). Own names decide where the file has them and they are known; else position decides, as
in Keras itself. A name that Keras made up, such as `conv2d_37`, does not identify a layer: its
number depends on the models that were made before.
"""

from __future__ import annotations

import io
import json
import re
import textwrap
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, LayerNames, Network, stage_of
from jaxtl.weights.hdf5 import Read, opened
from jaxtl.weights.strict import HEAD, AnotherNetwork, Stored, listed, published

if TYPE_CHECKING:
    import h5py

# The variables of each layer class in the order in which it creates them, which is how
# `.weights.h5` numbers them (keras/src/layers: convolutional, normalization and core).
VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}
_WITHOUT_SCALE = ("beta", "moving_mean", "moving_variance")

# Keras' names of variables and ours. Keras 2 calls the kernel of a depthwise convolution
# differently.
OURS = {
    "kernel": "kernel",
    "depthwise_kernel": "kernel",
    "bias": "bias",
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}
_KERAS_1 = {"W": "kernel", "b": "bias"}

# What the members of a `.keras` file may unpack to. Keras does not compress them, and weights
# hardly can be; the config of the largest network here has half a megabyte.
_CONFIG_BYTES = 16 << 20
_SMALL_BYTES = 64 << 20
_RATIO = 4

_MESSAGE = 300  # characters of an error that a damaged file causes, names in the file included


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
        network: that the weights are meant for; of its parameters only the names matter.

    Returns:
        The arrays by our paths, in our layouts; what has no place in the network is there by the
        name that it has in the file. The last dense layer of a classifier is `head`, whatever its
        name. A bias that a BatchNorm follows is in that one's mean.

    Raises:
        UserError: it is not a Keras file, is damaged, holds another network, has more dense layers
            than a classifier, or does not have a bias that Keras has.
    """
    try:
        layers = _layers_of_zip(data) if file.suffix == ".keras" else _layers_of_hdf5(data, {})
    except Exception as error:  # h5py, zipfile and json raise almost anything on damaged bytes
        message = textwrap.shorten(str(error), _MESSAGE) or type(error).__name__
        raise UserError(f"{file} is damaged, or is no Keras weights file: {message}") from error
    return _by_our_paths(layers, file, network)


def _layers_of_zip(data: bytes) -> list[_Layer]:
    """`.keras`: an HDF5 file numbered by class, and the layers' own names in a config."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        config = json.loads(_member(archive, "config.json", _CONFIG_BYTES))
        weights = _member(archive, "model.weights.h5", max(_SMALL_BYTES, _RATIO * len(data)))
    return _layers_of_hdf5(weights, dict(_own_names(config, "")))


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A member of a zip that is no longer than a limit, whatever length the zip states."""
    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by another method than deflate")
    with archive.open(member) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} unpacks to more than {limit:,} bytes")
    return data


def _own_names(config: dict[str, Any], group: str) -> Iterator[tuple[str, str]]:
    """The group of every layer in a model's config, with the layer's own name."""
    seen: Counter[str] = Counter()
    for layer in config["config"].get("layers", ()):
        kind = _snake_case(layer["class_name"])
        key = f"{kind}_{seen[kind]}" if seen[kind] else kind
        seen[kind] += 1
        name = layer["config"]["name"]
        if not isinstance(name, str):
            raise ValueError(f"a layer is called {name!r} in its config")
        yield f"{group}layers/{key}", name
        yield from _own_names(layer, f"{group}layers/{key}/")


def _snake_case(name: str) -> str:
    """A class name as Keras writes it into files (keras/src/utils/naming.py)."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _layers_of_hdf5(data: bytes, own_names: dict[str, str]) -> list[_Layer]:
    with opened(data) as (file, read):
        root = file.get("model_weights", file)
        if names := _names(root, "layer_names"):
            layers = _named_layers(root, names, read)
        else:
            layers = _numbered_layers(file, own_names, read)
        if not layers:
            raise ValueError(f"it holds no layers with weights, only {listed(sorted(file))}")
    return layers


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names, which Keras cuts into numbered attributes when it is long."""
    parts = [group.attrs[attribute]] if attribute in group.attrs else []
    while (part := f"{attribute}{len(parts)}") in group.attrs:
        parts.append(group.attrs[part])
    names = [name for part in parts for name in part]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _named_layers(root: h5py.Group, layer_names: list[str], read: Read) -> list[_Layer]:
    """Legacy `.h5`: one group a layer, or one for all layers of a model within the model."""
    layers = []
    seen: Counter[str] = Counter()
    for group in layer_names:
        members: dict[str, dict[str, np.ndarray]] = {}
        for weight in _names(root[group], "weight_names"):
            layer, variable = _layer_and_variable(group, weight.removesuffix(":0"))
            variables = members.setdefault(layer, {})
            if variable in variables:
                raise ValueError(f"it has {layer}/{variable} twice")
            variables[variable] = read(root[group][weight])
        alone = len(members) == 1
        for name, variables in members.items():
            kind = _kind(variables)
            # Trained weights come first inside a model's group, so the order says nothing there.
            position = seen[kind] if alone else None
            seen[kind] += alone
            layers.append(_Layer(name, kind, position, "" if alone else group, variables))
    return layers


def _layer_and_variable(group: str, weight: str) -> tuple[str, str]:
    """The last two parts of a name: what comes before are the scopes of the models around it.

    Keras 1, which wrote the published files of VGG, has one part: `block1_conv1_W_1`.
    """
    layer, variable = [group, *weight.split("/")][-2:]
    old = re.fullmatch(f"{re.escape(layer)}_(W|b)_1", variable)
    return layer, _KERAS_1[old[1]] if old else variable


def _kind(variables: dict[str, np.ndarray]) -> str:
    """The class of a layer, which legacy files do not name."""
    if "moving_mean" in variables:
        return "batch_normalization"
    kernel = variables.get("depthwise_kernel", variables.get("kernel"))
    if kernel is not None and kernel.ndim == 4:
        depthwise = "depthwise_kernel" in variables or kernel.shape[-1] == 1
        return "depthwise_conv2d" if depthwise else "conv2d"
    return "dense" if kernel is not None and kernel.ndim == 2 else "other"


def _numbered_layers(file: h5py.File, own_names: dict[str, str], read: Read) -> list[_Layer]:
    """Keras 3: `[MODEL/]layers/CLASS_POSITION/vars/NUMBER`."""
    import h5py

    groups: dict[str, dict[int, np.ndarray]] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        group, _, number = name.rpartition("/vars/")
        # Dropout and augmentation keep the state of their random numbers here.
        generator = group.endswith("seed_generator")
        if group and isinstance(item, h5py.Dataset) and not generator:
            groups.setdefault(group, {})[int(number)] = read(item)

    for part in file:
        if part != "optimizer" and isinstance(file[part], h5py.Group):
            file[part].visititems(lambda name, item, part=part: visit(f"{part}/{name}", item))
    layers = []
    for group, arrays in groups.items():
        model, _, key = group.rpartition("/")
        kind, position = re.fullmatch(r"(.*?)(?:_(\d+))?", key).groups()  # type: ignore[union-attr]
        names = dict(enumerate(VARIABLES.get(kind, ())))
        if kind == "batch_normalization" and len(arrays) == len(_WITHOUT_SCALE):
            names = dict(enumerate(_WITHOUT_SCALE))  # Inception's
        variables = {names.get(i, str(i)): value for i, value in sorted(arrays.items())}
        name = own_names.get(group, group)
        layers.append(_Layer(name, kind, int(position or 0), model, variables))
    return layers


def _by_our_paths(layers: list[_Layer], file: PurePath, network: Network) -> dict[str, Stored]:
    known = REGISTRY[network.name]
    expected = known.keras_layers(published(network))
    if expected is None:
        raise UserError(f"{file} cannot be read: Keras' names of {network.name} are not known")
    trunk = [layer for layer in expected if stage_of(layer.path) not in known.classifier]
    places = _places(layers, expected, trunk)
    if not places:
        found = ", ".join(layer.name for layer in layers[:3])
        raise AnotherNetwork(f"{file} does not hold {network.name}: its layers are {found}, ...")
    places |= _new_head(layers, places, file)

    stored = {}
    for layer in layers:
        place = places.get(layer)
        for variable, value in layer.variables.items():
            name = f"{layer.name}/{variable}"
            if place is None or variable not in OURS:
                stored[name] = Stored(name, value)
            else:
                path = f"{place.path}/{OURS[variable]}"
                if path in stored:
                    raise UserError(f"{file} has both {stored[path].name} and {name} for {path}")
                bgr = place is expected[0] and network.spec.convention.bgr
                stored[path] = Stored(name, _our_layout(place, value, bgr=bgr))
    if wrong := _fold_biases(stored, expected):
        raise UserError(f"{file} does not fit {network.name}: {', '.join(wrong)}")
    return stored


def _our_layout(layer: LayerNames, value: np.ndarray, *, bgr: bool) -> np.ndarray:
    """An array of a layer in our layout, with input channels in the order RGB.

    An array of another rank is left for the check of shapes.

    Args:
        layer: where the array belongs.
        value: the array in Keras' layout.
        bgr: whether the layer takes BGR images in Keras.
    """
    if value.ndim != 4:
        return value
    if layer.kind == "depthwise_conv2d":
        return value.swapaxes(2, 3)  # (H, W, C, 1) -> (H, W, 1, C)
    if layer.path == HEAD and value.shape[:2] == (1, 1):
        return value[0, 0]  # MobileNet V1 classifies by a convolution: (1, 1, C, O) -> (C, O)
    return value[:, :, ::-1] if bgr else value


def _fold_biases(stored: dict[str, Stored], expected: Sequence[LayerNames]) -> list[str]:
    """Takes each bias that a BatchNorm follows from the mean that this one subtracts.

    What the BatchNorm computes stays the same, and there is one number less to train.

    Returns:
        What is wrong with the biases; a layer that is missing whole is left for the check of all.
    """
    wrong = []
    for layer in expected:
        if layer.folds_into is None:
            continue
        bias = stored.pop(f"{layer.path}/bias", None)
        path = f"{layer.folds_into}/mean"
        mean = stored.get(path)
        if bias is None:
            if f"{layer.path}/kernel" in stored:
                wrong.append(f"{layer.name}/bias is missing")
        elif not np.issubdtype(bias.value.dtype, np.floating):
            wrong.append(f"{bias.name} holds {bias.value.dtype}")
        elif mean is None or not np.issubdtype(mean.value.dtype, np.floating):
            continue
        elif bias.value.shape != mean.value.shape:
            wrong.append(f"{bias.name} is {bias.value.shape}, not {mean.value.shape}")
        else:
            folded = mean.value.astype(np.float32) - bias.value.astype(np.float32)
            stored[path] = Stored(mean.name, folded)
    return wrong


def _new_head(
    layers: list[_Layer], places: dict[_Layer, LayerNames], file: PurePath
) -> dict[_Layer, LayerNames]:
    """The dense layer that somebody put on a network, if any."""
    new = [layer for layer in layers if layer.kind == "dense" and layer not in places]
    heads = new + [layer for layer, place in places.items() if place.path == HEAD]
    if len(heads) > 1:
        raise UserError(
            f"{file} has {len(heads)} dense layers where one classifier is expected: "
            f"{', '.join(layer.name for layer in heads)}; take a file of the trunk alone"
        )
    return {layer: LayerNames("dense", layer.name, HEAD) for layer in new}


def _places(
    layers: list[_Layer], expected: Sequence[LayerNames], trunk: Sequence[LayerNames]
) -> dict[_Layer, LayerNames]:
    """Our layer for each that has a place here; empty if it is another network."""
    largest = Counter(layer.model for layer in layers).most_common(1)
    inside = [layer for layer in layers if largest and layer.model == largest[0][0]]

    def enough(places: dict[_Layer, LayerNames]) -> bool:
        return 2 * sum(place in trunk for place in places.values()) > len(trunk)

    own = {layer.name: layer for layer in expected if _number(layer.name, layer.kind) < 0}
    by_name = {layer: own[layer.name] for layer in inside if layer.name in own}
    if enough(by_name):
        return by_name
    # The oldest published files name their layers otherwise.
    by_position = _by_position(inside, expected)
    theirs, ours = (Counter(layer.kind for layer in layers) for layers in (inside, trunk))
    # A layer may be missing or too many, which is told by its name later on.
    alike = all(abs(theirs[kind] - ours[kind]) <= 1 for kind in ours)
    return by_position if alike and enough(by_position) else {}


def _by_position(inside: list[_Layer], expected: Sequence[LayerNames]) -> dict[_Layer, LayerNames]:
    """Our layers for those of the same class and place in a model."""
    places: dict[_Layer, LayerNames] = {}
    for kind in VARIABLES:
        theirs = [layer for layer in inside if layer.kind == kind]
        ours = [layer for layer in expected if layer.kind == kind]
        if kind == "dense" and len(theirs) != len(ours):
            continue  # it is another classifier than the published one
        if all(layer.position is not None for layer in theirs):
            numbered = dict(enumerate(ours))
            for layer in theirs:
                if layer.position in numbered:
                    places[layer] = numbered[layer.position]
            continue
        # Keras numbers layers as it makes them, which is not the order that a model has.
        numbers = {layer: _number(layer.name, kind) for layer in theirs}
        ranks = {layer: _number(layer.name, kind) for layer in ours}
        if min((*numbers.values(), *ranks.values()), default=0) >= 0:
            first = min(numbers.values(), default=0)
            numbered = dict(enumerate(sorted(ours, key=ranks.__getitem__), first))
            places |= {layer: numbered[n] for layer, n in numbers.items() if n in numbered}
    return places


def _number(name: str, kind: str) -> int:
    """The number in a name that Keras made up for a layer of a class: 37 in `conv2d_37`, or -1."""
    made_up = re.fullmatch(rf"{kind}(?:_(\d{{1,9}}))?", name)
    return int(made_up[1] or 0) if made_up else -1
