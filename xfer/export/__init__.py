"""Files for other programs, each proved to answer as the network does before it gets its name."""

from xfer.export.air import Air
from xfer.export.early import refuse_early
from xfer.export.gate import export
from xfer.export.mindir import Mindir
from xfer.export.mindspore_ckpt import MindSporeCkpt
from xfer.export.onnx import Onnx
from xfer.export.safetensors import Safetensors
from xfer.export.settings import Gate

__all__ = [
    "Air", "Gate", "MindSporeCkpt", "Mindir", "Onnx", "Safetensors", "export", "refuse_early",
]  # fmt: skip
