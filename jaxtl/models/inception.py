"""Inception-V3 (Szegedy et al. 2015, arXiv:1512.00567) as a chain of stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx

from jaxtl.models.chain import Definition, ExternalNames, LayerNames, Network, Spec, one_keras_file
from jaxtl.models.layers import (
    PLUS_MINUS_ONE,
    Context,
    Convention,
    ConvNorm,
    Head,
    Maps,
    Output,
    Pool,
    Preprocess,
)
from jaxtl.ops.windows import Padding

# Keras Applications, inception_v3.py. torchvision's inception.py takes ImageNet's mean and standard
# deviation and turns them into these (`_transform_input`).
_CONVENTIONS = {
    "keras": Convention("keras", **PLUS_MINUS_ONE, epsilon=1e-3),
    "torch": Convention("torch", **PLUS_MINUS_ONE, epsilon=1e-3),
}
# With and without top: Keras Applications, inception_v3.py.
_MD5 = {"inception_v3": ("9a0d58056eeedaa3f26cb7ebd46da564", "bcbd6486424b2319ff4ef7d526e38f63")}


class Unit(NamedTuple):
    """A convolution with its BatchNorm and ReLU, by the name that torchvision gives it."""

    name: str
    out: int
    size: int | tuple[int, int] = 1
    stride: int = 1
    padding: Padding = "SAME"


Pooling = Literal["average", "maximum"] | None


class Branch(NamedTuple):
    """One branch of a mixed block.

    Attributes:
        chain: units that run one after the other.
        ends: units that all take the output of the chain; their outputs are concatenated.
        pool: the pooling before the chain: a 3x3 average, or a strided 3x3 maximum.
    """

    chain: tuple[Unit, ...] = ()
    ends: tuple[Unit, ...] = ()
    pool: Pooling = None


Branches = tuple[Branch, ...]

_STRIDED = (3, 2, "VALID")  # size, stride, padding
_ROW, _COLUMN = (1, 7), (7, 1)

# The channels of most layers are not in the paper: they are those of both libraries.
_STEM = (
    Unit("conv_1a", 32, *_STRIDED),
    Unit("conv_2a", 32, 3, padding="VALID"),
    Unit("conv_2b", 64, 3),
    Unit("conv_3b", 80),
    Unit("conv_4a", 192, 3, padding="VALID"),
)
_POOLED = ("conv_2b", "conv_4a")  # followed by a strided maximum


def _branch(name: str, *chain: tuple, ends: tuple[tuple, ...] = (), pool: Pooling = None) -> Branch:
    """Names the units as torchvision does: the chain by numbers, the ends by letters."""
    if len(chain) == 1 and not ends:
        return Branch((Unit(name, *chain[0]),), (), pool)
    last = len(chain) + 1
    units = tuple(Unit(f"{name}_{number}", *unit) for number, unit in enumerate(chain, 1))
    last_units = tuple(
        Unit(f"{name}_{last}{letter}", *unit) for letter, unit in zip("ab", ends, strict=False)
    )
    return Branch(units, last_units, pool)


def _at_35(pooled: int) -> Branches:
    """Figure 5 of the paper, with one 5x5 kept; `pooled` is the width of the averaging branch."""
    return (
        _branch("branch1x1", (64, 1)),
        _branch("branch5x5", (48, 1), (64, 5)),
        _branch("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
        _branch("branch_pool", (pooled, 1), pool="average"),
    )


def _at_17(inner: int) -> Branches:
    """Figure 6; `inner` is the width of the units between a branch's first and last."""
    row, column = (inner, _ROW), (inner, _COLUMN)
    return (
        _branch("branch1x1", (192, 1)),
        _branch("branch7x7", (inner, 1), row, (192, _COLUMN)),
        _branch("branch7x7dbl", (inner, 1), column, row, column, (192, _ROW)),
        _branch("branch_pool", (192, 1), pool="average"),
    )


