"""How MindIR says what an ONNX operator does: convolutions, pools, activations, arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.core.types import Array
from xfer.export.mindir.gather_pad_resize import constant, padded, picked, reshaped
from xfer.export.mindir.graph import Graph, refuse, settings

if TYPE_CHECKING:
    import onnx

_LAYOUT: dict[str, Any] = {"format": "NCHW", "data_format": "NCHW"}


def direct(graph: Graph, node: onnx.NodeProto, primitive: str) -> None:
    """An operator without settings. Two tensors broadcast as numpy's do."""
    graph.emit(node, primitive, [graph.ref(name) for name in node.input])


def folded(graph: Graph, node: onnx.NodeProto, primitive: str) -> None:
    """An operator of any number of tensors, as one of two."""
    done, *others = (graph.ref(name) for name in node.input)
    for other in others:
        done = graph.emit(node, primitive, [done, other])
    graph.refs[node.output[0]] = done


def elu(graph: Graph, node: onnx.NodeProto, alpha: float = 1.0, gamma: float = 1.0) -> None:
    """MindIR's Elu has the factor 1 alone; of another one it is what is below zero."""
    given = settings(node)
    alpha, gamma = given.get("alpha", alpha), given.get("gamma", gamma)
    x, dims = graph.ref(node.input[0]), graph.shapes[node.input[0]]
    if (alpha, gamma) == (1, 1):
        graph.emit(node, "Elu", [x], alpha=1.0)
        return
    above = graph.file.operator("ReLU", [x], dims)
    below = graph.file.operator("Minimum", [x, graph.number(0)], dims)
    below = graph.file.operator("Elu", [below], dims, alpha=1.0)
    parts = [
        graph.file.operator("Mul", [part, graph.number(factor)], dims)
        for part, factor in ((above, gamma), (below, gamma * alpha))
    ]
    graph.emit(node, "Add", parts)


def celu(graph: Graph, node: onnx.NodeProto) -> None:
    """``alpha`` times the Elu of an ``alpha``-th."""
    alpha, dims = graph.number(settings(node).get("alpha", 1.0)), graph.shapes[node.input[0]]
    part = graph.file.operator("RealDiv", [graph.ref(node.input[0]), alpha], dims)
    part = graph.file.operator("Elu", [part], dims, alpha=1.0)
    graph.emit(node, "Mul", [part, alpha])


def leaky_relu(graph: Graph, node: onnx.NodeProto) -> None:
    """The larger of a number and a part of it."""
    slope, x = settings(node).get("alpha", 0.01), graph.ref(node.input[0])
    part = graph.file.operator("Mul", [x, graph.number(slope)], graph.shapes[node.input[0]])
    graph.emit(node, "Maximum" if slope <= 1 else "Minimum", [x, part])


def clip(graph: Graph, node: onnx.NodeProto) -> None:
    """ReLU6, or Maximum and Minimum of a number. Bounds are constants."""
    if any(name and name not in graph.values for name in node.input[1:]):
        raise refuse(node, "clips to bounds that are not constant")
    bounds = [float(graph.values[name]) if name else None for name in node.input[1:]]
    low, high = [*bounds, None, None][:2]
    done = graph.ref(node.input[0])
    if (low, high) == (0, 6):
        graph.emit(node, "ReLU6", [done])
        return
    if graph.kinds[node.output[0]] != np.float32:
        raise refuse(node, f"clips {graph.kinds[node.output[0]]}, but xfer clips float32 alone")
    for primitive, bound in (("Maximum", low), ("Minimum", high)):
        if bound is not None:
            done = graph.emit(node, primitive, [done, graph.number(bound)])
    graph.refs[node.output[0]] = done


def cast(graph: Graph, node: onnx.NodeProto) -> None:
    """The numbers in another type, toward zero where it has no fractions."""
    if graph.kinds[node.input[0]] == graph.kinds[node.output[0]]:
        graph.refs[node.output[0]] = graph.ref(node.input[0])
        return
    # As an attribute, and not as an input, MindSpore 2.0 and 2.10 read it alike.
    graph.emit(node, "Cast", [graph.ref(node.input[0])], dst_type=graph.kinds[node.output[0]])


def hard_sigmoid(graph: Graph, node: onnx.NodeProto) -> None:
    """MindIR has relu6(x + 3) / 6 alone."""
    given = settings(node)
    slope, start = given.get("alpha", 0.2), given.get("beta", 0.5)
    if not np.allclose([slope, start], [1 / 6, 0.5], atol=1e-6):
        raise refuse(
            node, f"has slope {slope:g} and offset {start:g}, but MindIR's are 1/6 and 1/2"
        )
    direct(graph, node, "HSigmoid")


