"""How MindIR says what an ONNX operator does: what picks, repeats, pads and resizes.

A border that mirrors or repeats, and every resizing, is a choice or a mixture of rows and columns
that does not depend on the numbers in them: it is written as a Gather or a product with a constant,
which is the same in every MindSpore, and not as a primitive that has some of the modes.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.core.types import Array
from xfer.evaluation.onnx_session import runtime
from xfer.export.mindir.file import FLOAT32
from xfer.export.mindir.graph import MORE, Graph, refuse, settings

if TYPE_CHECKING:
    import onnx

    Dims = tuple[int, ...]


def cut(graph: Graph, node: onnx.NodeProto) -> None:
    """A slice; in steps other than one, and backwards, MindIR has another primitive."""
    starts, ends, *rest = (constant(graph, node, name).tolist() for name in node.input[1:])
    dims = graph.shapes[node.input[0]]
    axes = [axis % len(dims) for axis in (rest[0] if rest else range(len(starts)))]
    steps = rest[1] if len(rest) > 1 else [1] * len(axes)
    spans = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = dims[axis]
        if size == -1:
            if start or end < 1 << 31 or step != 1:
                raise refuse(node, "slices the batch")
            continue
        spans[axis] = slice(start, end, step).indices(size)
    if set(steps) == {1}:
        whole = {axis: (start, end) for axis, (start, end, _) in spans.items()}
        graph.refs[node.output[0]] = _sliced(graph, node.input[0], whole)
        return
    # An end before the first element is said from the back.
    numbers = [
        (start, stop if stop >= 0 else stop - dims[axis], step)
        for axis in range(len(dims))
        for start, stop, step in [spans.get(axis, (0, 0, 1))]
    ]
    whole_axes = sum(1 << axis for axis in range(len(dims)) if axis not in spans)
    masks = dict.fromkeys(("begin_mask", "end_mask"), whole_axes)
    masks |= dict.fromkeys(("ellipsis_mask", "new_axis_mask", "shrink_axis_mask"), 0)
    inputs = [graph.file.constant(each) for each in zip(*numbers, strict=True)]
    graph.emit(node, "StridedSlice", [graph.ref(node.input[0]), *inputs], **masks)


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


def gather(graph: Graph, node: onnx.NodeProto) -> None:
    """Constant places of one axis, or of each image the same ones."""
    dims, axis = graph.shapes[node.input[0]], settings(node).get("axis", 0)
    axis %= len(dims)
    if node.input[1] in graph.sizes:
        _of_each_image(graph, node, dims)
        return
    places = constant(graph, node, node.input[1])
    if dims[axis] == -1:
        raise refuse(node, "picks images of the batch")
    x = graph.ref(node.input[0])
    graph.refs[node.output[0]] = picked(graph, node, x, dims, axis, places % dims[axis])


def gather_nd(graph: Graph, node: onnx.NodeProto) -> None:
    """Constant places of the first axes, as torch says an index by lists: one axis of all of
    them."""
    dims, places = graph.shapes[node.input[0]], constant(graph, node, node.input[1])
    count = places.shape[-1]
    if settings(node).get("batch_dims", 0) or -1 in dims[:count]:
        raise refuse(node, "picks images of the batch")
    sides = dims[:count]
    flat = np.ravel_multi_index(tuple(np.moveaxis(places % np.array(sides), -1, 0)), sides)
    x, joined = graph.ref(node.input[0]), (prod(sides), *dims[count:])
    if count > 1:
        x = reshaped(graph, node, x, joined)
    graph.refs[node.output[0]] = picked(graph, node, x, joined, 0, np.asarray(flat))


def _of_each_image(graph: Graph, node: onnx.NodeProto, dims: Dims) -> None:
    """Places counted through all images, as a view with strides is written: those of the first
    image, and as many numbers further on for each one after it."""
    data, out = node.input[0], graph.shapes[node.output[0]]
    places, size = graph.sizes[node.input[1]].reshape(-1), graph.more[data][0] // MORE
    first = places[: len(places) // MORE]
    each = (first + size * np.arange(MORE).reshape(-1, 1)).reshape(-1)
    if dims != (-1,) or out[:1] != (-1,) or not np.array_equal(places, each):
        raise refuse(node, "takes something other than the same constant places of each image")
    x = reshaped(graph, node, graph.ref(data), (-1, size))
    if not np.array_equal(first, np.arange(size)):
        x = picked(graph, node, x, (-1, size), 1, first)
    graph.refs[node.output[0]] = reshaped(graph, node, x, out)


def tile(graph: Graph, node: onnx.NodeProto) -> None:
    """Each axis a constant number of times."""
    times = tuple(int(n) for n in constant(graph, node, node.input[1]))
    if any(n != 1 for n, size in zip(times, graph.shapes[node.input[0]], strict=True) if size < 0):
        raise refuse(node, "repeats the batch")
    graph.emit(node, "Tile", [graph.ref(node.input[0]), graph.file.constant(times)])


def expand(graph: Graph, node: onnx.NodeProto) -> None:
    """A tensor repeated along axes that have one element."""
    kind = graph.kinds[node.output[0]]
    if kind != np.float32:
        raise refuse(node, f"repeats {kind}, but xfer repeats float32 alone")
    x, dims = graph.ref(node.input[0]), graph.shapes[node.input[0]]
    graph.refs[node.output[0]] = spread(graph, node, x, dims, graph.shapes[node.output[0]])


def where(graph: Graph, node: onnx.NodeProto) -> None:
    """Numbers of one tensor or the other; all three are of one shape in MindIR."""
    name, out = node.input[0], graph.shapes[node.output[0]]
    if graph.kinds[node.output[0]] != np.float32:
        raise refuse(node, f"chooses {graph.kinds[node.output[0]]}, but xfer float32 alone")
    known = graph.rows.get(name, graph.values.get(name))
    dims = graph.shapes[name] if known is None else known.shape
    if dims == out:
        condition = graph.ref(name)
    else:
        # BroadcastTo and Add have no bool.
        if known is None:
            numbers = graph.file.operator("Cast", [graph.ref(name)], dims, dst_type=FLOAT32)
        else:
            numbers = graph.changed(name, known.astype(np.float32))
        numbers = spread(graph, node, numbers, dims, out)
        inputs = [numbers, graph.number(0)]
        condition = graph.file.operator("NotEqual", inputs, out, np.dtype(bool))
    parts = (
        spread(graph, node, graph.ref(each), graph.shapes[each], out) for each in node.input[1:]
    )
    graph.emit(node, "Select", [condition, *parts])


def spread(graph: Graph, node: onnx.NodeProto, x: str, dims: Dims, to: Dims) -> str:
    """``x`` of ``dims``, float32, as a tensor of ``to``, by numpy's rules."""
    long = (1,) * (len(to) - len(dims)) + dims
    if long != dims:
        x = reshaped(graph, node, x, long)
    for axis, (size, wanted) in enumerate(zip(long, to, strict=True)):
        if wanted == -1 != size:
            long = (*long[:axis], -1, *long[axis + 1 :])
            x = graph.file.operator("Add", [graph.zeros(len(to), axis), x], long)
    return x if long == to else graph.file.operator("BroadcastTo", [x], to, shape=to)


