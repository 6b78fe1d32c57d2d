"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) as a chain of stages."""

from __future__ import annotations

import math

import jax
from flax import nnx

from jaxtl.models.chain import Definition, ExternalNames, KerasFile, LayerNames, Network, Spec
from jaxtl.models.layers import (
    IMAGENET,
    PLUS_MINUS_ONE,
    BatchNorm,
    Context,
    Conv,
    Convention,
    ConvNorm,
    DepthwiseConv,
    Head,
    Maps,
    Output,
    Pool,
    Preprocess,
    conv_norm,
)
from jaxtl.ops.batch_norm import SUMS

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
# Bytes on a device: the fast memory of a TPU v5e (docs/decisions/
# 0040-fewer-bytes-on-accelerators.md).
_MOST_RECOMPUTED = 128 * 2**20
_CONVENTIONS = {
    "keras": Convention("keras", **PLUS_MINUS_ONE, epsilon=1e-3),  # its mobilenet_v2.py
    "torch": Convention("torch", **IMAGENET, epsilon=1e-5),
}


def mobilenet_v2(spec: Spec) -> Network:
    """Builds the structure of MobileNetV2.

    Returns:
        The stages preprocess, stem, block_0 .. block_16, top, pool and, with classes, head.
    """
    convention, width = spec.convention, spec.width
    stages: dict[str, nnx.Module] = {"preprocess": Preprocess(spec.convention, spec.dtype)}
    channels = make_divisible(32 * width)
    padding = convention.padding(3)
    stages["stem"] = ConvNorm(3, channels, convention, nnx.relu6, size=3, stride=2, padding=padding)
    block = 0
    for expansion, base, repeats, first_stride in _GROUPS:
        for repeat in range(repeats):
            out = make_divisible(base * width)
            stride = first_stride if repeat == 0 else 1
            stages[f"block_{block}"] = InvertedResidual(
                channels, out, expansion, stride, convention
            )
            channels, block = out, block + 1
    features = make_divisible(1280 * max(1.0, width))  # the last layer never shrinks (section 4)
    stages["top"] = ConvNorm(channels, features, convention, nnx.relu6)
    stages["pool"] = Pool()
    if spec.num_classes is not None:
        stages["head"] = Head(features, spec.num_classes, dropout=spec.dropout)
    return Network(stages, spec)


class InvertedResidual(nnx.Module):
    """Expand 1x1, filter depthwise, project 1x1; the input is added where the shapes allow.

    Attributes:
        recomputes: whether the gradient computes widened maps of up to 128 MiB again and does not
            keep them, as is good for TPUs, whose fast memory holds such maps.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        expansion: int,
        stride: int,
        convention: Convention,
    ) -> None:
        inner, epsilon = channels * expansion, convention.epsilon
        self.expands = expansion > 1
        self.residual = stride == 1 and channels == out
        self.recomputes = False
        if self.expands:
            self.expand = Conv(channels, inner)
            self.expand_bn = BatchNorm(inner, epsilon=epsilon)
        padding = convention.padding(3)
        self.depthwise = DepthwiseConv(inner, stride=stride, padding=padding)
        self.depthwise_bn = BatchNorm(inner, epsilon=epsilon)
        self.project = Conv(inner, out)
        self.project_bn = BatchNorm(out, epsilon=epsilon)

    def __call__(self, x: Maps, context: Context) -> Output:
        if not (self.recomputes and self.expands and self._widest(x) <= _MOST_RECOMPUTED):
            return self._maps(x, context)
        # What BatchNorms added up is kept: it would be added up over the devices again.
        keep = jax.checkpoint_policies.save_only_these_names(SUMS)
        return nnx.remat(InvertedResidual._maps, policy=keep)(self, x, context)

    def _widest(self, x: Maps) -> int:
        """The bytes of its widest maps."""
        return math.prod(x.shape[:-1]) * self.depthwise.kernel[...].shape[-1] * x.dtype.itemsize

    def _maps(self, x: Maps, context: Context) -> Output:
        y = x
        if self.expands:
            y = conv_norm(self.expand, self.expand_bn, y, context, nnx.relu6)
        y = conv_norm(self.depthwise, self.depthwise_bn, y, context, nnx.relu6)
        y = conv_norm(self.project, self.project_bn, y, context)
        return x + y if self.residual else y


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Rounds to a multiple of `divisor` that is not more than a tenth below `channels`.

    The rule of the reference implementation (tensorflow/models, slim/nets/mobilenet).
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def keras_layers(network: Network) -> list[LayerNames]:
    """The layers with weights, in the order of Keras Applications' model."""
    layers = [LayerNames("conv2d", "Conv1", "stem/conv")]
    layers += [LayerNames("batch_normalization", "bn_Conv1", "stem/bn")]
    for stage in network.stage_names:
        if not stage.startswith("block_"):
            continue
        prefix = "expanded_conv" if stage == "block_0" else stage
        for part in _parts(network, stage):
            name, path = f"{prefix}_{part}", f"{stage}/{part}"
            layers.append(LayerNames(_kind(part), name, path))
            layers.append(LayerNames("batch_normalization", f"{name}_BN", f"{path}_bn"))
    layers += [LayerNames("conv2d", "Conv_1", "top/conv")]
    layers += [LayerNames("batch_normalization", "Conv_1_bn", "top/bn")]
    if network.num_classes is not None:
        layers.append(LayerNames("dense", "predictions", "head"))
    return layers


