"""Networks as ONNX graphs, made from what JAX traces of them.

Feature maps are channels first, as ONNX has them. BatchNorms with fixed statistics are folded into
the convolution before them (docs/decisions/0055-onnx-by-a-writer-of-our-own.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, Literal
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from jaxtl.models import Network
from jaxtl.tasks import Activation

INPUT, OUTPUT = "images", "probabilities"
_OPSET, _IR_VERSION = 17, 8  # of ONNX 1.12: onnxruntime reads them since 1.12
_CHANNELS_FIRST = (0, 3, 1, 2)
_INLINED = ("jaxpr", "call_jaxpr")  # where a call has its body


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor of the graph; maps (B, H, W, C) are (B, C, H, W) there."""

    name: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Linear:
    """A convolution or dense layer: kernel (..., in, out), bias (out,)."""

    source: _Value
    kernel: np.ndarray
    bias: np.ndarray
    shape: tuple[int, ...]
    attributes: dict[str, Any]

    def scaled(self, factor: np.ndarray) -> _Linear:
        return dataclasses.replace(self, kernel=self.kernel * factor, bias=self.bias * factor)

    def shifted(self, by: np.ndarray) -> _Linear:
        return dataclasses.replace(self, bias=self.bias + by)


@dataclasses.dataclass(frozen=True, eq=False)
class _Clipped:
    """The values of a source between two limits."""

    source: _Value
    shape: tuple[int, ...]
    low: float = -np.inf
    high: float = np.inf


@dataclasses.dataclass(frozen=True, eq=False)
class _Sums:
    """The sums of maps under a window that slides, or of whole maps where there is no window."""

    source: _Value
    shape: tuple[int, ...]
    window: dict[str, Any] | None


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Maps (B, H, W, C) as rows of pixels (B H W, C)."""

    maps: _Value


_Value = np.ndarray | _Tensor | _Linear | _Clipped | _Sums | _Rows


class Unsupported(Exception):
    """A network has an operation that the networks of jaxtl do not have."""


def onnx_model(network: Network, image_size: int, activation: Activation = "softmax") -> ModelProto:
    """A network and the activation after it as an ONNX model.

    Args:
        network: with its variables, a head, and feature maps of float32.
        image_size: pixels a side of the images.
        activation: what makes probabilities of the logits.

    Returns:
        A model from `images`, uint8 (N, size, size, 3), RGB, to `probabilities`, float32 (N, C).

    Raises:
        Unsupported: the network has an operation that the networks of jaxtl do not have.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.uint8)
    traced = jax.make_jaxpr(lambda images: network(images))(image)
    graph = _Graph()
    graph.node("Transpose", [INPUT], "maps", perm=_CHANNELS_FIRST)
    images = _Tensor("maps", image.shape)
    (logits,) = graph.run(traced.jaxpr, [np.asarray(const) for const in traced.consts], [images])
    last = graph.tensor(logits)
    if activation == "softmax":
        graph.node("Softmax", [last], OUTPUT, axis=-1)
    else:
        graph.node("Sigmoid", [last], OUTPUT)
    size = [image_size, image_size, 3]
    whole = helper.make_graph(
        graph.nodes,
        network.name,
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", *size])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", network.num_classes])],
        graph.initializers,
    )
    return helper.make_model(
        whole,
        producer_name="jaxtl",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )


