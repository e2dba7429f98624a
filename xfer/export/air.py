"""AIR, the format of Huawei's Ascend: refused, with what to do instead."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from xfer.core.errors import ExportError
from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Plain

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Air:
    """MindSpore writes AIR with Ascend's own compiler, on a machine that has the hardware."""

    file: ClassVar[str] = "model.air"

    def check(self, card: Card) -> None:
        """Always raises ExportError."""
        raise ExportError(
            "export",
            "AIR files can be written on Ascend hardware only, by MindSpore itself",
            "type export=onnx, then there: atc --framework=5 --model=model.onnx "
            "--output=model --soc_version=...; or export=mindir for MindSpore",
            40,
        )

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Always raises ExportError."""
        self.check(card)
        return {}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """There is no runtime for it either."""
        raise NotImplementedError