_ENDS = ((384, (1, 3)), (384, (3, 1)))
_AT_8: Branches = (  # figure 7
    _branch("branch1x1", (320, 1)),
    _branch("branch3x3", (384, 1), ends=_ENDS),
    _branch("branch3x3dbl", (448, 1), (384, 3), ends=_ENDS),
    _branch("branch_pool", (192, 1), pool="average"),
)
_TO_17: Branches = (  # figure 10
    _branch("branch3x3", (384, *_STRIDED)),
    _branch("branch3x3dbl", (64, 1), (96, 3), (96, *_STRIDED)),
    Branch(pool="maximum"),
)
_TO_8: Branches = (
    _branch("branch3x3", (192, 1), (320, *_STRIDED)),
    _branch("branch7x7x3", (192, 1), (192, _ROW), (192, _COLUMN), (192, *_STRIDED)),
    Branch(pool="maximum"),
)
_MIXED: dict[str, Branches] = {
    "mixed_5b": _at_35(pooled=32),
    "mixed_5c": _at_35(pooled=64),
    "mixed_5d": _at_35(pooled=64),
    "mixed_6a": _TO_17,
    "mixed_6b": _at_17(inner=128),
    "mixed_6c": _at_17(inner=160),
    "mixed_6d": _at_17(inner=160),
    "mixed_6e": _at_17(inner=192),
    "mixed_7a": _TO_8,
    "mixed_7b": _AT_8,
    "mixed_7c": _AT_8,
}


def inception_v3(spec: Spec) -> Network:
    """Builds the structure of Inception-V3, without the auxiliary classifier.

    Returns:
        The stages preprocess, conv_1a .. conv_4a, mixed_5b .. mixed_7c, pool and, with classes,
        head.
    """
    convention = spec.convention
    stages: dict[str, nnx.Module] = {"preprocess": Preprocess(spec.convention, spec.dtype)}
    channels = 3
    for unit in _STEM:
        kind = PooledConvNorm if unit.name in _POOLED else ConvNorm
        stages[unit.name] = _unit(channels, unit, convention, kind)
        channels = unit.out
    for stage, branches in _MIXED.items():
        block = MixedBlock(channels, branches, convention)
        stages[stage], channels = block, block.out
    stages["pool"] = Pool()
    if spec.num_classes is not None:
        stages["head"] = Head(channels, spec.num_classes, dropout=spec.dropout)
    return Network(stages, spec)


def _unit(
    channels: int, unit: Unit, convention: Convention, kind: type[ConvNorm] = ConvNorm
) -> ConvNorm:
    return kind(
        channels,
        unit.out,
        convention,
        nnx.relu,
        size=unit.size,
        stride=unit.stride,
        padding=unit.padding,
        # Keras' weights have no scale, since the next convolution can scale its inputs.
        scale=convention.name == "torch",
    )


class PooledConvNorm(ConvNorm):
    """A `ConvNorm` and a strided 3x3 maximum."""

    def __call__(self, x: Maps, context: Context) -> Output:
        return nnx.max_pool(super().__call__(x, context), (3, 3), (2, 2))


class MixedBlock(nnx.Module):
    """Branches that take the same maps; their outputs are concatenated.

    Attributes:
        out: the number of channels of the output.
    """

    def __init__(self, channels: int, branches: Branches, convention: Convention) -> None:
        self.branches = branches
        self.counts_padding = convention.name == "torch"
        self.out = 0
        for branch in branches:
            width = channels
            for unit in branch.chain:
                setattr(self, unit.name, _unit(width, unit, convention))
                width = unit.out
            for unit in branch.ends:
                setattr(self, unit.name, _unit(width, unit, convention))
            self.out += sum(unit.out for unit in branch.ends) or width

    def __call__(self, x: Maps, context: Context) -> Output:
        return jnp.concatenate([self._along(way, x, context) for way in self.branches], axis=-1)

    def _along(self, branch: Branch, x: Maps, context: Context) -> Output:
        if branch.pool == "average":
            x = average_pool(x, counts_padding=self.counts_padding)
        elif branch.pool == "maximum":
            x = nnx.max_pool(x, (3, 3), (2, 2))
        for unit in branch.chain:
            x = getattr(self, unit.name)(x, context)
        if branch.ends:
            x = jnp.concatenate([getattr(self, u.name)(x, context) for u in branch.ends], axis=-1)
        return x


