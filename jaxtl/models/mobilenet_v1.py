"""MobileNet V1 (Howard et al. 2017, arXiv:1704.04861) as a chain of stages."""

from __future__ import annotations

from flax import nnx

from jaxtl.models.chain import Definition, ExternalNames, KerasFile, LayerNames, Network, Spec
from jaxtl.models.layers import (
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

# Table 1 of the paper: channels and stride of each depthwise separable block.
_BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *(((512, 1),) * 5),
    (1024, 2),
    (1024, 1),
)
_BELOW = ((0, 1), (0, 1))  # Keras pads strided blocks so at every size (its mobilenet.py)
_CONVENTIONS = {
    "keras": Convention("keras", **PLUS_MINUS_ONE, epsilon=1e-3),  # its mobilenet.py
    # `mobilenetv1_100` in timm/models/efficientnet.py; epsilon is torch's own.
    "torch": Convention("torch", **PLUS_MINUS_ONE, epsilon=1e-5),
}


def mobilenet_v1(spec: Spec) -> Network:
    """Builds the structure of MobileNet V1.

    Returns:
        The stages preprocess, stem, block_1 .. block_13, pool and, with classes, head.
    """
    convention = spec.convention
    stages: dict[str, nnx.Module] = {"preprocess": Preprocess(spec.convention, spec.dtype)}
    channels = int(32 * spec.width)
    padding = convention.padding(3)
    stages["stem"] = ConvNorm(3, channels, convention, nnx.relu6, size=3, stride=2, padding=padding)
    for number, (base, stride) in enumerate(_BLOCKS, 1):
        out = int(base * spec.width)
        stages[f"block_{number}"] = SeparableBlock(channels, out, stride, convention)
        channels = out
    stages["pool"] = Pool()
    if spec.num_classes is not None:
        stages["head"] = Head(channels, spec.num_classes, dropout=spec.dropout)
    return Network(stages, spec)


class SeparableBlock(nnx.Module):
    """Filter depthwise 3x3, then mix the channels 1x1; BatchNorm and ReLU6 after both."""

    def __init__(
        self,
        channels: int,
        out: int,
        stride: int,
        convention: Convention,
    ) -> None:
        epsilon = convention.epsilon
        below = convention.name == "keras" and stride == 2
        padding = _BELOW if below else convention.padding(3)
        self.depthwise = DepthwiseConv(channels, stride=stride, padding=padding)
        self.depthwise_bn = BatchNorm(channels, epsilon=epsilon)
        self.pointwise = Conv(channels, out)
        self.pointwise_bn = BatchNorm(out, epsilon=epsilon)

    def __call__(self, x: Maps, context: Context) -> Output:
        x = conv_norm(self.depthwise, self.depthwise_bn, x, context, nnx.relu6)
        return conv_norm(self.pointwise, self.pointwise_bn, x, context, nnx.relu6)


def keras_layers(network: Network) -> list[LayerNames]:
    """The layers with weights, in the order of Keras Applications' model."""
    layers = [LayerNames("conv2d", "conv1", "stem/conv")]
    layers += [LayerNames("batch_normalization", "conv1_bn", "stem/bn")]
    for number in range(1, len(_BLOCKS) + 1):
        for kind, short, part in (
            ("depthwise_conv2d", "dw", "depthwise"),
            ("conv2d", "pw", "pointwise"),
        ):
            name, path = f"conv_{short}_{number}", f"block_{number}/{part}"
            layers.append(LayerNames(kind, name, path))
            layers.append(LayerNames("batch_normalization", f"{name}_bn", f"{path}_bn"))
    if network.num_classes is not None:
        layers.append(LayerNames("conv2d", "conv_preds", "head"))
    return layers


def torch_layers(network: Network, library: str) -> list[LayerNames] | None:
    """The layers with weights in timm's `mobilenetv1`; torchvision has none."""
    if library != "timm":
        return None
    layers = [LayerNames("conv2d", "conv_stem", "stem/conv")]
    layers += [LayerNames("batch_normalization", "bn1", "stem/bn")]
    group = place = 0
    for number, (_, stride) in enumerate(_BLOCKS, 1):
        if stride == 2:  # where timm's groups begin
            group, place = group + 1, 0
        name, path = f"blocks.{group}.{place}", f"block_{number}"
        layers += [
            LayerNames("depthwise_conv2d", f"{name}.conv_dw", f"{path}/depthwise"),
            LayerNames("batch_normalization", f"{name}.bn1", f"{path}/depthwise_bn"),
            LayerNames("conv2d", f"{name}.conv_pw", f"{path}/pointwise"),
            LayerNames("batch_normalization", f"{name}.bn2", f"{path}/pointwise_bn"),
        ]
        place += 1
    if network.num_classes is not None:
        layers.append(LayerNames("dense", "classifier", "head"))
    return layers


def keras_file(name: str, width: float, image_size: int, top: bool) -> KerasFile:
    """The published weights file that suits a width and image size best.

    Args:
        name: the name of the network.
        width: one of the published widths.
        image_size: pixels a side. The result is for the nearest size that has weights.
        top: whether the file has the classifier of the 1,000 ImageNet classes.
    """
    size = min((128, 160, 192, 224), key=lambda trained: (abs(trained - image_size), -trained))
    fraction = {0.25: "2_5", 0.5: "5_0", 0.75: "7_5", 1.0: "1_0"}[width]
    suffix = "" if top else "_no_top"
    return KerasFile(f"mobilenet/mobilenet_{fraction}_{size}_tf{suffix}.h5")


DEFINITION = Definition(
    names={"mobilenet_v1": ExternalNames("MobileNet", "mobilenet", {1.0: "mobilenetv1_100"})},
    build=mobilenet_v1,
    conventions=_CONVENTIONS,
    keras_layers=keras_layers,
    torch_layers=torch_layers,
    keras_file=keras_file,
    widths=(0.25, 0.5, 0.75, 1.0),
)
