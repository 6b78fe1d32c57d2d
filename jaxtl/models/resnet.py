"""ResNet-50, -101 and -152 (He et al. 2015, arXiv:1512.03385) as chains of stages."""

from __future__ import annotations

from flax import nnx

from jaxtl.models.chain import Definition, ExternalNames, LayerNames, Network, Spec, one_keras_file
from jaxtl.models.layers import (
    CAFFE,
    IMAGENET,
    BatchNorm,
    Context,
    Conv,
    Convention,
    ConvNorm,
    Head,
    Maps,
    Output,
    Pool,
    Preprocess,
    conv_norm,
)
from jaxtl.ops.relu import relu

# Table 1 of the paper: bottlenecks of each group. Channels double from group to group.
_DEPTHS = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
_EXPANSION = 4
_CONVENTIONS = {
    "keras": Convention("keras", **CAFFE, epsilon=1.001e-5, bgr=True),  # its resnet.py
    "torch": Convention("torch", **IMAGENET, epsilon=1e-5),
}
# With and without top: `WEIGHTS_HASHES` in Keras Applications, resnet.py.
_MD5 = {
    "resnet50": ("2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626"),
    "resnet101": ("f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21"),
    "resnet152": ("100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
}


def resnet(spec: Spec) -> Network:
    """Builds the structure of a ResNet of version 1.

    Its convolutions have no bias: the BatchNorm after each has one.

    Returns:
        The stages preprocess, stem, conv2_block1 .. conv5_block3, pool and, with classes, head.
    """
    convention, channels = spec.convention, 64
    stages: dict[str, nnx.Module] = {
        "preprocess": Preprocess(spec.convention, spec.dtype),
        "stem": Stem(channels, convention),
    }
    for group, depth in enumerate(_DEPTHS[spec.name]):
        inner = 64 * 2**group
        for block in range(depth):
            stride = 2 if group and not block else 1
            stage = f"conv{group + 2}_block{block + 1}"
            stages[stage] = Bottleneck(channels, inner, stride, convention)
            channels = inner * _EXPANSION
    stages["pool"] = Pool()
    if spec.num_classes is not None:
        stages["head"] = Head(channels, spec.num_classes, dropout=spec.dropout)
    return Network(stages, spec)


class Stem(ConvNorm):
    """A strided 7x7 convolution, its BatchNorm and ReLU, and a strided 3x3 maximum.

    Keras pads explicitly here (its resnet.py), and equally on all sides, as torch does.
    """

    def __init__(self, out: int, convention: Convention) -> None:
        padding = ((3, 3), (3, 3))
        super().__init__(3, out, convention, nnx.relu, size=7, stride=2, padding=padding)

    def __call__(self, x: Maps, context: Context) -> Output:
        x = super().__call__(x, context)
        return nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions, added to the input or to a 1x1 convolution of it.

    One that halves the maps does so in its first convolution in Keras (its resnet.py), as in the
    paper, and in its second in torch (torchvision/models/resnet.py).
    """

    def __init__(
        self,
        channels: int,
        inner: int,
        stride: int,
        convention: Convention,
    ) -> None:
        out, epsilon = inner * _EXPANSION, convention.epsilon
        first, second = (stride, 1) if convention.name == "keras" else (1, stride)
        self.projects = channels != out
        if self.projects:
            self.shortcut = Conv(channels, out, stride=stride)
            self.shortcut_bn = BatchNorm(out, epsilon=epsilon)
        self.reduce = Conv(channels, inner, stride=first)
        self.reduce_bn = BatchNorm(inner, epsilon=epsilon)
        padding = convention.padding(3)
        self.filter = Conv(inner, inner, size=3, stride=second, padding=padding)
        self.filter_bn = BatchNorm(inner, epsilon=epsilon)
        self.expand = Conv(inner, out)
        self.expand_bn = BatchNorm(out, epsilon=epsilon)

    def __call__(self, x: Maps, context: Context) -> Output:
        y = conv_norm(self.reduce, self.reduce_bn, x, context, nnx.relu)
        y = conv_norm(self.filter, self.filter_bn, y, context, nnx.relu)
        y = conv_norm(self.expand, self.expand_bn, y, context)
        if self.projects:
            x = conv_norm(self.shortcut, self.shortcut_bn, x, context)
        return relu(x + y)


def keras_layers(network: Network) -> list[LayerNames]:
    """The layers with weights, in the order of Keras Applications' model.

    Keras lists layers by their distance from the logits, so a shortcut comes next to the last
    convolution of its block.
    """
    layers = [_biased("conv1_conv", "stem/conv", "stem/bn")]
    layers += [LayerNames("batch_normalization", "conv1_bn", "stem/bn")]
    for stage in _blocks(network):
        shortcut = [(0, "shortcut")] if getattr(network, stage).projects else []
        for parts in ([(1, "reduce")], [(2, "filter")], [*shortcut, (3, "expand")]):
            for n, part in parts:
                path = f"{stage}/{part}"
                layers.append(_biased(f"{stage}_{n}_conv", path, f"{path}_bn"))
            for n, part in parts:
                name, path = f"{stage}_{n}_bn", f"{stage}/{part}_bn"
                layers.append(LayerNames("batch_normalization", name, path))
    if network.num_classes is not None:
        layers.append(LayerNames("dense", "predictions", "head"))
    return layers


def torch_layers(network: Network, library: str) -> list[LayerNames]:
    """The layers with weights in the ResNets of timm and of torchvision, which name them alike."""
    layers = [
        LayerNames("conv2d", "conv1", "stem/conv"),
        LayerNames("batch_normalization", "bn1", "stem/bn"),
    ]
    for stage in _blocks(network):
        group, block = (int(number) - 1 for number in stage.removeprefix("conv").split("_block"))
        names = {"reduce": ("conv1", "bn1"), "filter": ("conv2", "bn2"), "expand": ("conv3", "bn3")}
        if getattr(network, stage).projects:
            names["shortcut"] = ("downsample.0", "downsample.1")
        for part, (conv, bn) in names.items():
            name, path = f"layer{group}.{block}", f"{stage}/{part}"
            layers.append(LayerNames("conv2d", f"{name}.{conv}", path))
            layers.append(LayerNames("batch_normalization", f"{name}.{bn}", f"{path}_bn"))
    if network.num_classes is not None:
        layers.append(LayerNames("dense", "fc", "head"))
    return layers


def _biased(name: str, path: str, bn: str) -> LayerNames:
    return LayerNames("conv2d", name, path, folds_into=bn)


def _blocks(network: Network) -> list[str]:
    return [stage for stage in network.stage_names if stage.startswith("conv")]


DEFINITION = Definition(
    names={
        "resnet50": ExternalNames("ResNet50", "resnet", {1.0: "resnet50"}),
        "resnet101": ExternalNames("ResNet101", "resnet", {1.0: "resnet101"}),
        "resnet152": ExternalNames("ResNet152", "resnet", {1.0: "resnet152"}),
    },
    build=resnet,
    conventions=_CONVENTIONS,
    keras_layers=keras_layers,
    torch_layers=torch_layers,
    keras_file=one_keras_file("resnet", _MD5),
)
