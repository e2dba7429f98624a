"""Files for other programs, each proved to answer as the network does before it gets its name."""

from xfer.export.evidence import Evidence
from xfer.export.gate import export
from xfer.export.onnx import Onnx
from xfer.export.safetensors import Safetensors
from xfer.export.settings import Gate

__all__ = ["Evidence", "Gate", "Onnx", "Safetensors", "export"]
