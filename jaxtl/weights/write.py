"""Writes the weights of a network as a file that Keras Applications or timm loads.

Weights are written only for the framework that they were trained in, since the other one would
compute something else (docs/decisions/0015-the-weights-bring-their-convention.md).
"""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxtl.errors import UserError
from jaxtl.files import write_whole
from jaxtl.models import LayerNames, Network, Variables, definition, merge, split
from jaxtl.weights.convention import CONVENTION_KEY, Framework
from jaxtl.weights.keras import OURS, VARIABLES
from jaxtl.weights.loading import label
from jaxtl.weights.torch import variables_of

Arrays = dict[str, np.ndarray]
"""The arrays of a layer by the names that they have in a file, in the order of the framework."""

_Layers = list[tuple[LayerNames, Arrays]]


@dataclass(frozen=True)
class Written:
    """A file of weights that was written.

    Attributes:
        path: the file.
        network: its name, with its width where that is not 1.
        classes: the number of classes of its head; None without a head.
        parameters: the numbers in it, BatchNorm statistics included.
        load: Python that makes the network and loads the file.
        images: what the network that was loaded so takes.
    """

    path: Path
    network: str
    classes: int | None
    parameters: int
    load: str
    images: str


def write_weights(network: Network, path: str | Path, *, image_size: int | None = None) -> Written:
    """Writes the weights of a network, whole or not at all.

    Args:
        network: with its head, if it has one; `without_head` takes it off.
        path: a file that does not exist. Its suffix decides: `.h5` (legacy) and `.weights.h5` for
            `load_weights` of the network in Keras Applications, `.safetensors` for timm's.
        image_size: pixels a side of the images that it will see, for the words on how to load it;
            None for its native ones. The file is the same.

    Returns:
        What was written, and how to use it.

    Raises:
        UserError: the path is impossible, the file exists, or no network of the framework computes
            the same with these weights.
        OSError: the file cannot be written; nothing is left of it.
    """
    path = Path(path)
    spec = network.spec
    check_target(path, network=spec.name, width=spec.width, convention=spec.convention.name)
    framework, encode = _format(path)
    _check_classifier(network)
    keras = framework == "keras"
    layers = (_keras_layers if keras else _timm_layers)(network)
    write_whole(path, encode(layers, spec.convention.name))
    count = sum(array.size for _, arrays in layers for array in arrays.values())
    size = image_size or definition(spec.name).native
    load = _keras_line(network, path, size) if keras else _timm_line(network, path)
    called = label(spec.name, spec.width)
    return Written(path, called, spec.num_classes, count, load, _images(network, framework))


def check_target(path: Path, *, network: str, width: float, convention: str) -> None:
    """Refuses what cannot be written, before anything is loaded.

    Raises:
        UserError: as in `write_weights`, which only finds more to refuse in the head.
    """
    framework, _ = _format(path)
    names = definition(network).names[network]
    if path.exists():
        raise UserError(f"{path} exists; name another file, or delete it first")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to")
    if convention != framework and not definition(network).portable:
        instead = ".weights.h5 for Keras" if convention == "keras" else ".safetensors for timm"
        raise UserError(
            f"{path} cannot hold weights of the {convention} convention: {network} pads, strides "
            f"or pools otherwise there, and would compute something else; "
            f"write {_stem(path)}{instead}"
        )
    if framework == "keras" and names.keras is None:
        raise UserError(f"Keras Applications has no {network} that could load {path}")
    if framework == "torch" and width not in names.timm:
        known = ", ".join(f"{other:g}" for other in names.timm)
        only = f" of width {width:g}, only of {known}" if known else f" that could load {path}"
        raise UserError(f"timm has no {network}{only}")


def without_head(network: Network) -> Network:
    """The trunk of a network: it returns pooled features.

    Of a VGG with its published classifier all three dense layers go.
    """
    spec = dataclasses.replace(network.spec, num_classes=None, top=False)
    graph, fresh = split(definition(spec.name).build(spec))
    variables = split(network)[1]
    return merge(graph, {path: variables[path] for path in fresh})


