"""torch's own exported program, which runs without the code of the network."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
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
class Pt2:
    """``torch.export``: float32 (batch, 3, h, w) to logits, any batch size; ``torch.export.load``
    reads it, with the facts as extra files."""

    file: ClassVar[str] = "model.pt2"

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Export ``net`` with a free batch size."""
        import torch

        # Two copies of one image: a batch of 1 could be taken for a constant.
        example = torch.from_numpy(images[:1]).repeat(2, 1, 1, 1)
        free = ({0: torch.export.Dim("batch", min=1)},)
        stream = io.BytesIO()
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), torch.no_grad():
            program = torch.export.export(net, (example,), dynamic_shapes=free)
            torch.export.save(program, stream, extra_files=dict(metadata(card)))
        path.write_bytes(stream.getvalue())
        return {"torch": torch.__version__}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The file alone."""
        import torch

        with path.open("rb") as stream:
            return run_torch(torch.export.load(io.BytesIO(stream.read())).module())
