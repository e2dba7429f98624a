"""Files for other programs, each proved to answer as the network does before it gets its name."""

from xfer.export.air import Air
from xfer.export.gate import Strictness, export, refuse_early
from xfer.export.int8 import Int8
from xfer.export.mindir.writer import Mindir
from xfer.export.mindspore_ckpt import MindSporeCkpt
from xfer.export.onnx import Onnx
from xfer.export.parity import Evidence
from xfer.export.pt2 import Pt2
from xfer.export.safetensors import Safetensors
from xfer.export.torchscript import TorchScript

__all__ = [
    "Air",
    "Evidence",
    "Int8",
    "MindSporeCkpt",
    "Mindir",
    "Onnx",
    "Pt2",
    "Safetensors",
    "Strictness",
    "TorchScript",
    "export",
    "refuse_early",
]