def _check_classifier(network: Network) -> None:
    """Refuses a head that follows other layers than in the published network."""
    spec = network.spec
    if definition(spec.name).deep_top and spec.top != (spec.num_classes is not None):
        raise UserError(
            f"{spec.name} is written with its published classifier of three dense layers or with "
            "none, and this one has another; leave it out (--no-head)"
        )


def _keras_layers(network: Network) -> _Layers:
    """What each layer of Keras' model holds, in the order of that model."""
    variables = split(network)[1]
    layers = []
    for place, layer in enumerate(definition(network.name).keras_layers(network) or []):
        arrays = _renamed(variables, layer, {OURS[name]: name for name in VARIABLES[layer.kind]})
        if "kernel" in arrays:
            kernel = arrays["kernel"]
            if layer.folds_into is not None:
                arrays["bias"] = np.zeros(kernel.shape[-1], np.float32)
            if layer.kind == "depthwise_conv2d":
                kernel = kernel.swapaxes(2, 3)  # (H, W, 1, C) -> (H, W, C, 1)
            elif layer.kind == "conv2d" and kernel.ndim == 2:
                kernel = kernel[None, None]  # MobileNet V1 classifies by a convolution
            elif place == 0 and network.spec.convention.bgr:
                kernel = kernel[:, :, ::-1]
            arrays["kernel"] = kernel
        layers.append((layer, arrays))
    return layers


def _timm_layers(network: Network) -> _Layers:
    """What each layer of timm's model holds."""
    variables = split(network)[1]
    layers = []
    for layer in definition(network.name).torch_layers(network, "timm") or []:
        theirs = variables_of(layer)
        arrays = _renamed(variables, layer, {ours: name for name, ours in theirs.items()})
        if layer.kind != "batch_normalization":
            weight = arrays["weight"]
            if layer.convolution:
                side = layer.flattened or 1
                weight = weight.reshape(side, side, -1, weight.shape[-1])
            # (H, W, C, O) -> (O, C, H, W), and (C, O) -> (O, C)
            arrays["weight"] = weight.transpose(3, 2, 0, 1) if weight.ndim == 4 else weight.T
        layers.append((layer, arrays))
    return layers


def _renamed(variables: Variables, layer: LayerNames, names: Mapping[str, str]) -> Arrays:
    """The variables of a layer by other names: those of `names` that it has, in their order."""
    paths = {f"{layer.path}/{ours}": theirs for ours, theirs in names.items()}
    return {theirs: np.asarray(variables[p]) for p, theirs in paths.items() if p in variables}


def _named(layers: _Layers, convention: str) -> bytes:
    """Keras' legacy HDF5: layers and arrays are listed by name, and read in the order of the lists.

    The layout is that of keras/src/legacy/saving/legacy_h5_format.py.
    """
    import h5py

    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file.attrs[CONVENTION_KEY] = convention
        file.attrs["layer_names"] = _fixed(layer.name for layer, _ in layers)
        # Keras 2 flips kernels of Theano, and leaves those of a backend that it does not know.
        file.attrs["backend"] = b"jax"
        file.attrs["keras_version"] = b"3.0.0"  # "1" and "2" would be converted
        for layer, arrays in layers:
            group = file.create_group(layer.name)
            group.attrs["weight_names"] = _fixed(f"{layer.name}/{name}" for name in arrays)
            for name, array in arrays.items():
                group.create_dataset(f"{layer.name}/{name}", data=array)
    return data.getvalue()


def _fixed(names: Iterable[str]) -> np.ndarray:
    """Names as bytes of fixed length, which every version of Keras decodes."""
    return np.array([name.encode() for name in names])


