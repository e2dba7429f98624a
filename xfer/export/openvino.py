"""OpenVINO's intermediate representation, read from the ONNX graph and run by OpenVINO itself."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from xfer.config.help import DISTRIBUTION
from xfer.core.errors import ExportError
from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Plain
from xfer.export.metadata import metadata
from xfer.export.onnx import tensors
from xfer.export.onnx_graph import model_of

if TYPE_CHECKING:
    import torch

_DATA = "xfer"
"""What the metadata are filed under in the file's ``rt_info``."""


@dataclass(frozen=True)
class OpenVino:
    """A folder with ``model.xml`` and ``model.bin``: ``images`` float32 (batch, 3, h, w),
    preprocessed, to ``logits``, any batch size.

    Weights are float32. Classes, recipe and card stand in ``rt_info``, below ``xfer``.
    """

    file: ClassVar[str] = "openvino"
    format: ClassVar[str] = "openvino"
    main: ClassVar[str] = "model.xml"

    def check(self, card: Card | None = None) -> None:
        """Raise ExportError where the package is not installed."""
        if find_spec("openvino") is None:
            what = "the package 'openvino' is not installed"
            raise ExportError("export", what, f'pip install "{DISTRIBUTION}[openvino]"', 11)

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Trace ``net`` to ONNX, and have OpenVINO read and save that."""
        import openvino

        graph = model_of(tensors(net, images), 20).SerializeToString()
        # Not openvino.convert_model, which reports its use to the maker.
        model = openvino.Core().read_model(graph)
        # OpenVINO counts the operators without a name through all models of a process, and equal
        # networks would not be equal files: they are called by their place in the graph.
        for place, node in enumerate(model.get_ordered_ops()):
            if node.get_friendly_name() == node.get_name():
                node.set_friendly_name(f"{node.get_type_name()}_{place}")
        for key, value in metadata(card).items():
            model.set_rt_info(value, [_DATA, key])
        openvino.save_model(model, path / self.main, compress_to_fp16=False)
        return {"openvino": openvino.get_version()}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The folder alone, on the CPU, in float32."""
        return opened(path)


def opened(path: Path, threads: int = 0) -> Runner:
    """A function from float32 (n, 3, h, w) to logits (n, classes), by OpenVINO on the CPU; 0
    ``threads`` are as many as it likes. ``path`` is the folder."""
    import openvino

    # Where the processor can, OpenVINO computes in bfloat16 unless it is asked not to.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.Core().compile_model(path / OpenVino.main, "CPU", settings)

    def run(images: Array) -> Array:
        logits: Array = compiled(images)[0]
        return logits.copy()  # the next answer is written into the same memory

    return run