def average_pool(x: Maps, *, counts_padding: bool) -> Maps:
    """The mean of every pixel and its eight neighbours, computed in float32.

    Args:
        x: feature maps (B, H, W, C).
        counts_padding: whether neighbours beyond an edge count as zeros, as in torch; else the mean
            leaves them out, as in Keras.

    Returns:
        Feature maps of the shape and type of `x`.
    """
    wide = x.astype(jnp.float32)
    means = nnx.avg_pool(wide, (3, 3), (1, 1), "SAME", count_include_pad=counts_padding)
    return means.astype(x.dtype)


def keras_layers(network: Network) -> list[LayerNames]:
    """The layers with weights, in the order of Keras Applications' model.

    Keras orders them by their distance to the end of the model (keras/src/ops/function.py), so that
    parallel convolutions come before their BatchNorms, and numbers their names as it makes
    them: branch by branch.
    """
    layers: list[LayerNames] = []
    created = 0
    for units in _units():
        depths: list[tuple[int, LayerNames]] = []
        for number, (path, left) in enumerate(units, created):
            suffix = f"_{number}" if number else ""
            conv, bn = _with_norm(f"conv2d{suffix}", f"batch_normalization{suffix}", path)
            depths += [(left, conv), (left - 1, bn)]
        created += len(units)
        layers += [layer for _, layer in sorted(depths, key=lambda pair: -pair[0])]
    if network.num_classes is not None:
        layers.append(LayerNames("dense", "predictions", "head"))
    return layers


def torch_layers(network: Network, library: str) -> list[LayerNames]:
    """The layers with weights in `inception_v3`, which timm and torchvision name alike."""
    stem = {
        unit.name: f"Conv2d_{unit.name.removeprefix('conv_')}_{unit.size}x{unit.size}"
        for unit in _STEM
    }
    layers: list[LayerNames] = []
    for units in _units():
        for path, _ in units:
            name = stem.get(path) or path.capitalize().replace("/", ".")
            layers += _with_norm(f"{name}.conv", f"{name}.bn", path)
    if network.num_classes is not None:
        layers.append(LayerNames("dense", "fc", "head"))
    return layers


def _units() -> Iterator[list[tuple[str, int]]]:
    """Lists the units of each stage: path, and number of layers from it to the stage's end."""
    for unit in _STEM:
        yield [(unit.name, 3)]
    for stage, branches in _MIXED.items():
        units = []
        for chain, ends, _ in branches:
            # A unit is three layers; ends are joined by one more.
            after = 4 if ends else 0
            for place, unit in enumerate(chain):
                units.append((f"{stage}/{unit.name}", 3 * (len(chain) - place) + after))
            units += [(f"{stage}/{unit.name}", after) for unit in ends]
        yield units


def _with_norm(conv: str, bn: str, path: str) -> tuple[LayerNames, LayerNames]:
    return LayerNames("conv2d", conv, f"{path}/conv"), LayerNames(
        "batch_normalization", bn, f"{path}/bn"
    )


DEFINITION = Definition(
    names={"inception_v3": ExternalNames("InceptionV3", "inception_v3", {1.0: "inception_v3"})},
    build=inception_v3,
    conventions=_CONVENTIONS,
    keras_layers=keras_layers,
    torch_layers=torch_layers,
    keras_file=one_keras_file("inception_v3", _MD5),
    native=299,
    smallest=75,  # the last strided convolution leaves one pixel of it
)
