"""MindSpore's ``.safetensors``: ordinary ones, with its own names and maybe a checksum."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from xfer.core.errors import WeightsError
from xfer.weights.formats.safetensors_file import check_header
from xfer.weights.mindspore.training_state import sorted_out

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from xfer.core.types import Plain, StateDict
    from xfer.weights.content import Content

FORMAT = "MindSpore safetensors"


def read_safetensors(path: Path) -> Content:
    """The weights by MindSpore's names, apart from what training left beside them.

    Raises WeightsError when the file is damaged, its checksum is wrong, or it has no weights,
    SafetyError when its header is larger than any network needs.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(path, "there is no such file", "give source.path=FILE", 1)
    check_header(path)
    try:
        with safe_open(path, "pt") as opened:
            metadata = dict(opened.metadata() or {})
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            path, f"is a damaged safetensors file ({error})", "fetch it again", 2
        ) from error
    packed = [name for name in tensors if metadata.get(name) == "Int4"]
    if packed:
        what = f"its entry '{packed[0]}' is quantised to 4 bits"
        raise WeightsError(path, what, "save the network as it was before", 63)
    facts: Plain = {"crc": "verified"} if check_crc(tensors, metadata, path) else {}
    return sorted_out(path, FORMAT, tensors, {}, facts)


def check_crc(state: StateDict, metadata: Mapping[str, str], path: Path) -> bool:
    """Whether there is a checksum. Raises WeightsError when it is wrong.

    It runs over name and bytes of each tensor, by sorted name.
    """
    if "crc_num" not in metadata:
        return False
    # `bytes` of a 0-d numpy integer n, which MindSpore takes, is n zero bytes, not n itself.
    for zeros in (False, True):
        crc = 0
        for name in sorted(state):
            crc = _crc(state[name], zeros, zlib.crc32(name.encode(), crc))
        if str(crc) == metadata["crc_num"]:
            return True
    raise WeightsError(path, "its bytes do not fit its own checksum", "fetch it again", 62)


def _crc(tensor: torch.Tensor, zeros: bool, crc: int) -> int:
    import torch

    whole = not tensor.is_floating_point() and tensor.dtype != torch.bool
    if zeros and tensor.ndim == 0 and whole and 0 <= int(tensor) <= 1 << 20:
        return zlib.crc32(bytes(int(tensor)), crc)
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(raw.numpy().data, crc)
