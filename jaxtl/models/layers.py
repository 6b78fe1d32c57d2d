"""The layers of the networks that Flax does not have in this form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Key, Num

from jaxtl.ops.batch_norm import UNLIMITED, Limits, batch_norm, normalise
from jaxtl.ops.convolution import conv
from jaxtl.ops.depthwise import depthwise_conv
from jaxtl.ops.product_norm import product_norm
from jaxtl.ops.windows import Maps, Output, Padding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """The input of a stage besides activations.

    Attributes:
        keys: one random key for each image; without keys dropout is off.
        valid: False for images that only pad a batch; batch statistics leave them out.
    """

    keys: Key[Array, "batch"] | None = None
    valid: Bool[Array, "batch"] | None = None


@dataclasses.dataclass(frozen=True)
class Convention:
    """How a framework normalises images and pads feature maps.

    Attributes:
        name: `keras` or `torch`.
        mean, std: the mean and standard deviation of RGB images, 0..255.
        epsilon: the epsilon of the BatchNorms.
        bgr: whether the first kernel in weight files takes blue, green, red; here it takes RGB.
    """

    name: Literal["keras", "torch"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    epsilon: float
    bgr: bool = False

    def padding(self, size: int) -> Padding:
        """The padding of a strided window of `size` x `size` pixels.

        Keras pads only as much as is needed, with an odd row at the end; torch pads all sides
        equally.
        """
        return "SAME" if self.name == "keras" else ((size // 2,) * 2,) * 2


class Normalisation(TypedDict):
    """Mean and standard deviation of RGB images, 0..255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


PLUS_MINUS_ONE: Normalisation = {"mean": (127.5,) * 3, "std": (127.5,) * 3}
"""[-1, 1] (`preprocess_input(mode="tf")` of Keras Applications, imagenet_utils.py)."""

CAFFE: Normalisation = {"mean": (123.68, 116.779, 103.939), "std": (1.0,) * 3}
"""Zero mean (`mode="caffe"` there, which takes BGR)."""

IMAGENET: Normalisation = {
    "mean": (0.485 * 255, 0.456 * 255, 0.406 * 255),
    "std": (0.229 * 255, 0.224 * 255, 0.225 * 255),
}
"""Zero mean and unit variance (`mode="torch"` there; timm/data/constants.py)."""


def array(*shape: int) -> jax.ShapeDtypeStruct:
    """The shape and type of a float32 parameter."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


class Preprocess(nnx.Module):
    """Normalises RGB images, 0..255, to the range that the weights were trained on.

    Args:
        convention: the convention of the weights.
        dtype: the type of the result, and so of all feature maps.
    """

    def __init__(self, convention: Convention, dtype: str):
        self.mean = convention.mean
        self.std = convention.std
        self.dtype = dtype

    def __call__(
        self, x: Num[Array | np.ndarray, "batch height width 3"], context: Context
    ) -> Float[Array, "batch height width 3"]:
        mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
        return ((jnp.asarray(x, jnp.float32) - mean) / std).astype(self.dtype)


class Conv(nnx.Module):
    """A convolution; kernel (height, width, channels, out).

    Args:
        channels: the number of input channels.
        out: the number of output channels.
        size: height and width of the window; one number for a square.
        stride: the step of the window along both axes.
        padding: `SAME`, `VALID`, or rows and columns of zeros before and after.
        bias: whether to add a learned number to each channel.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        *,
        size: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: Padding = "SAME",
        bias: bool = False,
    ):
        height, width = (size, size) if isinstance(size, int) else size
        self.stride = stride
        self.padding = padding
        self.kernel = nnx.Param(array(height, width, channels, out))
        self.bias = nnx.Param(array(out)) if bias else None

    def __call__(self, x: Maps) -> Output:
        y = conv(x, self.kernel[...], self.stride, self.padding)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class DepthwiseConv(nnx.Module):
    """A depthwise convolution, 3x3, without bias; kernel (3, 3, 1, channels)."""

    def __init__(
        self,
        channels: int,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
    ):
        self.stride = stride
        self.padding = padding
        self.kernel = nnx.Param(array(3, 3, 1, channels))

    def __call__(self, x: Maps) -> Float[Array, "batch _height _width channels"]:
        return depthwise_conv(x, self.kernel[...], self.stride, self.padding)


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) that a phase can freeze.

    Unlike `nnx.BatchNorm`, it is exact when the devices have different numbers of valid images: it
    sums over images and devices before it divides.

    Args:
        channels: the number of channels of the feature maps.
        epsilon: a constant that is added to the variance.
        scale: whether to multiply each normalised channel by a learned number.

    Attributes:
        training: whether to normalise by the statistics of the batch and to update the running
            statistics; else the running statistics normalise.
        momentum: the fraction of the running statistics that a training step keeps.
        axis_name: the mapped axis over which training statistics are shared, if any.
        fused: whether training takes the convolution before and the activation after it into one
            operation, as is good for accelerators (`conv_norm`).
    """

    def __init__(self, channels: int, *, epsilon: float, scale: bool = True):
        self.epsilon = epsilon
        self.training = False
        self.momentum = 0.0
        self.axis_name: str | None = None
        self.fused = False
        self.scale = nnx.Param(array(channels)) if scale else None
        self.bias = nnx.Param(array(channels))
        self.mean = nnx.BatchStat(array(channels))
        self.var = nnx.BatchStat(array(channels))

    def __call__(self, x: Maps, context: Context) -> Maps:
        bias, mean, var = (v[...] for v in (self.bias, self.mean, self.var))
        if not self.training:
            return normalise(x, mean, self._scale() * lax.rsqrt(var + self.epsilon), bias)
        return self.by_batch(x, context)

    def by_batch(self, x: Maps, context: Context, limits: Limits = UNLIMITED) -> Maps:
        """Normalises by the batch's statistics, clips, and updates the running statistics."""
        bias, center, valid = self.bias[...], self.mean[...], _valid(x, context)
        given = (bias, center, valid, self.epsilon, self.axis_name, limits)
        return self._keep(batch_norm(x, self._scale(), *given))

    def of_product(self, x: Maps, kernel: Array, context: Context, limits: Limits) -> Output:
        """The same of a convolution by a window of one pixel (1, 1, channels, out)."""
        given = (self.bias[...], _valid(x, context), self.epsilon, self.axis_name, limits)
        return self._keep(product_norm(x, kernel, self._scale(), *given))

    def _scale(self) -> Float[Array, "channels"]:
        return jnp.ones_like(self.bias[...]) if self.scale is None else self.scale[...]

    def _keep(self, results: tuple[Array, Array, Array]) -> Array:
        """The maps, once the running statistics are updated."""
        y, *fresh = results
        kept = self.momentum
        self.mean[...], self.var[...] = (
            kept * old[...] + (1 - kept) * lax.stop_gradient(new)
            for old, new in zip((self.mean, self.var), fresh, strict=True)
        )
        return y


