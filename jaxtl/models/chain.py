"""A network is a chain of named stages that can be entered and left anywhere.

A network is built as a structure: its parameters are `jax.ShapeDtypeStruct`s. `initial_variables`
draws numbers, weight files bring others, and `merge` puts structure and numbers together.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxtl.models.layers import Context, Convention

INFERENCE = Context()
"""No dropout keys and no padding: the context of inference."""

Variables = dict[str, Any]
"""Parameters and batch statistics by path, such as `block_14/expand/kernel`: `jax.Array`s, or
`jax.ShapeDtypeStruct`s in a structure."""


@dataclass(frozen=True)
class Spec:
    """The arguments that a network is built from.

    Attributes:
        name: the network's name in the registry.
        num_classes: number of logits; None for pooled features.
        width: multiplier of the channel counts.
        dropout: fraction of the features that training drops before the last dense layer.
        top: build the whole published classifier where that is more than one dense layer (VGG).
        convention: how images are normalised and feature maps padded: as the framework does that
            trained the weights.
        dtype: `float32` or `bfloat16`: type of the feature maps. Parameters, batch statistics,
            pooled features and logits are float32.
    """

    name: str
    num_classes: int | None
    width: float
    dropout: float
    top: bool
    convention: Convention
    dtype: str = "float32"


class LayerNames(NamedTuple):
    """Where a layer with weights is here, and what a file of another library calls it.

    Attributes:
        kind: `conv2d`, `depthwise_conv2d`, `batch_normalization` or `dense`.
        name: the layer's name in that framework.
        path: the layer's path here.
        folds_into: path of the BatchNorm after a convolution that has a bias there and none here.
            The bias is subtracted from the running mean, which computes the same.
        flattened: side of the feature maps that a dense layer takes flattened: channels last here
            and in Keras, channels first in torch.
        convolution: whether a dense layer is a convolution there.
    """

    kind: str
    name: str
    path: str
    folds_into: str | None = None
    flattened: int | None = None
    convolution: bool = False


class Network(nnx.Module):
    """A chain of named stages, from RGB images to logits or pooled features.

    Attributes:
        spec: what the network is built from.
        stage_names: the stages, in order.
    """

    def __init__(self, stages: Mapping[str, nnx.Module], spec: Spec):
        self.spec = spec
        self.stage_names = tuple(stages)
        for stage, module in stages.items():
            setattr(self, stage, module)

    @property
    def name(self) -> str:
        """The network's name in the registry."""
        return self.spec.name

    @property
    def width(self) -> float:
        """The multiplier of the channel counts."""
        return self.spec.width

    @property
    def num_classes(self) -> int | None:
        """Number of logits; None for pooled features."""
        return self.spec.num_classes

    def __call__(
        self,
        x: Array | np.ndarray,
        *,
        start: str | None = None,
        stop: str | None = None,
        context: Context = INFERENCE,
    ) -> Float[Array, "batch *features"]:
        """Runs the stages from `start` up to, but not including, `stop`.

        Args:
            x: images (B, H, W, 3), RGB, 0..255, uint8 or float; or, with `start`, the output of the
                stage before it.
            start: the first stage to run; None for the first stage of the chain.
            stop: the stage to stop before; None to run to the end.
            context: dropout keys and padding of the batch; the default is inference.

        Returns:
            The output of the last stage that ran: logits or pooled features (B, F), float32, at the
            end of the chain.
        """
        for stage in self.between(start, stop):
            x = getattr(self, stage)(x, context)
        return jnp.asarray(x)

    def between(self, start: str | None, stop: str | None) -> tuple[str, ...]:
        """The names of the stages from `start` up to, but not including, `stop`."""
        first = 0 if start is None else self.stage_names.index(start)
        last = len(self.stage_names) if stop is None else self.stage_names.index(stop)
        return self.stage_names[first:last]


class KerasFile(NamedTuple):
    """A weights file of Keras Applications.

    Attributes:
        path: below the base address.
        md5: in hexadecimal, where one is published.
    """

    path: str
    md5: str | None = None


def one_keras_file(
    folder: str, md5: Mapping[str, tuple[str, str]]
) -> Callable[[str, float, int, bool], KerasFile | None]:
    """The `keras_file` of a network whose weights are published once for all image sizes.

    Args:
        folder: below the base address; `{name}` stands for the network's name.
        md5: checksums with and without top, by the network's name (Keras Applications); a network
            that is not in it has no file there.
    """

    def keras_file(name: str, width: float, image_size: int, top: bool) -> KerasFile | None:
        if name not in md5:
            return None
        file = f"{name}_weights_tf_dim_ordering_tf_kernels{'' if top else '_notop'}.h5"
        return KerasFile(f"{folder.format(name=name)}/{file}", md5[name][0 if top else 1])

    return keras_file


