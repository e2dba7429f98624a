"""MindIR, MindSpore's graph format, made of the ONNX graph; MindSpore is not needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.errors import ExportError
from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Plain
from xfer.export.metadata import metadata
from xfer.export.mindir import gather_pad_resize, lowering, shapes
from xfer.export.mindir.graph import FIX, Graph, graph_of, refuse
from xfer.export.onnx import tensors, with_suffix
from xfer.export.onnx_graph import model_of

if TYPE_CHECKING:
    import onnx
    import torch

_OPSET = 20
_LARGEST = (1 << 31) - 1  # protobuf reads no longer message

_SELU = 1.6732632423543772, 1.0507009873554805
"""The factors of ONNX's Selu, those of Klambauer et al., 2017."""
_ALIKE = {
    **{name: name for name in ("Abs", "Add", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "Log")},
    **{name: name for name in ("Equal", "Greater", "Less", "Mish", "Mul", "Neg", "Pow", "Sigmoid")},
    **{name: name for name in ("Reciprocal", "Sign", "Sin", "Softplus", "Sqrt", "Sub", "Tanh")},
    **{"And": "LogicalAnd", "Div": "RealDiv", "GreaterOrEqual": "GreaterEqual"},
    **{"HardSwish": "HSwish", "LessOrEqual": "LessEqual", "Not": "LogicalNot"},
    **{"Or": "LogicalOr", "Relu": "ReLU"},
}
"""Operators without settings, and MindIR's names for them."""
_OPERATORS: dict[str, Callable[[Graph, onnx.NodeProto], None]] = {
    **{name: partial(lowering.direct, primitive=each) for name, each in _ALIKE.items()},
    "AveragePool": lowering.average_pool,
    "BatchNormalization": lowering.batch_norm,
    "Cast": lowering.cast,
    "Celu": lowering.celu,
    "Clip": lowering.clip,
    "Col2Im": gather_pad_resize.col2im,
    "Concat": shapes.concat,
    "Conv": lowering.conv,
    "CumSum": gather_pad_resize.cum_sum,
    "Einsum": shapes.einsum,
    "Elu": lowering.elu,
    "Expand": gather_pad_resize.expand,
    "Flatten": shapes.reshape,
    "Gather": gather_pad_resize.gather,
    "GatherND": gather_pad_resize.gather_nd,
    "Gelu": lowering.gelu,
    "Gemm": shapes.gemm,
    "GlobalAveragePool": shapes.global_average_pool,
    "HardSigmoid": lowering.hard_sigmoid,
    "Identity": shapes.same,
    "InstanceNormalization": shapes.instance_norm,
    "LayerNormalization": shapes.layer_norm,
    "LeakyRelu": lowering.leaky_relu,
    "LogSoftmax": shapes.log_softmax,
    "MatMul": shapes.matmul,
    "Max": partial(lowering.folded, primitive="Maximum"),
    "MaxPool": lowering.max_pool,
    "Min": partial(lowering.folded, primitive="Minimum"),
    "PRelu": lowering.prelu,
    "Pad": gather_pad_resize.pad,
    "ReduceL1": partial(shapes.reduce, primitive="ReduceSum", before="Abs"),
    "ReduceL2": shapes.reduce_l2,
    "ReduceMax": partial(shapes.reduce, primitive="ReduceMax"),
    "ReduceMean": partial(shapes.reduce, primitive="ReduceMean"),
    "ReduceMin": partial(shapes.reduce, primitive="ReduceMin"),
    "ReduceSum": partial(shapes.reduce, primitive="ReduceSum"),
    "ReduceSumSquare": partial(shapes.reduce, primitive="ReduceSum", before="Square"),
    "Reshape": shapes.reshape,
    "Resize": gather_pad_resize.resize,
    "Selu": partial(lowering.elu, alpha=_SELU[0], gamma=_SELU[1]),
    "Slice": gather_pad_resize.cut,
    "Softmax": shapes.softmax,
    "Split": gather_pad_resize.split,
    "Squeeze": shapes.reshape,
    "Tile": gather_pad_resize.tile,
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.reshape,
    "Where": gather_pad_resize.where,
}


@dataclass(frozen=True)
class Mindir:
    """One ``.mindir`` that MindSpore 2.0 to 2.10 load: ``images`` float32 (batch, 3, h, w) to
    logits, any batch, class names and preprocessing in its ``user_info``. ``file`` gets the suffix
    it lacks."""

    file: str = "model.mindir"
    """its name below ``export/``; a missing suffix is added"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", with_suffix(self.file, ".mindir"))

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Trace ``net`` and write its operators as MindSpore's. Raises ExportError for one that
        is not in the table, by name."""
        model = model_of(tensors(net, images), _OPSET)
        content, operators = converted(model, images, metadata(card))
        path.write_bytes(content)
        return {"mind_ir_version": 1, "operators": operators}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The file alone, run by xfer's own interpreter on the CPU."""
        from xfer.export.mindir.run import runner

        return runner(path)


def converted(model: onnx.ModelProto, images: Array, facts: Mapping[str, str]) -> tuple[bytes, int]:
    """``model``, an ONNX graph from ``images`` to its one output, as the content of a MindIR file,
    and the number of its operators. Raises ExportError for an operator that is not in the table."""
    graph = graph_of(model, images)
    for node in model.graph.node:
        if graph.is_written(node):
            _OPERATORS.get(node.op_type, _refuse)(graph, node)
    output = model.graph.output[0].name
    first = (graph.refs["images"], graph.shapes["images"])
    last = (graph.ref(output), graph.shapes[output])
    content = graph.file.dump(first, last, facts)
    if len(content) > _LARGEST:
        what = f"needs {len(content):,} bytes, but a MindIR file holds at most {_LARGEST:,}"
        raise ExportError("mindir", what, FIX, 23)
    return content, len(graph.file.nodes)


def _refuse(graph: Graph, node: onnx.NodeProto) -> None:
    raise refuse(node, f"xfer cannot write {node.op_type} as MindIR")
