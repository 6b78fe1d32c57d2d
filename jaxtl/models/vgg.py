"""VGG-16 and -19 (Simonyan and Zisserman 2014, arXiv:1409.1556) as chains of stages."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxtl.models.chain import Definition, ExternalNames, LayerNames, Network, Spec, one_keras_file
from jaxtl.models.layers import (
    CAFFE,
    IMAGENET,
    Context,
    Conv,
    Convention,
    Head,
    Maps,
    Output,
    Pool,
    Preprocess,
)

# Table 1 of the paper, columns D and E: convolutions of each block; and the channels of each.
_DEPTHS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)
_HIDDEN = 4096
# There is no BatchNorm: epsilon is never used.
_CONVENTIONS = {
    "keras": Convention("keras", **CAFFE, epsilon=0.0, bgr=True),
    "torch": Convention("torch", **IMAGENET, epsilon=0.0),
}
# With and without top: Keras Applications, vgg16.py and vgg19.py.
_MD5 = {
    "vgg16": ("64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc"),
    "vgg19": ("cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6"),
}

SIDE = 7
"""Side of the maps that the published classifier takes: 224 pixels, halved five times."""


def vgg(spec: Spec) -> Network:
    """Builds the structure of a VGG.

    Returns:
        The stages preprocess, block1_conv1 .. block5_conv3 (VGG-19: block5_conv4), then pool or,
        with `spec.top`, fc1 and fc2, and, with classes, head.
    """
    stages: dict[str, nnx.Module] = {"preprocess": Preprocess(spec.convention, spec.dtype)}
    channels = 3
    for block, (depth, out) in enumerate(zip(_DEPTHS[spec.name], _CHANNELS, strict=True), 1):
        for number in range(1, depth + 1):
            stages[f"block{block}_conv{number}"] = ConvRelu(channels, out, number == depth)
            channels = out
    if spec.top:
        stages["fc1"] = FlatDenseRelu(SIDE**2 * channels, _HIDDEN, dropout=0.0)
        stages["fc2"] = DenseRelu(_HIDDEN, _HIDDEN, dropout=0.0)
        channels = _HIDDEN
    else:
        stages["pool"] = Pool()
    if spec.num_classes is not None:
        stages["head"] = Head(channels, spec.num_classes, dropout=spec.dropout)
    return Network(stages, spec)


class ConvRelu(nnx.Module):
    """A 3x3 convolution and ReLU and, at the end of a block, the maximum of every 2x2."""

    def __init__(self, channels: int, out: int, last: bool) -> None:
        self.last = last
        self.conv = Conv(channels, out, size=3, bias=True)

    def __call__(self, x: Maps, context: Context) -> Output:
        x = nnx.relu(self.conv(x))
        return nnx.max_pool(x, (2, 2), (2, 2)) if self.last else x


class DenseRelu(Head):
    """A `Head` as a hidden layer: dense and ReLU, features (B, F) -> features (B, F'), float32."""

    def __call__(
        self, x: Float[Array, "batch features"], context: Context
    ) -> Float[Array, "batch out"]:
        return nnx.relu(super().__call__(x, context))


class FlatDenseRelu(DenseRelu):
    """A `DenseRelu` on feature maps (B, H, W, C), pooled to 7x7 and flattened, channels last."""

    def __call__(self, x: Maps, context: Context) -> Float[Array, "batch out"]:
        x = adaptive_average_pool(x, SIDE)
        return super().__call__(x.reshape(len(x), -1), context)


def adaptive_average_pool(x: Maps, side: int) -> Float[Array, "batch {side} {side} channels"]:
    """Pools maps of any size to side x side, as torch's `AdaptiveAvgPool2d` does.

    Cell (i, j) is the mean of the rows floor(i H / side) .. ceil((i + 1) H / side) - 1 and of the
    columns likewise. Cells overlap if `side` does not divide a size; smaller maps are repeated.

    Args:
        x: feature maps (B, H, W, C).
        side: height and width of the result, which is float32.
    """
    rows, columns = (_cells(length, side) for length in x.shape[1:3])
    x = x.astype(jnp.float32)
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")


def _cells(length: int, cells: int) -> np.ndarray:
    """The weights of the pixels in each cell's mean: (cells, length)."""
    cell, pixel = np.ogrid[:cells, :length]
    first, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    return (((first <= pixel) & (pixel < end)) / (end - first)).astype(np.float32)


def keras_layers(network: Network) -> list[LayerNames]:
    """The layers with weights, in the order of Keras Applications' model."""
    layers = [LayerNames("conv2d", stage, f"{stage}/conv") for stage in _blocks(network)]
    return layers + _dense_layers(network, "fc1", "fc2", "predictions")


def torch_layers(network: Network, library: str) -> list[LayerNames]:
    """The layers with weights in timm's or torchvision's VGG."""
    layers, place = [], 0
    for stage in _blocks(network):
        layers.append(LayerNames("conv2d", f"features.{place}", f"{stage}/conv"))
        place += 3 if getattr(network, stage).last else 2  # ReLU and maximum count there
    if library == "timm":
        dense = _dense_layers(network, "pre_logits.fc1", "pre_logits.fc2", "head.fc")
        return layers + [layer._replace(convolution=layer.path != "head") for layer in dense]
    return layers + _dense_layers(network, "classifier.0", "classifier.3", "classifier.6")


def _blocks(network: Network) -> list[str]:
    return [stage for stage in network.stage_names if stage.startswith("block")]


def _dense_layers(network: Network, fc1: str, fc2: str, head: str) -> list[LayerNames]:
    layers = []
    if network.spec.top:
        layers += [LayerNames("dense", fc1, "fc1", flattened=SIDE), LayerNames("dense", fc2, "fc2")]
    if network.num_classes is not None:
        layers.append(LayerNames("dense", head, "head"))
    return layers


DEFINITION = Definition(
    names={
        "vgg16": ExternalNames("VGG16", "vgg16", {1.0: "vgg16"}, "pre_logits"),
        "vgg19": ExternalNames("VGG19", "vgg19", {1.0: "vgg19"}, "pre_logits"),
    },
    build=vgg,
    conventions=_CONVENTIONS,
    keras_layers=keras_layers,
    torch_layers=torch_layers,
    keras_file=one_keras_file("{name}", _MD5),
    classifier=("fc1", "fc2", "head"),
    portable=True,
)
