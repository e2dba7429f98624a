"""Files for other programs, each proved to answer as the network does before it gets its name."""

from xfer.export.evidence import Evidence
from xfer.export.gate import export
from xfer.export.int8 import Int8
from xfer.export.onnx import Onnx
from xfer.export.pt2 import Pt2
from xfer.export.safetensors import Safetensors
from xfer.export.settings import Gate
from xfer.export.torchscript import TorchScript

__all__ = ["Evidence", "Gate", "Int8", "Onnx", "Pt2", "Safetensors", "TorchScript", "export"]
