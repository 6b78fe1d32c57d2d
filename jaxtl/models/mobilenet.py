"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) as a chain of stages."""

from __future__ import annotations

import numpy as np
from flax import nnx

from jaxtl.models.chain import Network
from jaxtl.models.layers import (
    BatchNorm,
    Context,
    Conv,
    DepthwiseConv,
    Head,
    Maps,
    Pool,
    Preprocess,
)

WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
"""The widths that Keras Applications publishes ImageNet weights for."""

# Table 2 of the paper, one row a group of blocks: expansion, channels, blocks, stride of the first.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_EPSILON = 1e-3  # Keras Applications, mobilenet_v2.py


def mobilenet_v2(
    *, num_classes: int | None, width: float = 1.0, dropout: float = 0.0, rng: np.random.Generator
) -> Network:
    """Builds MobileNetV2 with random parameters.

    Args:
        num_classes: how many logits the head returns; None builds no head.
        width: the multiplier of the channel counts, one of `WIDTHS` or any other above zero.
        dropout: the share of pooled features that training drops before the dense layer.
        rng: draws the parameters.

    Returns:
        The stages preprocess, stem, block_0 .. block_16, top, pool and, with classes, head.
    """
    stages: dict[str, nnx.Module] = {
        # [-1, 1], as the published Keras weights were trained (`preprocess_input(mode="tf")`).
        "preprocess": Preprocess(mean=(127.5,) * 3, std=(127.5,) * 3)
    }
    channels = make_divisible(32 * width)
    stages["stem"] = ConvNormRelu6(3, channels, size=3, stride=2, rng=rng)
    block = 0
    for expansion, base, repeats, first_stride in _GROUPS:
        for repeat in range(repeats):
            out = make_divisible(base * width)
            stride = first_stride if repeat == 0 else 1
            stages[f"block_{block}"] = InvertedResidual(channels, out, expansion, stride, rng)
            channels, block = out, block + 1
    features = make_divisible(1280 * max(1.0, width))  # the last layer never shrinks (section 4)
    stages["top"] = ConvNormRelu6(channels, features, size=1, stride=1, rng=rng)
    stages["pool"] = Pool()
    if num_classes is not None:
        stages["head"] = Head(features, num_classes, dropout=dropout, rng=rng)
    return Network(stages, name="mobilenet_v2", width=width, num_classes=num_classes)


class ConvNormRelu6(nnx.Module):
    """A convolution, its BatchNorm and ReLU6."""

    def __init__(
        self, channels: int, out: int, *, size: int, stride: int, rng: np.random.Generator
    ) -> None:
        self.conv = Conv(channels, out, size=size, stride=stride, rng=rng)
        self.bn = BatchNorm(out, epsilon=_EPSILON)

    def __call__(self, x: Maps, context: Context) -> Maps:
        return nnx.relu6(self.bn(self.conv(x), context))


class InvertedResidual(nnx.Module):
    """Expand 1x1, filter depthwise, project 1x1; the input is added where the shapes allow."""

    def __init__(
        self, channels: int, out: int, expansion: int, stride: int, rng: np.random.Generator
    ) -> None:
        inner = channels * expansion
        self.expands = expansion > 1
        self.residual = stride == 1 and channels == out
        if self.expands:
            self.expand = Conv(channels, inner, rng=rng)
            self.expand_bn = BatchNorm(inner, epsilon=_EPSILON)
        self.depthwise = DepthwiseConv(inner, stride=stride, rng=rng)
        self.depthwise_bn = BatchNorm(inner, epsilon=_EPSILON)
        self.project = Conv(inner, out, rng=rng)
        self.project_bn = BatchNorm(out, epsilon=_EPSILON)

    def __call__(self, x: Maps, context: Context) -> Maps:
        y = x
        if self.expands:
            y = nnx.relu6(self.expand_bn(self.expand(y), context))
        y = nnx.relu6(self.depthwise_bn(self.depthwise(y), context))
        y = self.project_bn(self.project(y), context)
        return x + y if self.residual else y


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Rounds to a multiple of `divisor` that is not more than a tenth below `channels`.

    The rule of the reference implementation (tensorflow/models, slim/nets/mobilenet).
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def keras_layers(network: Network) -> list[tuple[str, str, str]]:
    """The layers with weights, in the order of Keras Applications' model.

    Returns:
        For each layer its Keras class in snake case, its Keras name and its path here.
    """
    layers = [("conv2d", "Conv1", "stem/conv"), ("batch_normalization", "bn_Conv1", "stem/bn")]
    for stage in network.stage_names:
        if not stage.startswith("block_"):
            continue
        prefix = "expanded_conv" if stage == "block_0" else stage
        for part in ("expand", "depthwise", "project"):
            if part == "expand" and not getattr(network, stage).expands:
                continue
            kind = "depthwise_conv2d" if part == "depthwise" else "conv2d"
            layers += [
                (kind, f"{prefix}_{part}", f"{stage}/{part}"),
                ("batch_normalization", f"{prefix}_{part}_BN", f"{stage}/{part}_bn"),
            ]
    layers += [("conv2d", "Conv_1", "top/conv"), ("batch_normalization", "Conv_1_bn", "top/bn")]
    if network.num_classes is not None:
        layers.append(("dense", "predictions", "head"))
    return layers


def keras_file(width: float, image_size: int, *, top: bool) -> str:
    """The published weights file that suits a width and picture size best.

    Args:
        width: one of `WIDTHS`.
        image_size: pixels a side; the nearest size that weights were trained at is taken.
        top: with the classifier of 1,000 ImageNet classes.

    Returns:
        The file's path below the Keras Applications base address.
    """
    sizes = (224,) if width > 1 else (96, 128, 160, 192, 224)
    size = min(sizes, key=lambda trained: (abs(trained - image_size), -trained))
    suffix = "" if top else "_no_top"
    return (
        "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_"
        f"{float(width)}_{size}{suffix}.h5"
    )
