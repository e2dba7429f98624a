"""How MindIR says what an ONNX operator does: products, reductions, and what only moves numbers."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from xfer.export.mindir.graph import Graph, refuse
from xfer.export.mindir.lowering import add_bias, settings

if TYPE_CHECKING:
    import onnx

    Dims = tuple[int, ...]


def reshape(graph: Graph, node: onnx.NodeProto) -> None:
    """Reshape, flatten, squeeze, unsqueeze: the shape that comes out says it all."""
    done = _reshaped(graph, node, graph.ref(node.input[0]), graph.shapes[node.output[0]])
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


def cut(graph: Graph, node: onnx.NodeProto) -> None:
    """A slice in steps of one."""
    if any(name and name not in graph.values for name in node.input[1:]):
        raise refuse(node, "slices by numbers that are not constant")
    starts, ends, *rest = ([int(n) for n in graph.values[name]] for name in node.input[1:])
    dims = graph.shapes[node.input[0]]
    axes = [axis % len(dims) for axis in (rest[0] if rest else range(len(starts)))]
    if len(rest) > 1 and set(rest[1]) != {1}:
        raise refuse(node, "slices in steps of more than one")
    spans = {}
    for axis, start, end in zip(axes, starts, ends, strict=True):
        size = dims[axis]
        if size == -1:
            if start or end < 1 << 31:
                raise refuse(node, "slices the batch")
            continue
        spans[axis] = slice(start, end).indices(size)[:2]
    graph.refs[node.output[0]] = _sliced(graph, node.input[0], spans)


def gather(graph: Graph, node: onnx.NodeProto) -> None:
    """One constant index of one axis; the others are refused."""
    dims = graph.shapes[node.input[0]]
    axis = settings(node).get("axis", 0) % len(dims)
    index = graph.values.get(node.input[1])
    if index is None or index.size != 1 or dims[axis] == -1:
        raise refuse(node, "takes something other than one constant index")
    at = int(index.reshape(())) % dims[axis]
    name = _sliced(graph, node.input[0], {axis: (at, at + 1)})
    graph.refs[node.output[0]] = _reshaped(graph, node, name, graph.shapes[node.output[0]])


def split(graph: Graph, node: onnx.NodeProto) -> None:
    """One slice an output."""
    dims = graph.shapes[node.input[0]]
    axis, at = settings(node).get("axis", 0) % len(dims), 0
    for output in node.output:
        size = graph.shapes[output][axis]
        if size == -1:
            raise refuse(node, "splits the batch")
        graph.refs[output] = _sliced(graph, node.input[0], {axis: (at, at + size)})
        at += size


def expand(graph: Graph, node: onnx.NodeProto) -> None:
    """A constant repeated for every image: added to zeros that have as many rows as images."""
    values, dims = graph.values.get(node.input[0]), graph.shapes[node.output[0]]
    if values is None or dims[:1] != (-1,) or -1 in dims[1:]:
        raise refuse(node, "repeats something other than one constant per image")
    if values.ndim == len(dims) and values.shape[0] != 1:
        raise refuse(node, "repeats a constant of several rows")
    one = np.broadcast_to(values, (1, *dims[1:]))
    zeros = _reshaped(graph, node, _zeros(graph), (-1,) + (1,) * (len(dims) - 1))
    graph.emit(node, "Add", [zeros, graph.changed(node.input[0], one)])


def reduce_mean(graph: Graph, node: onnx.NodeProto) -> None:
    """The mean over constant axes."""
    given, rank = settings(node), len(graph.shapes[node.input[0]])
    if len(node.input) > 1 and node.input[1]:
        axes = [int(axis) for axis in graph.values[node.input[1]]]
    else:
        axes = list(given.get("axes", range(rank)))
    _mean(graph, node, [axis % rank for axis in axes], bool(given.get("keepdims", 1)))


def global_average_pool(graph: Graph, node: onnx.NodeProto) -> None:
    """The mean over height and width."""
    _mean(graph, node, list(range(2, len(graph.shapes[node.input[0]]))), True)


def gemm(graph: Graph, node: onnx.NodeProto) -> None:
    """MatMul and BiasAdd; the factors of Gemm are 1 in every network that torch exports."""
    given = settings(node)
    if (given.get("alpha", 1), given.get("beta", 1), given.get("transA", 0)) != (1, 1, 0):
        raise refuse(node, "scales or transposes what it multiplies")
    x, weight = (graph.ref(name) for name in node.input[:2])
    done = _matmul(graph, x, weight, graph.shapes[node.output[0]], bool(given.get("transB", 0)))
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
            x = _reshaped(graph, node, x, (rows, first[-1]))
        done = _matmul(graph, x, y, (rows, second[1]), False)
        flat = len(first) == 2
        graph.refs[node.output[0]] = done if flat else _reshaped(graph, node, done, dims)
    elif len(first) == len(second) > 2 and first[:-2] == second[:-2]:
        as_they_are = dict.fromkeys(("transpose_a", "transpose_b", "adj_x1", "adj_x2"), False)
        graph.emit(node, "BatchMatMul", [x, y], **as_they_are)
    else:
        raise refuse(node, f"multiplies shapes {first} and {second}")


def layer_norm(graph: Graph, node: onnx.NodeProto) -> None:
    """LayerNorm gives a tuple, of which the first counts."""
    given, dims = settings(node), graph.shapes[node.output[0]]
    begin = given.get("axis", -1) % len(dims)
    if len(node.input) < 3:
        raise refuse(node, "has no bias")
    statistics = dims[:begin] + (1,) * (len(dims) - begin)
    three = graph.file.operator(
        "LayerNorm",
        [graph.ref(name) for name in node.input],
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


def _reshaped(graph: Graph, node: onnx.NodeProto, x: str, dims: Dims) -> str:
    if dims.count(-1) > 1:
        raise refuse(node, f"gives a shape {dims} in which two sizes follow the batch")
    return graph.file.operator("Reshape", [x, graph.file.constant(dims)], dims)


def _sliced(graph: Graph, name: str, spans: dict[int, tuple[int, int]]) -> str:
    """``spans`` of ``name`` by axis; an axis without one stays whole."""
    dims = list(graph.shapes[name])
    begin = [0] * len(dims)
    for axis, (start, end) in spans.items():
        begin[axis], dims[axis] = start, end - start
    # A size of -1 takes all, which is right for an axis that follows the batch.
    constants = [graph.file.constant(tuple(begin)), graph.file.constant(tuple(dims))]
    return graph.file.operator("Slice", [graph.ref(name), *constants], tuple(dims))


def _zeros(graph: Graph) -> str:
    """One zero an image, (-1, 1, 1, 1)."""
    constant, dims = graph.file.constant, (-1, 1, 1, 1)
    inputs = [graph.ref("images"), constant((1, 2, 3))]
    mean = graph.file.operator("ReduceMean", inputs, dims, keep_dims=True)
    graph.values.setdefault("zero", np.zeros((1,), np.float32))
    return graph.file.operator("Mul", [mean, graph.ref("zero")], dims)


def _mean(graph: Graph, node: onnx.NodeProto, axes: list[int], keep: bool) -> None:
    inputs = [graph.ref(node.input[0]), graph.file.constant(tuple(axes))]
    graph.emit(node, "ReduceMean", inputs, keep_dims=keep)


def _matmul(graph: Graph, x: str, y: str, dims: Dims, turned: bool) -> str:
    turns = {"transpose_a": False, "transpose_b": turned}
    turns |= {"transpose_x1": False, "transpose_x2": turned}  # the same to other versions
    return graph.file.operator("MatMul", [x, y], dims, **turns)
