"""Reads the weights of torch's networks by our paths: `.safetensors` without torch, `.pth` with it.

Torch names arrays by the attributes of the modules around them, which differ between timm and
torchvision: the library whose names a file has more of is the one that it is from.
"""

from __future__ import annotations

import importlib.metadata
import io
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import jax.numpy as jnp
import numpy as np
from packaging.version import Version

from jaxtl.errors import UserError
from jaxtl.models import REGISTRY, LayerNames, Network
from jaxtl.weights.strict import AnotherNetwork, Stored, listed, published

_LIBRARIES = ("timm", "torchvision")

# Torch's names of the arrays of a layer, and ours.
_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_OTHER = {"weight": "kernel", "bias": "bias"}

# Entries to ignore: the batches that a BatchNorm saw, and the classifier at half the depth of
# Inception, which torchvision trains with and leaves out in inference.
_COUNTER = "num_batches_tracked"
_AUXILIARY = "AuxLogits."

# The dtypes of the format's floats (huggingface/safetensors, safetensors/src/tensor.rs).
_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}

# Training scripts keep more than weights in a file.
_WRAPPERS = ("state_dict", "model_state_dict", "model")

# The first version whose `weights_only=True` keeps a pickle from running code, as far as is known:
# CVE-2025-32434 (up to 2.5.1) and CVE-2026-24747 (below 2.10).
_SAFE_TORCH = "2.10"

# What a pickle may call: all that states of modules, optimizers and schedules need. Torch allows
# more, such as `bytearray`, and so any number of bytes (torch/_weights_only_unpickler.py).
_CALLABLE = re.compile(
    r"collections\.(OrderedDict|Counter)|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.(Size|device|[A-Z][A-Za-z0-9]*Storage|(b?float|u?int)\d+|bool)|(__)?builtins?(__)?\.set"
)
_NAMING = ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")  # opcodes that name a callable
_PICKLE_BYTES = 16 << 20  # without the numbers of its tensors
_LEGACY_PICKLES = 5  # of a file that is no zip (`_legacy_load` of torch/serialization.py)


def read_torch(data: bytes, file: PurePath, network: Network) -> dict[str, Stored]:
    """Reads every weight in a file of torch.

    Args:
        data: the file's bytes.
        file: its name, for its suffix and for messages.
        network: that the weights are meant for; of its parameters only the names matter.

    Returns:
        The arrays by our paths, in our layouts, half precision as float32; what has no place in the
        network is there by the name that it has in the file.

    Raises:
        UserError: it is not a file of its kind, is damaged, holds something else than arrays or
            another network, or needs torch, which is not installed.
    """
    read = _safetensors if file.suffix == ".safetensors" else _state_dict
    arrays = {
        name: value
        for name, value in read(data, file).items()
        if name.rpartition(".")[2] != _COUNTER and not name.startswith(_AUXILIARY)
    }
    places = _places(arrays, network)
    if not places:
        raise UserError(f"{file} cannot be read: torch's names of {network.name} are not known")
    if 2 * len(arrays.keys() & places.keys()) <= len(arrays):
        found = ", ".join(list(arrays)[:3]) or "none"
        raise AnotherNetwork(f"{file} does not hold {network.name}: its arrays are {found}, ...")
    stored = {}
    for name, value in arrays.items():
        if name in places:
            layer, variable = places[name]
            stored[f"{layer.path}/{variable}"] = Stored(name, _our_layout(layer, value))
        else:
            stored[name] = Stored(name, value)
    return stored


def _places(
    arrays: Mapping[str, np.ndarray], network: Network
) -> dict[str, tuple[LayerNames, str]]:
    """The layer and our name of each array, by the names of the library that the file is from."""
    layers_in = REGISTRY[network.name].torch_layers
    candidates = [
        {
            f"{layer.name}.{theirs}": (layer, ours)
            for layer in layers_in(published(network), library) or ()
            for theirs, ours in variables_of(layer).items()
        }
        for library in _LIBRARIES
    ]
    return max(candidates, key=lambda places: len(arrays.keys() & places.keys()))


def variables_of(layer: LayerNames) -> dict[str, str]:
    """Our names of a layer's arrays, by torch's."""
    return _BATCH_NORM if layer.kind == "batch_normalization" else _OTHER


