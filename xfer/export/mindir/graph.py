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
from xfer.evaluation.onnx_session import runtime
from xfer.export.mindir.file import GRAPH, MindIrFile

if TYPE_CHECKING:
    import onnx

    from xfer.core.types import Array

    Dims = tuple[int, ...]

_FEW, _MORE = 2, 3
_NEGATIVE_FREE = {
    **dict.fromkeys(("Clip", "HardSigmoid", "Relu", "Sigmoid", "Softmax"), slice(0)),
    **dict.fromkeys(("AveragePool", "Flatten", "Gather", "GlobalAveragePool"), slice(1)),
    **dict.fromkeys(("Identity", "MaxPool", "Pad", "ReduceMean", "Reshape"), slice(1)),
    **dict.fromkeys(("Slice", "Squeeze", "Unsqueeze"), slice(1)),
    **dict.fromkeys(("Add", "Concat", "Mul"), slice(None)),
}
"""Operators that give nothing below zero where these of their inputs hold nothing below zero."""
FIX = "choose other formats, export=[onnx,...]; ONNX can be converted on the target"


def refuse(node: onnx.NodeProto, what: str) -> ExportError:
    """The error for a node that cannot be written."""
    name = node.name or node.output[0]
    return ExportError("mindir", f"{what} (operator {node.op_type}, '{name}')", FIX, 20)


@dataclass
class Graph:
    """``model``, its tensors by name, and the file that it becomes.

    ``shapes`` have -1 where a size follows the batch. ``values`` holds what does not depend on
    the images; ``sizes`` are numbers computed from their count. ``refs`` are the names in the file
    of what was written so far; ``positive`` the tensors that are nowhere below zero.
    """

    model: onnx.ModelProto
    shapes: dict[str, Dims] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    sizes: set[str] = field(default_factory=set)
    refs: dict[str, str] = field(default_factory=dict)
    positive: set[str] = field(default_factory=set)
    file: MindIrFile = field(default_factory=MindIrFile)

    def ref(self, name: str) -> str:
        """What the file calls a tensor; a constant is written when it is first needed."""
        if name not in self.refs:
            values = self.values.get(name)
            if values is None or values.dtype != np.float32:
                what = (
                    f"'{name}' is not a float32 tensor, and xfer writes no others into MindIR files"
                )
                raise ExportError("mindir", what, FIX, 22)
            self.refs[name] = self.file.parameter(name, values)
        return self.refs[name]

    def changed(self, name: str, values: Array) -> str:
        """A constant of the graph with other values, under a name of its own."""
        return self.file.parameter(f"{name}.{len(self.file.parameters)}", values)

    def emit(
        self, node: onnx.NodeProto, primitive: str, inputs: list[str], **attributes: Any
    ) -> str:
        """Write the operator that gives the output of ``node``."""
        done = self.file.operator(primitive, inputs, self.shapes[node.output[0]], **attributes)
        self.refs[node.output[0]] = done
        return done

    def is_positive(self, name: str) -> bool:
        """Whether a tensor is nowhere below zero, as far as that is known."""
        values = self.values.get(name)
        return name in self.positive if values is None else bool((values >= 0).all())

    def note_sign(self, node: onnx.NodeProto) -> None:
        """Learn whether what ``node`` gives is nowhere below zero."""
        inputs = _NEGATIVE_FREE.get(node.op_type)
        if inputs and all(map(self.is_positive, node.input[inputs])):
            self.positive.add(node.output[0])

    def users(self, name: str) -> list[str]:
        """The operators that take a tensor."""
        return [node.op_type for node in self.model.graph.node if name in node.input]


def graph_of(model: onnx.ModelProto, images: Array) -> Graph:
    """Look at ``model``, whose input is ``images`` and output ``logits``. One image of ``images``,
    float32 (n, 3, h, w), is enough. Raises ExportError for a size that is no multiple of the
    batch."""
    few, more = (_run(model, images[:1].repeat(count, axis=0)) for count in (_FEW, _MORE))
    graph = Graph(model)
    static = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        known = all(name in static for name in node.input if name)
        if known or node.op_type == "Shape":
            static |= set(node.output)
    for name, seen in few.items():
        graph.shapes[name] = _dims(name, seen.shape, more[name].shape)
        if name in static and np.array_equal(seen, more[name]):
            graph.values[name] = seen
        elif name in static and seen.dtype.kind in "iub":
            graph.sizes.add(name)
    graph.refs["images"] = f"{GRAPH}:images"
    graph.shapes["images"] = (-1, *images.shape[1:])
    return graph


def _dims(name: str, few: Dims, more: Dims) -> Dims:
    """A shape with -1 where it follows the batch."""
    if len(few) != len(more) or any(
        a != b and a * _MORE != b * _FEW for a, b in zip(few, more, strict=True)
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