def pad(graph: Graph, node: onnx.NodeProto) -> None:
    """A border of a constant, of the mirrored or repeated picture, or of its other end; less than
    none cuts off."""
    names, dims = [*node.input, "", ""], graph.shapes[node.input[0]]
    mode = settings(node).get("mode", b"constant").decode()
    ends = constant(graph, node, names[1]).reshape(2, -1).T.tolist()
    axes = constant(graph, node, names[3]).tolist() if names[3] else range(len(dims))
    borders = {axis % len(dims): pair for axis, pair in zip(axes, ends, strict=True) if any(pair)}
    if graph.kinds[node.output[0]] != np.float32:
        raise refuse(node, f"pads {graph.kinds[node.output[0]]}, but xfer pads float32 alone")
    if any(dims[axis] == -1 for axis in borders):
        raise refuse(node, "pads the batch")
    spans = {
        axis: (max(-first, 0), dims[axis] - max(-last, 0))
        for axis, (first, last) in borders.items()
        if min(first, last) < 0
    }
    if spans and mode != "constant":
        raise refuse(node, f"cuts off and pads by '{mode}' at once")
    x = _sliced(graph, node.input[0], spans) if spans else graph.ref(node.input[0])
    dims = tuple(spans[a][1] - spans[a][0] if a in spans else size for a, size in enumerate(dims))
    if mode == "constant":
        value = float(constant(graph, node, names[2])) if names[2] else 0.0
        more = [[max(n, 0) for n in borders.get(axis, (0, 0))] for axis in range(len(dims))]
        graph.refs[node.output[0]] = padded(graph, x, dims, more, value)
        return
    for axis, pair in borders.items():
        places = np.pad(np.arange(dims[axis]), pair, mode=mode)
        x = picked(graph, node, x, dims, axis, places)
        dims = (*dims[:axis], len(places), *dims[axis + 1 :])
    graph.refs[node.output[0]] = x