def torch_layers(network: Network, library: str) -> list[LayerNames]:
    """The layers with weights in timm's or torchvision's `mobilenetv2` (there: `mobilenet_v2`)."""
    names = _timm_names(network) if library == "timm" else _torchvision_names(network)
    layers = []
    for path, (conv, bn) in names.items():
        kind = _kind(path.rpartition("/")[2])
        bn_path = path.replace("/conv", "/bn") if path.endswith("/conv") else f"{path}_bn"
        layers += [LayerNames(kind, conv, path), LayerNames("batch_normalization", bn, bn_path)]
    if network.num_classes is not None:
        head = "classifier" if library == "timm" else "classifier.1"
        layers.append(LayerNames("dense", head, "head"))
    return layers


def _timm_names(network: Network) -> dict[str, tuple[str, str]]:
    """The convolution and the BatchNorm at each of our paths."""
    names = {"stem/conv": ("conv_stem", "bn1")}
    block = 0
    for group, (_, _, repeats, _) in enumerate(_GROUPS):
        for repeat in range(repeats):
            stage, prefix = f"block_{block}", f"blocks.{group}.{repeat}"
            convs = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
            if not getattr(network, stage).expands:
                convs = {"depthwise": "conv_dw", "project": "conv_pw"}
            for number, (part, conv) in enumerate(convs.items(), 1):
                names[f"{stage}/{part}"] = f"{prefix}.{conv}", f"{prefix}.bn{number}"
            block += 1
    return names | {"top/conv": ("conv_head", "bn2")}


def _torchvision_names(network: Network) -> dict[str, tuple[str, str]]:
    """The convolution and the BatchNorm at each of our paths."""
    names = {"stem/conv": ("features.0.0", "features.0.1")}
    blocks = [stage for stage in network.stage_names if stage.startswith("block_")]
    for number, stage in enumerate(blocks, 1):
        prefix = f"features.{number}.conv"
        *inner, last = _parts(network, stage)
        for place, part in enumerate(inner):
            names[f"{stage}/{part}"] = f"{prefix}.{place}.0", f"{prefix}.{place}.1"
        names[f"{stage}/{last}"] = f"{prefix}.{len(inner)}", f"{prefix}.{len(inner) + 1}"
    last = f"features.{len(blocks) + 1}"
    return names | {"top/conv": (f"{last}.0", f"{last}.1")}


def _parts(network: Network, stage: str) -> list[str]:
    expand = ["expand"] if getattr(network, stage).expands else []
    return [*expand, "depthwise", "project"]


def _kind(part: str) -> str:
    return "depthwise_conv2d" if part == "depthwise" else "conv2d"


def keras_file(name: str, width: float, image_size: int, top: bool) -> KerasFile:
    """The published weights file that suits a width and image size best.

    Args:
        name: the name of the network.
        width: one of the published widths.
        image_size: pixels a side. The result is for the nearest size that has weights.
        top: whether the file has the classifier of the 1,000 ImageNet classes.
    """
    sizes = (224,) if width > 1 else (96, 128, 160, 192, 224)
    size = min(sizes, key=lambda trained: (abs(trained - image_size), -trained))
    suffix = "" if top else "_no_top"
    return KerasFile(
        "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_"
        f"{float(width)}_{size}{suffix}.h5"
    )


DEFINITION = Definition(
    names={
        "mobilenet_v2": ExternalNames(
            "MobileNetV2",
            "mobilenet_v2",
            {
                0.35: "mobilenetv2_035",
                0.5: "mobilenetv2_050",
                0.75: "mobilenetv2_075",
                1.0: "mobilenetv2_100",
                1.4: "mobilenetv2_140",
            },
        )
    },
    build=mobilenet_v2,
    conventions=_CONVENTIONS,
    keras_layers=keras_layers,
    torch_layers=torch_layers,
    keras_file=keras_file,
    widths=(0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
)
