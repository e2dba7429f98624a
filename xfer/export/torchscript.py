"""TorchScript by tracing, for programs that still load it; torch itself calls it deprecated."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Plain
from xfer.export.metadata import metadata
from xfer.export.parity import run_torch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TorchScript:
    """A trace, float32 (batch, 3, h, w) to logits. It is made from noise, so every image that it
    is compared on is one that it was not traced with: a branch that was frozen in comes out."""

    file: ClassVar[str] = "model.torchscript"

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Trace ``net``; facts as extra files."""
        import torch

        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((3, *images.shape[1:]), generator=generator)
        stream = io.BytesIO()
        # Every call warns that the format is deprecated, and every guess of the tracer that it may
        # be wrong; whether it is wrong is what the comparison shows.
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            traced = torch.jit.trace(net, noise, check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.save(traced, stream, _extra_files=metadata(card))
        path.write_bytes(stream.getvalue())
        return {"torch": torch.__version__}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The file alone."""
        import torch

        with warnings.catch_warnings(action="ignore"):
            loaded = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            return run_torch(loaded)