def _numbered(layers: _Layers, convention: str) -> bytes:
    """Keras 3's HDF5: layers are numbered by class, and arrays by layer.

    The layout is that of keras/src/saving/saving_lib.py.
    """
    import h5py

    data = io.BytesIO()
    seen: Counter[str] = Counter()
    with h5py.File(data, "w") as file:
        file.attrs[CONVENTION_KEY] = convention
        for layer, arrays in layers:
            key = f"{layer.kind}_{seen[layer.kind]}" if seen[layer.kind] else layer.kind
            seen[layer.kind] += 1
            group = file.create_group(f"layers/{key}/vars")
            group.attrs["name"] = layer.name
            for number, array in enumerate(arrays.values()):
                group.create_dataset(str(number), data=array)
    return data.getvalue()


def _tensors(layers: _Layers, convention: str) -> bytes:
    """Torch's state as safetensors: each BatchNorm counts the batches that it has seen, too."""
    from safetensors.numpy import save

    state = {}
    for layer, arrays in layers:
        for name, array in arrays.items():
            state[f"{layer.name}.{name}"] = np.ascontiguousarray(array)
        if layer.kind == "batch_normalization":
            state[f"{layer.name}.num_batches_tracked"] = np.zeros((), np.int64)
    return save(state, {"format": "pt", CONVENTION_KEY: convention})


_Encode = Callable[[_Layers, str], bytes]
_FORMATS: dict[str, tuple[Framework, _Encode]] = {
    ".weights.h5": ("keras", _numbered),  # before the shorter suffix
    ".h5": ("keras", _named),
    ".safetensors": ("torch", _tensors),
}


def _format(path: Path) -> tuple[Framework, _Encode]:
    for suffix, form in _FORMATS.items():
        if path.name.endswith(suffix) and path.name != suffix:
            return form
    if path.suffix == ".keras":
        raise UserError(
            f"{path}: a .keras file holds a model, not weights alone; write "
            f"{_stem(path)}.weights.h5, which load_weights of that model takes"
        )
    raise UserError(f"{path} does not end in one of {', '.join(_FORMATS)}")


def _stem(path: Path) -> str:
    """A path without the suffix that says what it holds."""
    for suffix in (*_FORMATS, ".keras"):
        if path.name.endswith(suffix):
            return str(path).removesuffix(suffix)
    return str(path)


def _keras_line(network: Network, path: Path, size: int) -> str:
    """It always states the size: the head of each of Keras' models is made for one, and the padding
    of its MobileNetV2 differs where the size is unknown (its `correct_pad`)."""
    known = definition(network.name)
    if network.spec.top and known.deep_top:
        size = known.native  # Keras flattens the maps, so no other fits
    arguments = f"weights=None, input_shape=({size}, {size}, 3)"
    if network.width != 1:
        arguments += f", alpha={network.width:g}"
    if network.num_classes is None:
        arguments += ', include_top=False, pooling="avg"'
    else:
        arguments += f", classes={network.num_classes}"
    model = f"model = keras.applications.{known.names[network.name].keras}({arguments})"
    return f"{model}; model.load_weights({str(path)!r})"


def _timm_line(network: Network, path: Path) -> str:
    names = definition(network.name).names[network.name]
    name, classes = names.timm[network.width], network.num_classes or 0
    lines = [f'model = timm.create_model("{name}", num_classes={classes})']
    if names.hidden and not network.spec.top:
        lines.append(f"model.{names.hidden} = torch.nn.Identity()")
    lines.append(f"model.load_state_dict(safetensors.torch.load_file({str(path)!r}))")
    return "; ".join(lines)


def _images(network: Network, framework: Framework) -> str:
    convention = network.spec.convention
    if framework == "keras" == convention.name:
        module = definition(network.name).names[network.name].module
        return f"keras.applications.{module}.preprocess_input"
    # Torch's tools bring images to 0..1 first.
    whole = 255 if convention.name == "torch" else 1
    mean, std = (
        ", ".join(f"{round(value / whole, 6):g}" for value in values)
        for values in (convention.mean, convention.std)
    )
    instead = ", not preprocess_input" if framework == "keras" else ""
    return f"RGB, 0..{255 // whole}, minus ({mean}), divided by ({std}){instead}"
