"""A network is a chain of named stages that can be entered and left anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxtl.models.layers import Context, Convention

INFERENCE = Context()
"""No keys, no padding: dropout is off and every image counts."""

Variables = dict[str, jax.Array]
"""Parameters and BatchNorm statistics by path, such as `block_14/expand/kernel`."""


@dataclass(frozen=True)
class Spec:
    """What a network is built from, besides the numbers in it.

    Attributes:
        name: the network's name in the registry.
        num_classes: how many logits it returns; None for pooled features.
        width: the multiplier of its channel counts.
        dropout: the share of its features that training drops before the last dense layer.
        top: with all of the classifier that it was published with, where that is more than one
            dense layer.
        convention: that of the weights.
    """

    name: str
    num_classes: int | None
    width: float
    dropout: float
    top: bool
    convention: Convention


class Layer(NamedTuple):
    """A layer with weights in a file of another framework.

    Attributes:
        kind: `conv2d`, `depthwise_conv2d`, `batch_normalization`, `dense`, or `flat_dense`: a dense
            layer on flattened feature maps, whose channels come last here and first in torch.
        name: what it is called there.
        path: of the layer here.
        folds_into: the path of the BatchNorm after a convolution that has a bias there and none
            here: it is taken from the running mean, which changes nothing that is computed.
    """

    kind: str
    name: str
    path: str
    folds_into: str | None = None


class Network(nnx.Module):
    """A chain of named stages, from RGB images to logits or pooled features.

    Attributes:
        spec: what it was built from.
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
        """The multiplier of its channel counts."""
        return self.spec.width

    @property
    def num_classes(self) -> int | None:
        """How many logits it returns; None for pooled features."""
        return self.spec.num_classes

    def __call__(
        self,
        x: Array,
        *,
        start: str | None = None,
        stop: str | None = None,
        context: Context = INFERENCE,
    ) -> Float[Array, "batch *features"]:
        """Runs the stages from `start` up to, but not including, `stop`.

        Args:
            x: images (B, H, W, 3), RGB, 0..255, uint8 or float; or, with `start`, what the stage
                before it returned.
            start: the first stage to run; None for the whole chain's first.
            stop: the stage to stop before; None to run to the end.
            context: keys and padding of the batch; the default is inference.

        Returns:
            What the last stage run returns: logits or pooled features (B, F) at the end of the
            chain, float32.
        """
        for stage in self.between(start, stop):
            x = getattr(self, stage)(x, context)
        return x

    def compute_in(self, dtype: str) -> None:
        """Sets the type of the feature maps: `float32` or `bfloat16`."""
        getattr(self, self.stage_names[0]).dtype = dtype

    def between(self, start: str | None, stop: str | None) -> tuple[str, ...]:
        """The names of the stages from `start` up to, but not including, `stop`."""
        first = 0 if start is None else self.stage_names.index(start)
        last = len(self.stage_names) if stop is None else self.stage_names.index(stop)
        return self.stage_names[first:last]


class KerasFile(NamedTuple):
    """A weights file of Keras Applications.

    Attributes:
        path: below its base address.
        md5: in hexadecimal, where it is published.
    """

    path: str
    md5: str | None = None


class Names(NamedTuple):
    """What a network is called elsewhere.

    Attributes:
        keras: its function in `keras.applications` (keras/api/applications/__init__.py).
        module: the module there that has its `preprocess_input`.
        timm: its name for `timm.create_model`, by width (timm/models).
    """

    keras: str
    module: str
    timm: Mapping[float, str]


@dataclass(frozen=True)
class Definition:
    """What a network file provides.

    Attributes:
        names: what Keras and timm call its networks, by their names here.
        build: makes the network with random parameters.
        conventions: that of Keras' weights and that of torch's, by name.
        keras_layers: the layers with weights, in the order of Keras Applications' model.
        torch_layers: those of a network in `timm` or `torchvision`, None where that has none.
        keras_file: the published Keras file for a network's name, a width, a image size, and with
            or without top.
        widths: the widths that have published weights.
        native: pixels a side of the images that the published weights were trained on.
        smallest: pixels a side of the smallest images that it takes.
        deep_top: whether its published classifier is more than one dense layer.
        portable: whether weights compute the same under both conventions, once the images are
            normalised for them.
    """

    names: Mapping[str, Names]
    build: Callable[[Spec, np.random.Generator], Network]
    conventions: Mapping[str, Convention]
    keras_layers: Callable[[Network], list[Layer]]
    torch_layers: Callable[[Network, str], list[Layer] | None]
    keras_file: Callable[[str, float, int, bool], KerasFile]
    widths: tuple[float, ...] = (1.0,)
    native: int = 224
    smallest: int = 32
    deep_top: bool = False
    portable: bool = False


def split(network: Network) -> tuple[nnx.GraphDef, Variables]:
    """Takes a network apart into its static structure and its variables by path."""
    graph, state = nnx.split(network)
    return graph, {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def merge(graph: nnx.GraphDef, variables: Variables) -> Network:
    """Puts a network together; the inverse of `split`.

    Inside a traced function the network belongs to that trace: gradients can be taken through it.
    """
    flat: dict = {tuple(path.split("/")): value for path, value in variables.items()}
    return nnx.merge(graph, nnx.from_flat_state(flat))


def statistics(network: Network) -> frozenset[str]:
    """The paths of the BatchNorm statistics, which no gradient moves."""
    state = nnx.state(network, nnx.BatchStat)
    return frozenset("/".join(map(str, path)) for path, _ in nnx.to_flat_state(state))
