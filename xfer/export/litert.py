"""LiteRT, once TensorFlow Lite: converted by litert-torch and run by LiteRT's own interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from xfer.core.errors import ExportError
from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Plain
from xfer.export.mobile import one_at_a_time, silence

if TYPE_CHECKING:
    import torch

_INPUT = "images"


@dataclass(frozen=True)
class LiteRt:
    """``model.tflite`` for Android and small boards: ``images`` float32 (1, 3, h, w), preprocessed,
    to logits. Classes and recipe stand in ``labels.json`` and ``preprocess.json`` beside it."""

    file: ClassVar[str] = "model.tflite"
    format: ClassVar[str] = "litert"

    def check(self, card: Card) -> None:
        """Raise ExportError where the package is not installed."""
        if find_spec("litert_torch") is None:
            what = "the package 'litert-torch' is not installed"
            raise ExportError("export", what, "pip install litert-torch", 19)

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Convert ``net`` for one image at a time."""
        from importlib.metadata import version

        import torch

        class Named(torch.nn.Module):  # the file's input is called as the argument is
            def __init__(self) -> None:
                super().__init__()
                self.net = net

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = self.net(images)
                return logits

        example = {_INPUT: torch.from_numpy(images[:1])}
        with silence():
            import litert_torch

            litert_torch.convert(Named().eval(), sample_kwargs=example).export(str(path))
        return {"litert_torch": version("litert-torch"), "batch": 1}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The file alone, on the CPU."""
        with silence():
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_content=path.read_bytes())
            interpreter.allocate_tensors()
            run = interpreter.get_signature_runner()
        return one_at_a_time(lambda image: next(iter(run(**{_INPUT: image}).values())))
