"""ONNX in 16 bits: half the size, at a cost in accuracy that is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from xfer.core.errors import ExportError
from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Plain
from xfer.evaluation.onnx_session import open_session, runner, runtime
from xfer.export.metadata import metadata
from xfer.export.onnx import tensors, with_suffix
from xfer.export.onnx_graph import model_of

if TYPE_CHECKING:
    import torch

_OPSET = 20
_LARGEST = 65504.0  # of float16
_BFLOAT_CONV = 22  # the first opset whose convolution takes bfloat16


@dataclass(frozen=True)
class Half:
    """ONNX with weights of 16 bits; ``images`` and ``logits`` stay float32, any batch size.

    In float16 by the converter of onnxruntime.transformers, which leaves operators that lose most
    in float32. What onnxruntime's CPU has no arithmetic for, it computes in float32 itself.
    """

    trial: ClassVar[str] = "rounded"

    dtype: Literal["float16", "bfloat16"] = "float16"
    """of the weights"""
    compute: Literal["half", "float32"] = "half"
    """arithmetic: `half` is that of `dtype`; with `float32` the weights alone have 16 bits"""
    file: str = "model_fp16.onnx"
    """its name below `export/`; a missing suffix is added"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", with_suffix(self.file, ".onnx"))

    @property
    def format(self) -> str:
        """``onnx_fp16`` or ``onnx_bf16``."""
        return "onnx_fp16" if self.dtype == "float16" else "onnx_bf16"

    def check(self, card: Card) -> None:
        """Raise ExportError for arithmetic in bfloat16, which no CPU of onnxruntime has."""
        if self.dtype == "bfloat16" and self.compute == "half":
            what = f"arithmetic in bfloat16 cannot be compared: {_no_bfloat_conv()}"
            fix = "type export=onnx_bf16 export.onnx_bf16.compute=float32, or export=onnx_fp16"
            raise ExportError("export", what, fix, 12)

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Trace ``net`` and convert what it holds."""
        import onnx

        self.check(card)
        model = model_of(tensors(net, images), _OPSET)
        self._refuse_large(model)
        model = _float16(model) if self.compute == "half" else _stored(model, self.dtype)
        onnx.helper.set_model_props(model, metadata(card) | {"input": "tensor"})
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())
        return {"dtype": self.dtype, "compute": self.compute}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The file alone, on the CPU."""
        return runner(open_session(path))

    def _refuse_large(self, model: Any) -> None:
        """Raise ExportError for a weight that float16 cannot hold; the converter would clip it."""
        from onnx import numpy_helper

        for tensor in model.graph.initializer if self.dtype == "float16" else ():
            largest = abs(numpy_helper.to_array(tensor)).max(initial=0)
            if largest > _LARGEST:
                what = f"'{tensor.name}' is as large as {largest:.3g}; float16 ends at {_LARGEST:g}"
                raise ExportError(self.file, what, "type export=onnx_bf16, or export=onnx", 13)


def _float16(model: Any) -> Any:
    """``model`` in float16 between its input and output, which stay float32."""
    runtime()
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = convert_float_to_float16(model, keep_io_types=True)
    # It puts its casts last, where a graph is to have them before they are used.
    OnnxModel.graph_topological_sort(converted.graph)
    return converted


def _stored(model: Any, dtype: str) -> Any:
    """``model`` with its float32 matrices and kernels in ``dtype``, each cast where it is used."""
    import onnx
    import torch
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    code = TensorProto.FLOAT16 if dtype == "float16" else TensorProto.BFLOAT16
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name, dims = tensor.name, list(tensor.dims)
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        raw = values.to(getattr(torch, dtype)).view(torch.int16).numpy().tobytes()
        tensor.CopyFrom(helper.make_tensor(f"{name}.{dtype}", code, dims, raw, raw=True))
        casts.append(
            helper.make_node("Cast", [tensor.name], [name], f"{name}.cast", to=TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return onnx.shape_inference.infer_shapes(model)


def _no_bfloat_conv() -> str:
    """What onnxruntime says of a convolution in bfloat16 on the CPU."""
    from onnx import TensorProto, helper

    kind, name = TensorProto.BFLOAT16, f"onnxruntime {runtime().__version__}"
    ends = [
        helper.make_tensor_value_info(end, kind, [1, 1, *side])
        for end, side in (("x", [3, 3]), ("w", [1, 1]), ("y", [3, 3]))
    ]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "", ends[:2], ends[2:])
    opsets = [helper.make_opsetid("", _BFLOAT_CONV)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    try:
        runtime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class of their own
        return f"{name} on a CPU: operator Conv: {str(error).strip().splitlines()[0][:120]}"
    return f"{name} has the operator Conv, but xfer does not write it yet"
