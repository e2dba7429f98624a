"""ONNX, by torch's exporter; run again by onnxruntime."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Interval

from xfer.errors import ExportError
from xfer.export.metadata import metadata

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from xfer.types import Array, Card, Plain, Runner


@dataclass(frozen=True)
class Onnx:
    """One self-contained ONNX file: ``images`` float32 (batch, 3, h, w) to ``logits``."""

    file: ClassVar[str] = "model.onnx"

    opset: Annotated[int, Interval(ge=18, le=24)] = 20

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Trace ``net`` with a free batch size; facts in ``metadata_props``, as strings."""
        import onnx

        model = trace(net, images, self.opset).model_proto
        written = {entry.domain: entry.version for entry in model.opset_import}[""]
        if written != self.opset:  # the exporter keeps its own opset when it cannot convert
            what = f"the network cannot be written in opset {self.opset}, only in {written}"
            raise ExportError(self.file, what, f"set export.onnx.opset={written}", 10)
        onnx.helper.set_model_props(model, metadata(card))
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString())
        return {"opset": written, "ir": model.ir_version}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The file alone, on the CPU."""
        # Read when onnxruntime is imported: its wheels report usage since 1.29.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def run(images: Array) -> Array:
            logits: Array = session.run(["logits"], {"images": images})[0]
            return logits

        return run


def trace(net: torch.nn.Module, images: Array, opset: int) -> torch.onnx.ONNXProgram:
    """``net`` as an ONNX graph from ``images``, of any batch size, to ``logits``."""
    import torch

    # Two copies of one image: a batch of 1 could be taken for a constant.
    example = torch.from_numpy(images[:1]).repeat(2, 1, 1, 1)
    # It prints its progress, and pages of advice; what goes wrong is in its exception.
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["logits"],
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    assert program is not None  # only the old exporter returns None
    for node in program.model.graph.all_nodes():
        # It tells the paths of the machine that exported.
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)
    return program