def _valid(x: Maps, context: Context) -> Float[Array, "batch"]:
    return jnp.ones(len(x)) if context.valid is None else context.valid.astype(jnp.float32)


_LIMITS: dict[Callable[[Array], Array] | None, Limits] = {
    None: UNLIMITED,
    nnx.relu: (0.0, math.inf),
    nnx.relu6: (0.0, 6.0),
}
"""The activations that clip, and to which limits."""


def conv_norm(
    conv: Conv | DepthwiseConv,
    norm: BatchNorm,
    x: Maps,
    context: Context,
    activation: Callable[[Array], Array] | None = None,
) -> Output:
    """A convolution without bias, the BatchNorm and the activation after it.

    Where the BatchNorm is `fused`, its gradient keeps fewer maps, and a convolution by a window of
    one pixel that widens the maps is one operation with it.
    """
    if not (norm.training and norm.fused and activation in _LIMITS):
        y = norm(conv(x), context)
        return y if activation is None else activation(y)
    limits, kernel = _LIMITS[activation], conv.kernel[...]
    widens = kernel.shape[:2] == (1, 1) and kernel.shape[2] < kernel.shape[3] and conv.stride == 1
    if widens:
        return norm.of_product(x, kernel, context, limits)
    return norm.by_batch(conv(x), context, limits)


class ConvNorm(nnx.Module):
    """A convolution, its BatchNorm and an activation.

    Args:
        channels: the number of input channels.
        out: the number of output channels.
        convention: the convention of the weights.
        activation: the activation function, such as `nnx.relu`.
        size, stride, padding: as for `Conv`.
        scale: as for `BatchNorm`.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        convention: Convention,
        activation: Callable[[Array], Array],
        *,
        size: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: Padding = "SAME",
        scale: bool = True,
    ) -> None:
        self.conv = Conv(channels, out, size=size, stride=stride, padding=padding)
        self.bn = BatchNorm(out, epsilon=convention.epsilon, scale=scale)
        self.activation = activation

    def __call__(self, x: Maps, context: Context) -> Output:
        return conv_norm(self.conv, self.bn, x, context, self.activation)


class Pool(nnx.Module):
    """Global average pooling: feature maps (B, H, W, C) -> float32 features (B, C)."""

    def __call__(self, x: Maps, context: Context) -> Float[Array, "batch channels"]:
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


class Head(nnx.Module):
    """Dropout and one dense layer: features (B, F) -> logits (B, classes).

    Dropout uses a key for each image, so it does not depend on the number of devices.
    """

    def __init__(self, features: int, classes: int, *, dropout: float):
        self.dropout = dropout
        self.kernel = nnx.Param(array(features, classes))
        self.bias = nnx.Param(array(classes))

    def __call__(
        self, x: Float[Array, "batch features"], context: Context
    ) -> Float[Array, "batch classes"]:
        if self.dropout and context.keys is not None:
            keep = 1 - self.dropout
            kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x.shape[1:]))(context.keys)
            x = jnp.where(kept, x / keep, 0)
        return x @ self.kernel[...] + self.bias[...]
