"""Files for other programs, each proved to answer as the network does before it gets its name."""

from xfer.export.gate import export
from xfer.export.mindir import Mindir
from xfer.export.onnx import Onnx
from xfer.export.safetensors import Safetensors
from xfer.export.settings import Gate

__all__ = ["Gate", "Mindir", "Onnx", "Safetensors", "export"]
