"""A folder that serves the network over HTTP, without xfer and without torch."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL.Image import Image

from xfer.core.files import write_json, write_text
from xfer.core.probabilities import sigmoid, softmax
from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Plain
from xfer.data.preprocess import prepare
from xfer.export.onnx import Onnx
from xfer.export.parity import run_torch

if TYPE_CHECKING:
    import torch

_MODEL = Onnx(input="image", file="model_image.onnx")
_PROGRAMS = ("serve.py", "check_service.py")
_RUNS_IT = ("numpy", "onnxruntime", "pillow")
_SERVES_IT = ("fastapi>=0.115", "uvicorn>=0.30")
_WITHIN = 1e-3
"""How far a probability of the example may be from the network's, whatever the machine."""


@dataclass(frozen=True)
class Service:
    """A folder with ``model_image.onnx``, a program of FastAPI that answers with it (``serve.py``),
    ``requirements.txt``, a ``Dockerfile`` and ``check_service.py``.

    The model is that of ``export=onnx_image`` and is compared as such. The test posts
    ``example.png``, a drawn picture, and compares the answer with ``expected.json``.
    """

    trial: ClassVar[str] = "pictures"
    file: ClassVar[str] = "service"
    format: ClassVar[str] = "service"
    main: ClassVar[str] = _MODEL.file

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Write the model, and beside it what serves and tests it."""
        facts = _MODEL.write(net, images, card, path / self.main)
        texts = files("xfer.export") / "service_files"
        for name in _PROGRAMS:
            write_text(path / name, (texts / f"{name}.txt").read_text(encoding="utf-8"))
        docker = (texts / "Dockerfile").read_text(encoding="utf-8")
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        write_text(path / "Dockerfile", docker.replace("@PYTHON@", python))
        # The versions that the model is compared with; those of the server are not installed here.
        pinned = [f"{name}=={version(name)}" for name in _RUNS_IT]
        write_text(path / "requirements.txt", "\n".join([*pinned, *_SERVES_IT]) + "\n")
        example, stream = _drawn(), io.BytesIO()
        example.save(stream, "PNG")
        (path / "example.png").write_bytes(stream.getvalue())
        logits = run_torch(net)(prepare(example, card.input)[None]).astype(np.float64)
        shares = (sigmoid(logits) if card.task else softmax(logits))[0].tolist()
        expected = {"probabilities": dict(zip(card.classes, shares, strict=True))}
        write_json(path / "expected.json", expected | {"within": _WITHIN})
        return facts

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The model in the folder alone, on the CPU."""
        return _MODEL.open(path / self.main, net)

    def open_labelled(self, path: Path) -> Callable[[Array], Sequence[Array]]:
        """The same, to its probabilities and labels."""
        return _MODEL.open_labelled(path / self.main)

    def open_certified(self, path: Path) -> Callable[[Array], Sequence[Array]]:
        """The same, with what it has of a certificate after its answers."""
        return _MODEL.open_certified(path / self.main)


def _drawn() -> Image:
    """A picture of nobody's: rings over a slope of colours, 320 x 240."""
    from PIL import Image as PIL

    y, x = np.mgrid[:240, :320].astype(np.float64)
    rings = 127 + 120 * np.sin(np.hypot(x - 160, y - 120) / 6)
    colours = np.stack([rings, 255 * x / 319, 255 * y / 239], axis=2)
    return PIL.fromarray(np.rint(colours).astype(np.uint8))
