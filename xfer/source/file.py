"""Weights from a local file: a torch state dict or safetensors, told apart by content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xfer.errors import WeightsError
from xfer.storage import file_sha256, load_tensors
from xfer.types import Backbone
from xfer.weights import Weights

if TYPE_CHECKING:
    from xfer.types import StateDict


@dataclass(frozen=True)
class File:
    """``path`` of a .pt, .pth or .safetensors file holding tensors by name."""

    path: str

    def load(self, backbone: Backbone) -> Weights:
        """The file's tensors, bare or nested under ``state_dict``."""
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise WeightsError(path, "there is no such file", "give source.path=FILE", 1)
        state = read_state(path)
        return Weights("file", state, origin=str(path), sha256=file_sha256(path))


def read_state(path: Path) -> StateDict:
    """Tensors by name from a torch or safetensors file. Raises WeightsError or SafetyError."""
    if is_safetensors(path):
        return _read_safetensors(path)
    content: Any = load_tensors(path)
    if isinstance(content, Mapping) and "xfer" in content:
        raise WeightsError(path, "is an xfer checkpoint", "use source=run source.path=...", 3)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    return _tensors_only(content, path)


def is_safetensors(path: Path) -> bool:
    """Whether the file starts as safetensors does: a length, then a JSON object of that length."""
    with path.open("rb") as stream:
        head = stream.read(9)
    length = int.from_bytes(head[:8], "little")
    return len(head) == 9 and head[8:] == b"{" and 8 + length <= path.stat().st_size


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(
            path, f"is a damaged safetensors file ({error})", "fetch it again", 2
        ) from error


def _tensors_only(content: Any, path: Path) -> StateDict:
    import torch

    if not isinstance(content, Mapping) or not content:
        raise WeightsError(path, "holds no tensors by name", "save model.state_dict()", 4)
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise WeightsError(
                path,
                f"its entry '{name}' is a {type(value).__name__}, no tensor",
                "save the state dict",
                4,
            )
    return content