def padded(graph: Graph, x: str, dims: Dims, borders: list[list[int]], value: float) -> str:
    """``x`` of ``dims`` with ``value`` before and after each axis."""
    first = next((axis for axis, pair in enumerate(borders) if any(pair)), len(dims))
    if first == len(dims):
        return x
    # A size that follows the batch has no border.
    wide = tuple(size + sum(pair) for size, pair in zip(dims, borders, strict=True))
    # It counts from the last axis, and ends with the first that has a border.
    flat = tuple(n for pair in reversed(borders[first:]) for n in pair)
    inputs = [x, graph.file.constant(flat), graph.file.constant(value)]
    return graph.file.operator("PadV3", inputs, wide, mode="constant", paddings_contiguous=True)


def resize(graph: Graph, node: onnx.NodeProto) -> None:
    """Axis after axis, each the product with a matrix that onnxruntime gives for this operator;
    where each place of it comes from one alone, a choice of places."""
    given, dims = settings(node), graph.shapes[node.input[0]]
    if given.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        raise refuse(node, "crops and resizes at once")
    x, out = graph.ref(node.input[0]), graph.shapes[node.output[0]]
    for axis, size in enumerate(out):
        scale = _scale(graph, node, axis)
        if size == dims[axis] and scale in (None, 1):
            continue
        if -1 in (size, dims[axis]):
            raise refuse(node, "resizes the batch")
        mixture = _mixture(node, dims[axis], size, scale)
        one = mixture.argmax(1)
        if np.array_equal(mixture, np.eye(dims[axis])[one]):
            x = picked(graph, node, x, dims, axis, one)
        else:
            x = _mixed(graph, node, x, dims, axis, mixture)
        dims = (*dims[:axis], size, *dims[axis + 1 :])
    graph.refs[node.output[0]] = x


def _scale(graph: Graph, node: onnx.NodeProto, axis: int) -> float | None:
    """How many times ``axis`` becomes larger, where the operator says that and not the size."""
    if len(node.input) < 3 or not node.input[2] or node.input[2] not in graph.values:
        return None
    scales = graph.values[node.input[2]]
    axes = list(settings(node).get("axes", range(len(graph.shapes[node.input[0]]))))
    return float(scales[axes.index(axis)]) if len(scales) and axis in axes else None


def _mixture(node: onnx.NodeProto, size: int, out: int, scale: float | None) -> Array:
    """What each of ``out`` places takes of each of ``size``, (out, size), measured."""
    import onnx

    helper = onnx.helper
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    kept = [
        each for each in node.attribute if each.name not in ("axes", "keep_aspect_ratio_policy")
    ]
    del alone.input[:], alone.output[:], alone.attribute[:]
    alone.attribute.extend(kept)
    alone.output.append("y")
    if scale is None:
        alone.input.extend(["x", "", "", "size"])
        wanted = onnx.numpy_helper.from_array(np.array([size, 1, out, 1], np.int64), "size")
    else:
        alone.input.extend(["x", "", "scales"])
        wanted = onnx.numpy_helper.from_array(np.array([1, 1, scale, 1], np.float32), "scales")
    shape = helper.make_tensor_value_info("x", 1, [size, 1, size, 1])
    graph = helper.make_graph([alone], "resize", [shape], [onnx.ValueInfoProto(name="y")], [wanted])
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    session = runtime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    each = np.eye(size, dtype=np.float32).reshape(size, 1, size, 1)
    (mixed,) = session.run(["y"], {"x": each})
    return np.asarray(mixed[:, 0, :, 0]).T


def cum_sum(graph: Graph, node: onnx.NodeProto) -> None:
    """A product with a triangle of ones."""
    given, dims = settings(node), graph.shapes[node.input[0]]
    axis = int(constant(graph, node, node.input[1]).reshape(())) % len(dims)
    if dims[axis] == -1 or graph.kinds[node.output[0]] != np.float32:
        raise refuse(node, "sums images, or numbers that are not float32")
    mixture = np.tri(dims[axis], k=-given.get("exclusive", 0), dtype=np.float32)
    if given.get("reverse", 0):
        mixture = mixture[::-1, ::-1]
    x = graph.ref(node.input[0])
    graph.refs[node.output[0]] = _mixed(graph, node, x, dims, axis, mixture)