def _our_layout(layer: LayerNames, value: np.ndarray) -> np.ndarray:
    """An array of a layer as it lies here; one of another rank is left for the check of shapes."""
    dense, side = layer.kind == "dense", layer.flattened
    if dense and value.ndim == 4 and value.shape[2:] == (1, 1):
        value = value[:, :, 0, 0]  # a dense layer that timm has as a convolution
    if (
        side
        and value.size
        and (value.shape[2:] == (side, side) or (value.ndim == 2 and value.shape[1] % side**2 == 0))
    ):
        maps = value.reshape(len(value), -1, side, side)
        return maps.transpose(2, 3, 1, 0).reshape(-1, len(value))  # flattened channels last
    if dense:
        return value.T if value.ndim == 2 else value  # (O, I) -> (I, O)
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value  # OIHW -> HWIO


def _safetensors(data: bytes, file: PurePath) -> dict[str, np.ndarray]:
    import safetensors

    arrays, wrong = {}, []
    try:
        for name, entry in sorted(safetensors.deserialize(data)):
            if entry["dtype"] in _FLOATS:
                dtype = jnp.dtype(_FLOATS[entry["dtype"]])
                value = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
                arrays[name] = value.astype(np.float32, copy=False)
            elif name.rpartition(".")[2] != _COUNTER:
                wrong.append(f"{name} holds {entry['dtype']}")
    # An array of no bytes may have a shape that numpy does not take.
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise UserError(f"{file} is damaged, or is no safetensors file: {error}") from error
    if wrong:
        raise UserError(f"{file} holds what cannot be weights: {listed(wrong)}")
    return arrays


def _state_dict(data: bytes, file: PurePath) -> dict[str, np.ndarray]:
    """`.pth`: pickled tensors; anything else that a pickle can hold is refused unread."""
    torch = _torch(file)
    try:
        for stream in _pickles(data):
            for opcode, argument, _ in pickletools.genops(stream):
                called = str(argument).replace(" ", ".")
                if opcode.name in _NAMING and not _CALLABLE.fullmatch(called):
                    raise UserError(
                        f"{file} is no file of torch's weights alone, it calls {called[:100]}: "
                        "torch.save(model.state_dict(), FILE) writes one"
                    )
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return _arrays(torch, _unwrapped(loaded), file, len(data))
    except UserError:
        raise
    except Exception as error:  # torch has no exception of its own for this
        raise UserError(
            f"{file} is damaged, or is no file of torch's weights alone: "
            "torch.save(model.state_dict(), FILE) writes one"
        ) from error


def _pickles(data: bytes) -> Iterator[io.BytesIO]:
    """The pickles of a file, each to be read before the next one.

    Raises:
        ValueError: it unpacks to more than it has, or a pickle is too long.
    """
    if not data.startswith(b"PK"):
        legacy = io.BytesIO(data[:_PICKLE_BYTES])
        for _ in range(_LEGACY_PICKLES):
            yield legacy
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > len(data):
            raise ValueError("it declares more than it holds")
        for member in members:
            if member.filename.endswith(".pkl"):
                if member.file_size > _PICKLE_BYTES:
                    raise ValueError(f"{member.filename} is too long")
                yield io.BytesIO(archive.read(member))


def _torch(file: PurePath) -> Any:
    """Torch, unless it is missing or too old, which is found out before any of it runs."""
    try:
        version = importlib.metadata.version("torch")
        if Version(version) >= Version(_SAFE_TORCH):
            import torch

            return torch
    except ImportError:
        raise UserError(
            f"{file} can only be read by torch: pip install torch, or take a .safetensors file"
        ) from None
    raise UserError(
        f"{file} is not read by torch {version}, in which such a file can run code "
        f"(CVE-2026-24747): pip install 'torch>={_SAFE_TORCH}', or take a .safetensors file"
    )


def _arrays(torch: Any, tensors: Any, file: PurePath, left: int) -> dict[str, np.ndarray]:
    """Tensors as arrays, no more bytes of them than are left of the file."""
    arrays, wrong = {}, []
    for name, value in tensors.items() if isinstance(tensors, Mapping) else ():
        if str(name).rpartition(".")[2] == _COUNTER:
            continue
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            wrong.append(str(name))
        else:
            left -= value.numel() * value.element_size()
            if left < 0:
                raise UserError(
                    f"{file} holds what cannot be weights: {name} and those before it declare "
                    "more numbers than the file has"
                )
            arrays[str(name)] = value.detach().float().numpy()
    if wrong or not arrays:
        raise UserError(
            f"{file} holds what cannot be weights: {listed(wrong) or 'no arrays by their names'}"
        )
    return arrays


def _unwrapped(loaded: Any) -> Any:
    """The weights in what a training script saved."""
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            return loaded[key]
    return loaded
