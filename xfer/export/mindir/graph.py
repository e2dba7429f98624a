"""An ONNX graph as the MindIR writer needs it: each tensor's shape, and what is constant.

Shapes are not inferred but seen: onnxruntime runs the graph on two and on three images, and a
size that grows with them follows the batch. So a shape computed in the graph, as transformers
do, is known as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.core.errors import ExportError
from xfer.core.types import Array
from xfer.evaluation.onnx_session import runtime
from xfer.export.mindir.file import GRAPH, KINDS, MindIrFile

if TYPE_CHECKING:
    import onnx

    Dims = tuple[int, ...]

FEW, MORE = 2, 3
_ONLY = "MindIR files of xfer hold float32, int32, int64 and bool"
FIX = "choose other formats, export=[onnx,...]; ONNX can be converted on the target"


def refuse(node: onnx.NodeProto, what: str) -> ExportError:
    """The error for a node that cannot be written."""
    name = node.name or node.output[0]
    return ExportError("mindir", f"{what} (operator {node.op_type}, '{name}')", FIX, 20)


def settings(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node."""
    import onnx

    return {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


@dataclass
class Graph:
    """``model``, its tensors by name, and the file that it becomes.

    ``shapes`` have -1 where a size follows the batch, ``more`` what it is for MORE images.
    ``kinds`` are the types of numbers. ``values`` holds what does not depend on the images,
    ``sizes`` what is computed from their count, for MORE of them, and ``rows`` what is then the
    same for every image, (1, ...). ``refs`` are the names in the file of what was written so far.
    """

    model: onnx.ModelProto
    shapes: dict[str, Dims] = field(default_factory=dict)
    more: dict[str, Dims] = field(default_factory=dict)
    kinds: dict[str, np.dtype[Any]] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    sizes: dict[str, Array] = field(default_factory=dict)
    rows: dict[str, Array] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    file: MindIrFile = field(default_factory=MindIrFile)

    def ref(self, name: str) -> str:
        """What the file calls a tensor; a constant is written when it is first needed."""
        if name not in self.refs:
            values = self.rows.get(name, self.values.get(name))
            if values is None or (name in self.rows and values.dtype != np.float32):
                what = "is computed from the number of images, which no MindIR operator gives"
                raise ExportError("mindir", f"'{name}' {what}", FIX, 22)
            if values.dtype.name not in KINDS:
                raise ExportError("mindir", f"'{name}' is {values.dtype}, and {_ONLY}", FIX, 22)
            done = self.file.parameter(name, values)
            if name in self.rows:
                dims = self.shapes[name]
                done = self.file.operator("Add", [self.zeros(len(dims)), done], dims)
            self.refs[name] = done
        return self.refs[name]

    def is_written(self, node: onnx.NodeProto) -> bool:
        """Whether ``node`` works on images. What is computed from shapes and constants alone is
        known, and not written."""
        known = (self.values, self.sizes, self.rows)
        return not all(any(name in each for each in known) for name in node.output)

    def zeros(self, rank: int, axis: int = 0) -> str:
        """One zero an image along ``axis``: no constant has as many rows as there are images."""
        dims = (-1, 1, 1, 1)
        inputs = [self.ref("images"), self.file.constant((1, 2, 3))]
        mean = self.file.operator("ReduceMean", inputs, dims, keep_dims=True)
        zeros = self.file.operator("Mul", [mean, self.number(0)], dims)
        wanted = (1,) * axis + (-1,) + (1,) * (rank - axis - 1)
        if wanted == dims:
            return zeros
        return self.file.operator("Reshape", [zeros, self.file.constant(wanted)], wanted)

    def number(self, value: float) -> str:
        """One float32 number, as a tensor that any other broadcasts with."""
        name = f"number.{value:.9g}"
        self.values.setdefault(name, np.full((1,), value, np.float32))
        return self.ref(name)

    def changed(self, name: str, values: Array) -> str:
        """A constant of the graph with other values, under a name of its own."""
        return self.file.parameter(f"{name}.{len(self.file.parameters)}", values)

    def emit(
        self, node: onnx.NodeProto, primitive: str, inputs: list[str], **attributes: Any
    ) -> str:
        """Write the operator that gives the output of ``node``. Raises ExportError for a type that
        a file cannot hold."""
        name = node.output[0]
        kind = self.kinds[name]
        if kind.name not in KINDS:
            raise refuse(node, f"gives {kind}, but {_ONLY}")
        done = self.file.operator(primitive, inputs, self.shapes[name], kind, **attributes)
        self.refs[name] = done
        return done


def graph_of(model: onnx.ModelProto, images: Array) -> Graph:
    """Look at ``model``, whose input is ``images`` and output ``logits``. One image of ``images``,
    float32 (n, 3, h, w), is enough. Raises ExportError for a size that is no multiple of the
    batch."""
    few, more = (_run(model, images[:1].repeat(count, axis=0)) for count in (FEW, MORE))
    graph = Graph(model)
    static = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        known = all(name in static for name in node.input if name)
        if known or node.op_type == "Shape":
            static |= set(node.output)
    for name, seen in few.items():
        graph.shapes[name] = _dims(name, seen.shape, more[name].shape)
        graph.more[name], graph.kinds[name] = more[name].shape, seen.dtype
        if name in static and np.array_equal(seen, more[name]):
            graph.values[name] = seen
        elif name in static and graph.shapes[name][:1] == (-1,) and (more[name] == seen[:1]).all():
            graph.rows[name] = seen[:1]
        elif name in static and seen.dtype.kind in "iub":
            graph.sizes[name] = more[name]
    graph.refs["images"] = f"{GRAPH}:images"
    graph.shapes["images"] = (-1, *images.shape[1:])
    graph.kinds["images"] = images.dtype
    return graph


def _dims(name: str, few: Dims, more: Dims) -> Dims:
    """A shape with -1 where it follows the batch."""
    if len(few) != len(more) or any(
        a != b and a * MORE != b * FEW for a, b in zip(few, more, strict=True)
    ):
        what = f"the shape of '{name}' follows the batch as {few}, {more} for two and three images"
        raise ExportError("mindir", what, FIX, 21)
    return tuple(a if a == b else -1 for a, b in zip(few, more, strict=True))


def _run(model: onnx.ModelProto, images: Array) -> dict[str, Array]:
    """Every tensor of the graph, by name."""
    import onnx
    from onnx import numpy_helper

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    tensors = dict(zip(names, session.run(names, {"images": images}), strict=True))
    return tensors | {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