def gelu(graph: Graph, node: onnx.NodeProto) -> None:
    """MindSpore's GeLU is the one by tanh; the exact one is x (1 + erf(x / sqrt 2)) / 2."""
    if settings(node).get("approximate", b"none") == b"tanh":
        direct(graph, node, "GeLU")
        return
    x, dims = graph.ref(node.input[0]), graph.shapes[node.input[0]]
    scaled = graph.file.operator("Mul", [x, graph.number(0.5**0.5)], dims)
    error = graph.file.operator("Erf", [scaled], dims)
    raised = graph.file.operator("Add", [error, graph.number(1)], dims)
    half = graph.file.operator("Mul", [x, graph.number(0.5)], dims)
    graph.emit(node, "Mul", [half, raised])


def prelu(graph: Graph, node: onnx.NodeProto) -> None:
    """What is above zero, and a learnt part of what is below."""
    dims = graph.shapes[node.output[0]]
    x, slope = (graph.ref(name) for name in node.input)
    above = graph.file.operator("ReLU", [x], dims)
    below = graph.file.operator("Minimum", [x, graph.number(0)], dims)
    graph.emit(node, "Add", [above, graph.file.operator("Mul", [below, slope], dims)])


def conv(graph: Graph, node: onnx.NodeProto) -> None:
    """Conv2D with explicit padding, then BiasAdd. One axis is a picture of one row."""
    given = settings(node)
    _explicit(node, given)
    x, weight = graph.ref(node.input[0]), graph.shapes[node.input[1]]
    dims, out = graph.shapes[node.input[0]], graph.shapes[node.output[0]]
    if len(weight) == 3:
        kernel = constant(graph, node, node.input[1])[:, :, None]
        x = reshaped(graph, node, x, (*dims[:2], 1, dims[2]))
        first, last = given.get("pads", (0, 0))
        given |= {"pads": (0, first, 0, last)}
        given |= {name: (1, *given.get(name, (1,))) for name in ("strides", "dilations")}
        inputs, row = [x, graph.changed(node.input[1], kernel)], (*out[:2], 1, out[2])
        done = _convolution(graph, inputs, row, kernel.shape, given)
        done = reshaped(graph, node, done, out)
    elif len(weight) == 4:
        done = _convolution(graph, [x, graph.ref(node.input[1])], out, weight, given)
    else:
        raise refuse(node, f"is a convolution over {len(weight) - 2} axes, but MindIR's is over 2")
    graph.refs[node.output[0]] = done
    if len(node.input) > 2:
        add_bias(graph, node, done, graph.ref(node.input[2]))


def _convolution(
    graph: Graph,
    inputs: list[str],
    dims: tuple[int, ...],
    weight: tuple[int, ...],
    given: dict[str, Any],
) -> str:
    top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
    pads, group = (top, bottom, left, right), given.get("group", 1)
    return graph.file.operator(
        "Conv2D",
        inputs,
        dims,
        kernel_size=weight[2:],
        mode=1,
        out_channel=weight[0],
        pad=pads,
        pad_mode="pad",
        pad_list=pads,
        **_LAYOUT,
        stride=(1, 1, *given.get("strides", (1, 1))),
        dilation=(1, 1, *given.get("dilations", (1, 1))),
        group=group,
        groups=group,
    )


def add_bias(graph: Graph, node: onnx.NodeProto, x: str, bias: str) -> None:
    """Add one number a channel, which is axis 1."""
    graph.emit(node, "BiasAdd", [x, bias], **_LAYOUT)


def batch_norm(graph: Graph, node: onnx.NodeProto) -> None:
    """One factor and one summand a channel: its statistics are constants."""
    scale, bias, mean, var = (graph.values[name].astype(np.float64) for name in node.input[1:5])
    factor = scale / np.sqrt(var + settings(node).get("epsilon", 1e-5))
    dims = graph.shapes[node.output[0]]
    shape = (1, -1) + (1,) * (len(dims) - 2)
    factors = graph.changed(node.input[1], factor.reshape(shape).astype(np.float32))
    summand = (bias - mean * factor).reshape(shape).astype(np.float32)
    summands = graph.changed(node.input[2], summand)
    product = graph.file.operator("Mul", [graph.ref(node.input[0]), factors], dims)
    graph.emit(node, "Add", [product, summands])