def col2im(graph: Graph, node: onnx.NodeProto) -> None:
    """Windows added up where they lie: along each axis a product with a matrix that says where."""
    given, out = settings(node), graph.shapes[node.output[0]]
    sides, window = (constant(graph, node, name).tolist() for name in node.input[1:])
    if len(window) != 2 or out[0] != -1:
        raise refuse(node, f"adds windows over {len(window)} axes, but xfer over 2")
    strides, dilations = (given.get(name, (1, 1)) for name in ("strides", "dilations"))
    pads = given.get("pads", (0, 0, 0, 0))
    mixtures = []
    for axis, (size, k) in enumerate(zip(sides, window, strict=True)):
        reach = size + pads[axis] + pads[2 + axis] - (k - 1) * dilations[axis]
        first = np.arange(0, reach, strides[axis])
        places = np.arange(k)[:, None] * dilations[axis] + first - pads[axis]
        mixtures.append((np.arange(size)[:, None, None] == places).astype(np.float32))
    (_, *high), (_, *wide) = (each.shape for each in mixtures)
    dims: Dims = (-1, high[0], wide[0], high[1], wide[1])
    x = reshaped(graph, node, graph.ref(node.input[0]), dims)
    moved = (-1, high[0], high[1], wide[0], wide[1])
    x = graph.file.operator("Transpose", [x, graph.file.constant((0, 1, 3, 2, 4))], moved)
    dims = (-1, prod(high), prod(wide))
    x = reshaped(graph, node, x, dims)
    for axis, mixture in ((2, mixtures[1]), (1, mixtures[0])):
        x = _mixed(graph, node, x, dims, axis, mixture.reshape(len(mixture), -1))
        dims = (-1, dims[1], len(mixture)) if axis == 2 else (-1, len(mixture), dims[2])
    graph.refs[node.output[0]] = reshaped(graph, node, x, out)


def _mixed(
    graph: Graph, node: onnx.NodeProto, x: str, dims: Dims, axis: int, mixture: Array
) -> str:
    """``axis`` as a mixture of its places, (out, size): a product of rows with a matrix."""
    order = (*(each for each in range(len(dims)) if each != axis), axis)
    moved = tuple(dims[each] for each in order)
    if order != tuple(range(len(dims))):
        x = graph.file.operator("Transpose", [x, graph.file.constant(order)], moved)
    rows = -1 if -1 in moved else prod(moved[:-1])
    x = reshaped(graph, node, x, (rows, moved[-1]))
    weight = graph.changed(f"{node.output[0]}.mixture", mixture.T.copy())
    x = multiplied(graph, x, weight, (rows, len(mixture)))
    moved = (*moved[:-1], len(mixture))
    x = reshaped(graph, node, x, moved)
    if order == tuple(range(len(dims))):
        return x
    back = tuple(int(each) for each in np.argsort(order))
    return graph.file.operator(
        "Transpose", [x, graph.file.constant(back)], tuple(moved[each] for each in back)
    )


def reshaped(graph: Graph, node: onnx.NodeProto, x: str, dims: Dims) -> str:
    """``x`` in another shape."""
    if dims.count(-1) > 1:
        raise refuse(node, f"gives a shape {dims} in which two sizes follow the batch")
    kind = graph.kinds[node.output[0]]
    return graph.file.operator("Reshape", [x, graph.file.constant(dims)], dims, kind)


def multiplied(graph: Graph, x: str, y: str, dims: Dims, turned: bool = False) -> str:
    """The product of two matrices, the second one ``turned`` or not."""
    turns: dict[str, Any] = {"transpose_a": False, "transpose_b": turned}
    turns |= {"transpose_x1": False, "transpose_x2": turned}  # the same to other versions
    return graph.file.operator("MatMul", [x, y], dims, **turns)


def constant(graph: Graph, node: onnx.NodeProto, name: str) -> Array:
    """The values of an input that says where, how often or how large."""
    if name not in graph.values:
        raise refuse(node, f"has settings that are not constant ('{name}')")
    return graph.values[name]


def _sliced(graph: Graph, name: str, spans: dict[int, tuple[int, int]]) -> str:
    """``spans`` of ``name`` by axis; an axis without one stays whole."""
    dims = list(graph.shapes[name])
    begin = [0] * len(dims)
    for axis, (start, end) in spans.items():
        begin[axis], dims[axis] = start, max(end - start, 0)
    # A size of -1 takes all, which is right for an axis that follows the batch.
    constants = [graph.file.constant(tuple(begin)), graph.file.constant(tuple(dims))]
    return graph.file.operator(
        "Slice", [graph.ref(name), *constants], tuple(dims), graph.kinds[name]
    )


def picked(graph: Graph, node: onnx.NodeProto, x: str, dims: Dims, axis: int, places: Array) -> str:
    """``places`` of ``axis``, which becomes as many axes as they have."""
    out = (*dims[:axis], *places.shape, *dims[axis + 1 :])
    indices = graph.changed(f"{node.output[0]}.places", places.astype(np.int32))
    kind = graph.kinds[node.output[0]]
    inputs = [x, indices, graph.file.constant(axis)]
    return graph.file.operator("Gather", inputs, out, kind, batch_dims=0)