class _Graph:
    """Nodes and constants as they are written down.

    An image stands for a batch of any size: the first axis of what is no constant.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._written: dict[int, tuple[_Value, str]] = {}

    def run(self, jaxpr: Jaxpr, consts: list[_Value], arguments: list[_Value]) -> list[_Value]:
        """Writes the operations of a trace, and returns its results."""
        values: dict[Any, _Value] = dict(
            zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True)
        )

        def read(atom: Any) -> _Value:
            return np.asarray(atom.val) if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            results = self._equation(equation, inputs)
            values |= zip(equation.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[_Value]) -> list[_Value]:
        name, given = equation.primitive.name, equation.params
        if name == "platform_index":
            # As on a platform that is none of those with a lowering of their own.
            return [np.asarray(len(given["platforms"]) - 1)]
        if name == "cond":
            branch = given["branches"][int(cast(np.ndarray, inputs[0]))]
            return self.run(branch.jaxpr, branch.consts, inputs[1:])
        for key in _INLINED:
            if key in given:
                body = given[key]
                return self.run(getattr(body, "jaxpr", body), getattr(body, "consts", []), inputs)
        if all(isinstance(value, np.ndarray) for value in inputs):
            found = equation.primitive.bind(*inputs, **given)
            return [np.asarray(found)]
        if name not in _RULES:
            raise Unsupported(name)
        return [_RULES[name](self, inputs, equation.outvars[0].aval.shape, given)]

    def node(self, op: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """Adds a node, and returns the name of its output."""
        output = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def constant(self, array: np.ndarray) -> str:
        """Adds a constant, and returns its name."""
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def tensor(self, value: _Value) -> str:
        """The name of a value, whose nodes are added at its first use."""
        if isinstance(value, np.ndarray):
            return self.constant(value)
        if isinstance(value, _Tensor):
            return value.name
        if id(value) not in self._written:
            self._written[id(value)] = value, _WRITERS[type(value)](self, value)
        return self._written[id(value)][1]

    def linear(self, value: _Linear) -> str:
        """Adds a convolution or a dense layer."""
        kernel = value.kernel
        dense = kernel.ndim == 2
        inputs = [value.source, kernel if dense else kernel.transpose(3, 2, 0, 1), value.bias]
        names = [self.tensor(each) for each in inputs]
        return self.node("Gemm" if dense else "Conv", names, **value.attributes)

    def clipped(self, value: _Clipped) -> str:
        """Adds a ReLU, or limits that are no ReLU."""
        names = [self.tensor(value.source)]
        if (value.low, value.high) == (0, np.inf):
            return self.node("Relu", names)
        limits = (np.float32(value.low), np.float32(value.high))
        return self.node("Clip", [*names, *(self.constant(np.asarray(of)) for of in limits)])


def _affine(op: str) -> Callable[..., _Value]:
    """The rule of add, sub, mul or div."""

    def rule(graph: _Graph, inputs: list[_Value], shape: tuple[int, ...], given: dict) -> _Value:
        x, y = inputs
        if isinstance(x, np.ndarray) and op in ("Add", "Mul"):
            x, y = y, x
        if isinstance(x, np.ndarray | _Rows) or isinstance(y, _Rows):
            raise Unsupported(op)
        if isinstance(y, np.ndarray):
            if isinstance(x, _Sums):
                return _mean(graph, x, y, op)
            if isinstance(x, _Linear) and y.size in (1, x.shape[-1]):
                flat = y.astype(np.float32).ravel()
                if op in ("Add", "Sub"):
                    return x.shifted(flat if op == "Add" else -flat)
                return x.scaled(flat if op == "Mul" else 1 / flat)
            y = y.transpose(_CHANNELS_FIRST) if y.ndim == 4 else y
        return _Tensor(graph.node(op, [graph.tensor(x), graph.tensor(y)]), shape)

    return rule


def _mean(graph: _Graph, sums: _Sums, by: np.ndarray, op: str) -> _Tensor:
    """Sums that are divided by the number of pixels are a pooling."""
    maps = graph.tensor(sums.source)
    _, height, width, _ = _shape(sums.source)
    if op == "Div" and sums.window is None and np.all(by == height * width):
        pooled = graph.node("GlobalAveragePool", [maps])
        return _Tensor(graph.node("Flatten", [pooled]), sums.shape)
    if op == "Div" and sums.window is not None:
        counted = np.all(by == np.prod(sums.window["kernel_shape"]))
        if counted or np.array_equal(by.ravel(), _pixels(sums.window, height, width).ravel()):
            name = graph.node("AveragePool", [maps], count_include_pad=int(counted), **sums.window)
            return _Tensor(name, sums.shape)
    raise Unsupported("a sum that is not divided by the number of pixels")


def _pixels(window: dict[str, Any], height: int, width: int) -> np.ndarray:
    """How many pixels of a map are under a window at each of its places."""
    pads = window["pads"]
    return np.asarray(
        lax.reduce_window(
            np.ones((height, width), np.float32),
            np.float32(0),
            lax.add,
            tuple(window["kernel_shape"]),
            tuple(window["strides"]),
            tuple(zip(pads[:2], pads[2:], strict=True)),
        )
    )


def _clip(side: str) -> Callable[..., _Value]:
    """The rule of max, which sets the lower limit, or of min."""

    def rule(graph: _Graph, inputs: list[_Value], shape: tuple[int, ...], given: dict) -> _Value:
        x, limit = inputs[::-1] if isinstance(inputs[0], np.ndarray) else inputs
        if not isinstance(limit, np.ndarray) or limit.size != 1:
            raise Unsupported("max or min of two maps")
        limits: dict[str, Any] = {side: float(limit)}
        if isinstance(x, _Clipped) and np.isinf(getattr(x, side)):
            return dataclasses.replace(x, **limits)
        return _Clipped(x, shape, **limits)

    return rule


def _convolution(
    graph: _Graph, inputs: list[_Value], shape: tuple[int, ...], given: dict
) -> _Value:
    maps, kernel = inputs
    dimensions = given["dimension_numbers"]
    known = dimensions.lhs_spec == dimensions.out_spec == _CHANNELS_FIRST
    if not (known and dimensions.rhs_spec == (3, 2, 0, 1) and isinstance(kernel, np.ndarray)):
        raise Unsupported("a convolution of another layout")
    if {*given["lhs_dilation"], *given["rhs_dilation"], given["batch_group_count"]} != {1}:
        raise Unsupported("a dilated convolution")
    attributes = _window(kernel.shape[:2], given["window_strides"], given["padding"])
    attributes["group"] = given["feature_group_count"]
    return _Linear(maps, kernel, np.zeros(kernel.shape[-1], np.float32), shape, attributes)


def _product(graph: _Graph, inputs: list[_Value], shape: tuple[int, ...], given: dict) -> _Value:
    """A dense layer or, of pixels, a convolution by a window of one."""
    x, kernel = inputs
    if given["dimension_numbers"] != (((1,), (0,)), ((), ())) or not isinstance(kernel, np.ndarray):
        raise Unsupported("a product of another kind")
    bias = np.zeros(kernel.shape[-1], np.float32)
    if not isinstance(x, _Rows):
        return _Linear(x, kernel, bias, shape, {})
    window = _window((1, 1), (1, 1), ((0, 0), (0, 0))) | {"group": 1}
    maps = (*_shape(x.maps)[:-1], kernel.shape[-1])
    return _Rows(_Linear(x.maps, kernel[None, None], bias, maps, window))


def _reshape(graph: _Graph, inputs: list[_Value], shape: tuple[int, ...], given: dict) -> _Value:
    x = inputs[0]
    if isinstance(x, _Rows):
        if shape == _shape(x.maps):
            return x.maps
    elif len(x.shape) == 4 and len(shape) == 2 and x.shape[-1] == shape[-1]:
        return _Rows(x)
    raise Unsupported("a reshape")


def _pool(op: str) -> Callable[..., _Value]:
    """The rule of the sum or maximum under a window."""

    def rule(graph: _Graph, inputs: list[_Value], shape: tuple[int, ...], given: dict) -> _Value:
        sizes, strides, padding = (
            given[key][1:3] for key in ("window_dimensions", "window_strides", "padding")
        )
        window = _window(sizes, strides, padding)
        if op == "sum":
            return _Sums(inputs[0], shape, window)
        return _Tensor(graph.node("MaxPool", [graph.tensor(inputs[0])], **window), shape)

    return rule


def _window(sizes: Any, strides: Any, padding: Any) -> dict[str, Any]:
    (top, bottom), (left, right) = padding
    return {"kernel_shape": sizes, "strides": strides, "pads": (top, left, bottom, right)}


def _total(graph: _Graph, inputs: list[_Value], shape: tuple[int, ...], given: dict) -> _Value:
    if given["axes"] != (1, 2) or len(_shape(inputs[0])) != 4:
        raise Unsupported("a sum along other axes")
    return _Sums(inputs[0], shape, None)


def _concatenate(
    graph: _Graph, inputs: list[_Value], shape: tuple[int, ...], given: dict
) -> _Value:
    if given["dimension"] != 3:
        raise Unsupported("a concatenation along another axis")
    return _Tensor(graph.node("Concat", [graph.tensor(x) for x in inputs], axis=1), shape)


def _convert(graph: _Graph, inputs: list[_Value], shape: tuple[int, ...], given: dict) -> _Value:
    if given["new_dtype"] != np.float32:
        raise Unsupported(f"a conversion to {given['new_dtype']}")
    return _Tensor(graph.node("Cast", [graph.tensor(inputs[0])], to=TensorProto.FLOAT), shape)


def _shape(value: _Value) -> tuple[int, ...]:
    if isinstance(value, _Rows):
        raise Unsupported("rows of pixels")
    return value.shape


_WRITERS: dict[type, Callable[[_Graph, Any], str]] = {
    _Linear: _Graph.linear,
    _Clipped: _Graph.clipped,
}

_RULES: dict[str, Callable[[_Graph, list[_Value], tuple[int, ...], dict], _Value]] = {
    "add": _affine("Add"),
    "sub": _affine("Sub"),
    "mul": _affine("Mul"),
    "div": _affine("Div"),
    "max": _clip("low"),
    "min": _clip("high"),
    "conv_general_dilated": _convolution,
    "dot_general": _product,
    "reshape": _reshape,
    "reduce_window_max": _pool("maximum"),
    "reduce_window_sum": _pool("sum"),
    "reduce_sum": _total,
    "concatenate": _concatenate,
    "convert_element_type": _convert,
}
"""How each operation that JAX traces is written."""
