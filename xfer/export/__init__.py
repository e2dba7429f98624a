"""Files for other programs, each proved to answer as the network does before it gets its name."""

from xfer.export.air import Air
from xfer.export.executorch import ExecuTorch
from xfer.export.gate import Strictness, export, refuse_early
from xfer.export.half_precision import Half
from xfer.export.hub_folder import HubFolder
from xfer.export.int8 import Int8
from xfer.export.litert import LiteRt
from xfer.export.mindir.writer import Mindir
from xfer.export.mindspore_ckpt import MindSporeCkpt
from xfer.export.onnx import Onnx
from xfer.export.openvino import OpenVino
from xfer.export.parity import Evidence
from xfer.export.pt2 import Pt2
from xfer.export.safetensors import Safetensors
from xfer.export.service import Service
from xfer.export.torchscript import TorchScript

__all__ = [
    "Air",
    "Evidence",
    "ExecuTorch",
    "Half",
    "HubFolder",
    "Int8",
    "LiteRt",
    "MindSporeCkpt",
    "Mindir",
    "Onnx",
    "OpenVino",
    "Pt2",
    "Safetensors",
    "Service",
    "Strictness",
    "TorchScript",
    "export",
    "refuse_early",
]
