"""How MindIR says what an ONNX operator does: convolutions, pools, activations, arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.export.mindir.graph import Graph, refuse

if TYPE_CHECKING:
    import onnx


_LAYOUT = {"format": "NCHW", "data_format": "NCHW"}


def settings(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node."""
    import onnx

    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def direct(graph: Graph, node: onnx.NodeProto, primitive: str) -> None:
    """An operator without settings. Two tensors broadcast as numpy's do."""
    graph.emit(node, primitive, [graph.ref(name) for name in node.input])


def clip(graph: Graph, node: onnx.NodeProto) -> None:
    """MindIR has ReLU6; other bounds are refused."""
    bounds = [
        float(graph.values[name]) if name in graph.values else None for name in node.input[1:]
    ]
    if bounds != [0, 6]:
        raise refuse(node, f"clips to {bounds}, but MindIR only has 0 to 6")
    graph.emit(node, "ReLU6", [graph.ref(node.input[0])])


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

    def number(value: float) -> str:
        name = f"gelu.{value:.9g}"
        graph.values.setdefault(name, np.full((1,), value, np.float32))
        return graph.ref(name)

    scaled = graph.file.operator("Mul", [x, number(0.5**0.5)], dims)
    error = graph.file.operator("Erf", [scaled], dims)
    raised = graph.file.operator("Add", [error, number(1)], dims)
    half = graph.file.operator("Mul", [x, number(0.5)], dims)
    graph.emit(node, "Mul", [half, raised])


def conv(graph: Graph, node: onnx.NodeProto) -> None:
    """Conv2D with explicit padding, then BiasAdd."""
    given = settings(node)
    _explicit(node, given)
    weight = graph.shapes[node.input[1]]
    if len(weight) != 4:
        raise refuse(node, f"is a convolution over {len(weight) - 2} axes, but MindIR's is over 2")
    done = _convolution(graph, node, [graph.ref(n) for n in node.input[:2]], weight, given)
    if len(node.input) > 2:
        add_bias(graph, node, done, graph.ref(node.input[2]))


def _convolution(
    graph: Graph,
    node: onnx.NodeProto,
    inputs: list[str],
    weight: tuple[int, ...],
    given: dict[str, Any],
) -> str:
    top, left, bottom, right = given.get("pads", (0, 0, 0, 0))
    pads, group = (top, bottom, left, right), given.get("group", 1)
    return graph.emit(
        node,
        "Conv2D",
        inputs,
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
    factors = graph.changed(node.input[1], factor.reshape(shape))
    summands = graph.changed(node.input[2], (bias - mean * factor).reshape(shape))
    product = graph.file.operator("Mul", [graph.ref(node.input[0]), factors], dims)
    graph.emit(node, "Add", [product, summands])


def pad(graph: Graph, node: onnx.NodeProto) -> None:
    """Pad with zeros; minus infinity before a max-pool is the same where nothing is below zero."""
    mode = settings(node).get("mode", b"constant")
    if mode != b"constant" or any(node.input[3:]):
        raise refuse(node, "pads with something other than a constant, or some axes alone")
    value = float(graph.values[node.input[2]]) if len(node.input) > 2 and node.input[2] else 0.0
    ends = [int(n) for n in graph.values[node.input[1]]]
    half = len(ends) // 2
    if value == -np.inf and set(graph.users(node.output[0])) == {"MaxPool"}:
        _refuse_negative(graph, node)
    elif value:
        raise refuse(node, f"pads with {value}, but MindIR's Pad only with 0")
    if min(ends) < 0:
        raise refuse(node, "crops instead of padding")
    paddings = tuple(zip(ends[:half], ends[half:], strict=True))
    graph.emit(node, "Pad", [graph.ref(node.input[0])], paddings=paddings)


def max_pool(graph: Graph, node: onnx.NodeProto) -> None:
    """MindIR's pool has no explicit padding: zeros come before it, of which a maximum takes no
    notice where nothing is below zero."""
    given = settings(node)
    _explicit(node, given)
    if set(given.get("dilations", (1,))) != {1}:
        raise refuse(node, "is a dilated pool")
    x = graph.ref(node.input[0])
    begin, end = _borders(graph, node, given)
    if any(begin + end):
        _refuse_negative(graph, node)
        paddings = ((0, 0), (0, 0), *zip(begin, end, strict=True))
        sizes = zip(graph.shapes[node.input[0]], paddings, strict=True)
        dims = tuple(size + sum(border) for size, border in sizes)
        x = graph.file.operator("Pad", [x], dims, paddings=paddings)
    window = {"kernel_size": (1, 1, *given["kernel_shape"])}
    window["strides"] = (1, 1, *given.get("strides", (1, 1)))
    graph.emit(node, "MaxPool", [x], **window, pad_mode="VALID", **_LAYOUT)


def average_pool(graph: Graph, node: onnx.NodeProto) -> None:
    """A convolution of each channel alone: MindSpore 2.0 and 2.10 disagree on the attributes of
    AvgPool. Borders count as zeros, or there are none."""
    given = settings(node)
    _explicit(node, given)
    begin, end = _borders(graph, node, given)
    if any(begin + end) and (not given.get("count_include_pad", 0) or given.get("ceil_mode", 0)):
        raise refuse(node, "does not count its padding")
    channels, window = graph.shapes[node.input[0]][1], tuple(given["kernel_shape"])
    weight = np.full((channels, 1, *window), 1 / np.prod(window), np.float32)
    inputs = [graph.ref(node.input[0]), graph.changed(f"{node.output[0]}.mean", weight)]
    given |= {"pads": (*begin, *end), "group": channels}
    _convolution(graph, node, inputs, weight.shape, given)


def _borders(
    graph: Graph, node: onnx.NodeProto, given: dict[str, Any]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """What must be added before and after each axis, so that every window is whole."""
    window = given["kernel_shape"]
    if len(window) != 2:
        raise refuse(node, f"is a pool over {len(window)} axes, but MindIR's is over 2")
    begin = tuple(given.get("pads", (0, 0, 0, 0))[:2])
    sizes, outputs = graph.shapes[node.input[0]][2:], graph.shapes[node.output[0]][2:]
    strides = given.get("strides", (1, 1))
    axes = zip(outputs, strides, window, sizes, begin, strict=True)
    end = [max((out - 1) * stride + k - size - first, 0) for out, stride, k, size, first in axes]
    return (begin[0], begin[1]), (end[0], end[1])


def _refuse_negative(graph: Graph, node: onnx.NodeProto) -> None:
    if not graph.is_positive(node.input[0]):
        raise refuse(node, "pads a pool whose numbers may be below zero")


def _explicit(node: onnx.NodeProto, given: dict[str, Any]) -> None:
    if given.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise refuse(node, "pads by a rule instead of by numbers")