def max_pool(graph: Graph, node: onnx.NodeProto) -> None:
    """MindIR's pool has no explicit padding, before which minus infinity comes, and no dilation:
    the places of its windows are put side by side."""
    given = settings(node)
    _explicit(node, given)
    x, dims = graph.ref(node.input[0]), graph.shapes[node.input[0]]
    begin, end = _borders(graph, node, given)
    if any(begin + end):
        borders = [[0, 0], [0, 0], *map(list, zip(begin, end, strict=True))]
        x = padded(graph, x, dims, borders, -np.inf)
        dims = tuple(size + sum(pair) for size, pair in zip(dims, borders, strict=True))
    window, strides = tuple(given["kernel_shape"]), tuple(given.get("strides", (1, 1)))
    dilations = given.get("dilations", (1, 1))
    if set(dilations) != {1}:
        for axis, (size, stride, dilation) in enumerate(
            zip(window, strides, dilations, strict=True), start=2
        ):
            first = np.arange(graph.shapes[node.output[0]][axis]) * stride
            places = (first[:, None] + np.arange(size) * dilation).reshape(-1)
            x = picked(graph, node, x, dims, axis, places)
            dims = (*dims[:axis], len(places), *dims[axis + 1 :])
        strides = window
    sides = {"kernel_size": (1, 1, *window), "strides": (1, 1, *strides)}
    graph.emit(node, "MaxPool", [x], **sides, pad_mode="VALID", **_LAYOUT)


def average_pool(graph: Graph, node: onnx.NodeProto) -> None:
    """A convolution of each channel alone: MindSpore 2.0 and 2.10 disagree on the attributes of
    AvgPool. What lies outside of the picture is zero, and a window that does not count it is
    divided by fewer."""
    given = settings(node)
    _explicit(node, given)
    if set(given.get("dilations", (1,))) != {1}:
        raise refuse(node, "is an average over a dilated window")
    begin, end = _borders(graph, node, given)
    channels, window = graph.shapes[node.input[0]][1], tuple(given["kernel_shape"])
    weight = np.full((channels, 1, *window), 1 / np.prod(window), np.float32)
    inputs = [graph.ref(node.input[0]), graph.changed(f"{node.output[0]}.mean", weight)]
    counted = np.outer(*(_counted(graph, node, given, axis) for axis in (0, 1)))
    given |= {"pads": (*begin, *end), "group": channels}
    mean = _convolution(graph, inputs, graph.shapes[node.output[0]], weight.shape, given)
    graph.refs[node.output[0]] = mean
    if counted.min() < np.prod(window):
        factor = (np.prod(window) / counted).astype(np.float32)
        graph.emit(node, "Mul", [mean, graph.changed(f"{node.output[0]}.count", factor)])


def _counted(graph: Graph, node: onnx.NodeProto, given: dict[str, Any], axis: int) -> Array:
    """How many places along ``axis`` each window counts."""
    size, out = (graph.shapes[name][2 + axis] for name in (node.input[0], node.output[0]))
    pads = given.get("pads", (0, 0, 0, 0))
    before, after = pads[axis], pads[2 + axis]
    first = np.arange(out) * given.get("strides", (1, 1))[axis] - before
    last = first + given["kernel_shape"][axis]
    if not given.get("count_include_pad", 0):
        before = after = 0
    counted: Array = np.minimum(last, size + after) - np.maximum(first, -before)
    return counted


def _borders(
    graph: Graph, node: onnx.NodeProto, given: dict[str, Any]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What must be added before and after each axis, so that every window is whole."""
    window = given["kernel_shape"]
    if len(window) != 2:
        raise refuse(node, f"is a pool over {len(window)} axes, but MindIR's is over 2")
    dilations = given.get("dilations", (1, 1))
    window = [(k - 1) * dilation + 1 for k, dilation in zip(window, dilations, strict=True)]
    begin = tuple(given.get("pads", (0, 0, 0, 0))[:2])
    sizes, outputs = graph.shapes[node.input[0]][2:], graph.shapes[node.output[0]][2:]
    strides = given.get("strides", (1, 1))
    axes = zip(outputs, strides, window, sizes, begin, strict=True)
    end = [max((out - 1) * stride + k - size - first, 0) for out, stride, k, size, first in axes]
    return (begin[0], begin[1]), (end[0], end[1])


def _explicit(node: onnx.NodeProto, given: dict[str, Any]) -> None:
    if given.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise refuse(node, "pads by a rule instead of by numbers")
