"""ExecuTorch, torch's own runtime for phones and boards, with XNNPACK's kernels."""

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


@dataclass(frozen=True)
class ExecuTorch:
    """``model.pte``: float32 (1, 3, h, w), preprocessed, to logits; what XNNPACK cannot compute,
    ExecuTorch's portable kernels do. Classes and recipe stand in ``labels.json`` and
    ``preprocess.json`` beside it."""

    file: ClassVar[str] = "model.pte"
    format: ClassVar[str] = "executorch"

    def check(self, card: Card) -> None:
        """Raise ExportError where the package is not installed."""
        if find_spec("executorch") is None:
            what = "the package 'executorch' is not installed"
            raise ExportError("export", what, "pip install executorch", 24)

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Export ``net`` for one image at a time, and lower it to XNNPACK."""
        from importlib.metadata import version

        import torch

        with silence(), torch.no_grad():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            program = torch.export.export(net, (torch.from_numpy(images[:1]),))
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            path.write_bytes(edge.to_executorch().buffer)
        return {"executorch": version("executorch"), "batch": 1}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The file alone, by ExecuTorch's runtime on the CPU."""
        import torch

        with silence():
            from executorch.runtime import Runtime

            data = path.read_bytes()
            program = Runtime.get().load_program(data)
            method = program.load_method("forward")
        # The method reads the program, and that the bytes, without holding either.
        held = (data, program, method)

        def run(image: Array) -> Array:
            with silence():  # it describes the processor
                logits: Array = held[-1].execute([torch.from_numpy(image)])[0].numpy().copy()
            return logits

        return one_at_a_time(run)
