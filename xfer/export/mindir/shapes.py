"""How MindIR says what an ONNX operator does: products, reductions, and what only moves numbers."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.export.mindir.gather_pad_resize import constant, multiplied, reshaped, spread
from xfer.export.mindir.graph import Graph, refuse, settings
from xfer.export.mindir.lowering import add_bias

if TYPE_CHECKING:
    import onnx

    Dims = tuple[int, ...]


def reshape(graph: Graph, node: onnx.NodeProto) -> None:
    """Reshape, flatten, squeeze, unsqueeze: the shape that comes out says it all."""
    done = reshaped(graph, node, graph.ref(node.input[0]), graph.shapes[node.output[0]])
    graph.refs[node.output[0]] = done


def same(graph: Graph, node: onnx.NodeProto) -> None:
    """The output is the input."""
    graph.refs[node.output[0]] = graph.ref(node.input[0])


def transpose(graph: Graph, node: onnx.NodeProto) -> None:
    """The axes in another order."""
    rank = len(graph.shapes[node.input[0]])
    order = tuple(settings(node).get("perm", reversed(range(rank))))
    graph.emit(node, "Transpose", [graph.ref(node.input[0]), graph.file.constant(order)])


def concat(graph: Graph, node: onnx.NodeProto) -> None:
    """A tuple of tensors, then one tensor."""
    shapes = [graph.shapes[name] for name in node.input]
    axis, count = settings(node)["axis"] % len(shapes[0]), len(node.input)
    parts = graph.file.operator("MakeTuple", [graph.ref(name) for name in node.input], shapes)
    graph.emit(node, "Concat", [parts], axis=axis, N=count, inputNums=count)


def reduce(graph: Graph, node: onnx.NodeProto, primitive: str, before: str = "") -> None:
    """The sum, mean or extreme over constant axes, of what ``before`` makes of the numbers."""
    axes, keep = _axes(graph, node)
    dims = graph.shapes[node.input[0]]
    x = graph.ref(node.input[0])
    if before:
        x = graph.file.operator(before, [x], dims)
    graph.emit(node, primitive, [x, graph.file.constant(axes)], keep_dims=keep)


def reduce_l2(graph: Graph, node: onnx.NodeProto) -> None:
    """The root of the sum of squares."""
    reduce(graph, node, "ReduceSum", "Square")
    graph.emit(node, "Sqrt", [graph.ref(node.output[0])])


def _axes(graph: Graph, node: onnx.NodeProto) -> tuple[tuple[int, ...], bool]:
    given, rank = settings(node), len(graph.shapes[node.input[0]])
    if len(node.input) > 1 and node.input[1]:
        axes = [int(axis) for axis in constant(graph, node, node.input[1])]
    else:
        axes = list(given.get("axes", range(rank)))
    return tuple(axis % rank for axis in axes), bool(given.get("keepdims", 1))


def global_average_pool(graph: Graph, node: onnx.NodeProto) -> None:
    """The mean over height and width."""
    axes = tuple(range(2, len(graph.shapes[node.input[0]])))
    inputs = [graph.ref(node.input[0]), graph.file.constant(axes)]
    graph.emit(node, "ReduceMean", inputs, keep_dims=True)


def instance_norm(graph: Graph, node: onnx.NodeProto) -> None:
    """Each channel of each image by its own mean and variance: MindSpore's InstanceNorm runs on
    GPUs alone."""
    dims = graph.shapes[node.input[0]]
    places = graph.file.constant(tuple(range(2, len(dims))))
    narrow = dims[:2] + (1,) * (len(dims) - 2)

    def mean(x: str) -> str:
        return graph.file.operator("ReduceMean", [x, places], narrow, keep_dims=True)

    x = graph.ref(node.input[0])
    centred = graph.file.operator("Sub", [x, mean(x)], dims)
    variance = mean(graph.file.operator("Square", [centred], dims))
    epsilon = graph.number(settings(node).get("epsilon", 1e-5))
    safe = graph.file.operator("Add", [variance, epsilon], narrow)
    scaled = graph.file.operator("Rsqrt", [safe], narrow)
    scale, bias = (
        reshaped(graph, node, graph.ref(name), (1, dims[1]) + (1,) * (len(dims) - 2))
        for name in node.input[1:]
    )
    scaled = graph.file.operator("Mul", [scaled, scale], narrow)
    normed = graph.file.operator("Mul", [centred, scaled], dims)
    graph.emit(node, "Add", [normed, bias])


def gemm(graph: Graph, node: onnx.NodeProto) -> None:
    """MatMul and BiasAdd; the factors of Gemm are 1 in every network that torch exports."""
    given = settings(node)
    if (given.get("alpha", 1), given.get("beta", 1), given.get("transA", 0)) != (1, 1, 0):
        raise refuse(node, "scales or transposes what it multiplies")
    x, weight = (graph.ref(name) for name in node.input[:2])
    done = multiplied(graph, x, weight, graph.shapes[node.output[0]], bool(given.get("transB", 0)))
    graph.refs[node.output[0]] = done
    if len(node.input) > 2:
        add_bias(graph, node, done, graph.ref(node.input[2]))


def matmul(graph: Graph, node: onnx.NodeProto) -> None:
    """A product with a matrix works on rows; two stacks of matrices go in pairs."""
    first, second = (graph.shapes[name] for name in node.input)
    x, y = (graph.ref(name) for name in node.input)
    dims = graph.shapes[node.output[0]]
    if len(second) == 2 and len(first) >= 2:
        rows = -1 if -1 in first[:-1] else prod(first[:-1])
        if len(first) > 2:
            x = reshaped(graph, node, x, (rows, first[-1]))
        done = multiplied(graph, x, y, (rows, second[1]))
        flat = len(first) == 2
        graph.refs[node.output[0]] = done if flat else reshaped(graph, node, done, dims)
    elif min(len(first), len(second)) >= 2:
        x = spread(graph, node, x, first, (*dims[:-2], *first[-2:]))
        y = spread(graph, node, y, second, (*dims[:-2], *second[-2:]))
        graph.refs[node.output[0]] = _stacks(graph, x, y, dims)
    else:
        raise refuse(node, f"multiplies shapes {first} and {second}")


def einsum(graph: Graph, node: onnx.NodeProto) -> None:
    """One axis of each tensor multiplied with the other's, one summed, the rest shared: a product
    of stacks of matrices."""
    rule = settings(node)["equation"].decode().replace(" ", "")
    terms, _, result = rule.partition("->")
    first, _, second = terms.partition(",")
    shared = "".join(c for c in result if c in first and c in second)
    row, column, summed = (
        "".join(c for c in letters if (c in first, c in second, c in result) == where)
        for letters, where in (
            (first, (True, False, True)),
            (second, (False, True, True)),
            (first, (True, True, False)),
        )
    )
    wanted = shared + row + column
    orders = [(first, shared + row + summed), (second, shared + summed + column), (wanted, result)]
    if [len(row), len(column), len(summed)] != [1] * 3 or any(
        sorted(a) != sorted(b) or "." in a for a, b in orders
    ):
        raise refuse(node, f"sums by the rule '{rule}'")
    x, y = (
        _ordered(graph, graph.ref(name), graph.shapes[name], *order)
        for name, order in zip(node.input, orders, strict=False)
    )
    out = dict(zip(result, graph.shapes[node.output[0]], strict=True))
    dims = tuple(out[c] for c in wanted)
    graph.refs[node.output[0]] = _ordered(graph, _stacks(graph, x, y, dims), dims, *orders[2])


def _ordered(graph: Graph, x: str, dims: Dims, letters: str, wanted: str) -> str:
    order = tuple(letters.index(c) for c in wanted)
    if letters == wanted:
        return x
    moved = tuple(dims[axis] for axis in order)
    return graph.file.operator("Transpose", [x, graph.file.constant(order)], moved)


def _stacks(graph: Graph, x: str, y: str, dims: Dims) -> str:
    as_they_are: dict[str, Any] = dict.fromkeys(
        ("transpose_a", "transpose_b", "adj_x1", "adj_x2"), False
    )
    return graph.file.operator("BatchMatMul", [x, y], dims, **as_they_are)


def layer_norm(graph: Graph, node: onnx.NodeProto) -> None:
    """LayerNorm gives a tuple, of which the first counts, and must have a bias."""
    given, dims = settings(node), graph.shapes[node.output[0]]
    begin = given.get("axis", -1) % len(dims)
    inputs, scale = [graph.ref(name) for name in node.input if name], node.input[1]
    if len(inputs) < 3:
        if scale not in graph.values:
            raise refuse(node, "has a scale that depends on the image")
        inputs.append(graph.changed(scale, np.zeros_like(graph.values[scale])))
    statistics = dims[:begin] + (1,) * (len(dims) - begin)
    three = graph.file.operator(
        "LayerNorm",
        inputs,
        [dims, statistics, statistics],
        begin_norm_axis=begin,
        begin_params_axis=begin,
        epsilon=float(given.get("epsilon", 1e-5)),
    )
    graph.emit(node, "TupleGetItem", [three, graph.file.constant(0)])


def softmax(graph: Graph, node: onnx.NodeProto) -> None:
    """Over one axis."""
    axis = settings(node).get("axis", -1) % len(graph.shapes[node.output[0]])
    graph.emit(node, "Softmax", [graph.ref(node.input[0])], axis=(axis,))


def log_softmax(graph: Graph, node: onnx.NodeProto) -> None:
    """What is left of the largest and of the logarithm of the sum of what is left."""
    dims = graph.shapes[node.output[0]]
    axis = settings(node).get("axis", -1) % len(dims)
    narrow, axes = (*dims[:axis], 1, *dims[axis + 1 :]), graph.file.constant((axis,))
    x = graph.ref(node.input[0])
    most = graph.file.operator("ReduceMax", [x, axes], narrow, keep_dims=True)
    left = graph.file.operator("Sub", [x, most], dims)
    raised = graph.file.operator("Exp", [left], dims)
    total = graph.file.operator("ReduceSum", [raised, axes], narrow, keep_dims=True)
    graph.emit(node, "Sub", [left, graph.file.operator("Log", [total], narrow)])
