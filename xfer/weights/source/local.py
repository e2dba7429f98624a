"""Weights from a local file of torch, Lightning, safetensors or numpy, told apart by content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.source.reading import read
from xfer.source.rules import Rules
from xfer.storage import file_sha256
from xfer.types import Backbone
from xfer.weights import Weights

if TYPE_CHECKING:
    from xfer.types import StateDict


@dataclass(frozen=True)
class File(Rules):
    """``path`` of a file of torch (also Lightning's), safetensors or numpy's .npz; ``key``
    (dotted, such as ``model.ema``) chooses the entry of a torch file that holds the weights."""

    path: str
    key: str | None = None

    def load(self, backbone: Backbone) -> Weights:
        """The file's tensors. Raises as :func:`xfer.source.reading.read`."""
        path = Path(self.path).expanduser()
        content = read(path, self.key)
        return self.weights("file", content, str(path), file_sha256(path))


def read_state(path: Path) -> StateDict:
    """Tensors by name from any file that :func:`xfer.source.reading.read` takes."""
    return read(path).state