class ExternalNames(NamedTuple):
    """A network's names in other libraries.

    Attributes:
        keras: its function in `keras.applications` (keras/api/applications/__init__.py); None if
            there is none.
        module: the module there that has its `preprocess_input`.
        timm: its name for `timm.create_model`, by width (timm/models); empty if there is none.
        hidden: the module of timm's network that holds the hidden layers of its classifier, which
            `num_classes=0` leaves in place.
    """

    keras: str | None = None
    module: str | None = None
    timm: Mapping[float, str] = {}
    hidden: str | None = None


@dataclass(frozen=True)
class Definition:
    """What the file of a network provides.

    Attributes:
        names: the networks that it builds, with their names in Keras and timm.
        build: makes the structure of a network.
        conventions: `keras` and `torch`: how a network normalises images and pads feature maps for
            weights that one or the other trained; twice the same where only one has the network.
        keras_layers: the layers with weights, in the order of Keras' model; None where no names
            are known, so that no Keras file can be read.
        torch_layers: those of `timm` or `torchvision`; None where that library has no such network.
        keras_file: the published Keras file for a network's name, width, image size, and with or
            without top; None where there is none.
        widths: the widths with published weights.
        native: image size in pixels that the published weights were trained at.
        smallest: smallest image size in pixels.
        classifier: the stages of the published classifier; the last one is `head`. A network has
            all of them or the head alone, or none.
        portable: whether weights compute the same under both conventions once images are
            normalised for them.
    """

    names: Mapping[str, ExternalNames]
    build: Callable[[Spec], Network]
    conventions: Mapping[str, Convention]
    keras_layers: Callable[[Network], list[LayerNames] | None] = lambda network: None
    torch_layers: Callable[[Network, str], list[LayerNames] | None] = lambda network, library: None
    keras_file: Callable[[str, float, int, bool], KerasFile | None] = lambda *which: None
    widths: tuple[float, ...] = (1.0,)
    native: int = 224
    smallest: int = 32
    classifier: tuple[str, ...] = ("head",)
    portable: bool = False

    @property
    def deep_top(self) -> bool:
        """Whether the published classifier is more than one dense layer."""
        return len(self.classifier) > 1


def stage_of(path: str) -> str:
    """The stage that a variable belongs to: `block_14` for `block_14/expand/kernel`."""
    return path.partition("/")[0]


def layer_of(path: str) -> str:
    """The layer that a variable belongs to: `block_14/expand` for `block_14/expand/kernel`."""
    return path.rpartition("/")[0]


def split(network: Network) -> tuple[nnx.GraphDef, Variables]:
    """Takes a network apart into its static structure and its variables by path."""
    graph, state = nnx.split(network)
    flat = nnx.to_flat_state(state)
    return graph, {"/".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def merge(graph: nnx.GraphDef, variables: Variables) -> Network:
    """Puts a network together; the inverse of `split`.

    Inside a traced function the network belongs to that trace: gradients can be taken through it.
    """
    flat: dict = {tuple(path.split("/")): value for path, value in variables.items()}
    return nnx.merge(graph, nnx.from_flat_state(flat))


def batch_statistics(network: Network) -> frozenset[str]:
    """The paths of the BatchNorms' running means and variances, which no gradient changes."""
    state = nnx.state(network, nnx.BatchStat)
    return frozenset("/".join(map(str, path)) for path, _ in nnx.to_flat_state(state))


def initial_variables(
    network: Network, seed: int, paths: Iterable[str] | None = None
) -> dict[str, jax.Array]:
    """Draws the variables that a network begins with.

    Kernels are Glorot uniform, Keras' default (Glorot and Bengio 2010, equation 16); scales and
    variances are 1, biases and means 0. A kernel depends on the seed and its own path alone, so a
    new head is the same whatever else is drawn. NumPy draws the numbers: they are the same on every
    platform, and nothing has to be compiled.

    Args:
        network: a structure, or a network with parameters.
        seed: an integer from 0.
        paths: the variables to draw; None for all.
    """
    shapes = {path: value.shape for path, value in split(network)[1].items()}
    return {
        path: jnp.asarray(_initial(path, shapes[path], seed))
        for path in (shapes if paths is None else paths)
    }


def _initial(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    kind = path.rpartition("/")[2]
    if kind != "kernel":
        return np.full(shape, 1 if kind in ("scale", "var") else 0, np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    receptive_field = int(np.prod(shape[:-2]))
    limit = np.sqrt(6 / (receptive_field * (shape[-2] + shape[-1])))
    return rng.uniform(-limit, limit, shape).astype(np.float32)


@functools.lru_cache(maxsize=16)  # tracing a network takes 0.3 s
def output_spec(network: Network, image_size: int, stop: str | None = None) -> jax.ShapeDtypeStruct:
    """Shape (1, ...) and type of the output of the stages before `stop` for one image."""
    graph, variables = split(network)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.uint8)
    return jax.eval_shape(lambda v, x: merge(graph, v)(x, stop=stop), variables, image)
