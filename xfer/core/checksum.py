"""Checksums: of tensors by their content, and inside a torch zip file.

zip's own checksums are not looked at by torch: tensors with a flipped bit load without a word.
The sha256 of the file is its zip comment, which every reader of zip files skips.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


_MARK = b"xfer-sha256:"
_LENGTH = len(_MARK) + 64
_ENDING = struct.pack("<H", _LENGTH)


def add_checksum(path: Path) -> None:
    """Append the sha256 of a zip file without a comment, as its comment."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with path.open("r+b") as stream:
        # A zip file without a comment ends with the comment's length, zero.
        stream.seek(-2, 2)
        if stream.read() != b"\0\0":
            raise ValueError(f"{path} is not a zip file without a comment")
        stream.seek(-2, 2)
        stream.write(_ENDING + _MARK + digest.encode())


def checksum_length(tail: bytes) -> int:
    """How many of the last bytes of a file are its checksum."""
    return _LENGTH if tail[-_LENGTH - 2 :].startswith(_ENDING + _MARK) else 0


def checksum_holds(path: Path) -> bool | None:
    """Whether a file's bytes are those that its checksum is of; ``None`` when it has none."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if size < _LENGTH + 2:
            return None
        stream.seek(-_LENGTH, 2)
        tail = stream.read()
        if not tail.startswith(_MARK):
            return None
        stream.seek(0)
        digest, left = hashlib.sha256(), size - _LENGTH - 2
        while left and (chunk := stream.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
        length = stream.read(2)
    digest.update(b"\0\0")
    whole = not left and length == _ENDING
    return whole and digest.hexdigest().encode() == tail[len(_MARK) :]


def fingerprint(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """One sha256 over those of all tensors, in the order of their names."""
    return over(tensor_hashes(tensors))


def whole(tensor: Any) -> Any:
    """All of a tensor that is divided among ranks, in the processor's memory, for which every rank
    must ask; anything else as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather().cpu()


def tensor_hashes(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """sha256 over each tensor's name, dtype, shape and bytes, in hex, by name."""
    import torch

    # As many at a time as torch may use: a slot of a sweep has its own cores.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return dict(pool.map(_hashed, tensors))


def _hashed(named: tuple[str, torch.Tensor]) -> tuple[str, str]:
    import torch

    name, tensor = named
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{name}|{plain.dtype}|{tuple(plain.shape)}|".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return name, digest.hexdigest()


def over(hashes: Mapping[str, str]) -> str:
    """The fingerprint of tensors whose own ``hashes`` are known, by name."""
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()
