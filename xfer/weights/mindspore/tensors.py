"""Tensors of MindSpore's files: where their bytes lie, what those must be, how they are read.

The bytes of a tensor start anywhere in these files. A view of a memory map would not be aligned
for its type, so each tensor is read straight into memory of its own, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from xfer.core.errors import WeightsError
from xfer.core.protobuf import Malformed

if TYPE_CHECKING:
    import torch

    from xfer.weights.content import Shape

WIDTHS = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4,
    "int64": 8, "uint64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
"""The types that are read, by torch's names, with their bytes a number."""
MOST_DIMS = 16
_CIPHERS = {
    b"\xd8\x5e\x3a\x7f": "AES-GCM",
    b"\xd9\x5e\x3a\x7f": "AES-CBC",
    b"\xda\x5e\x3a\x7f": "SM4-CBC",
}


class Unsupported(Exception):
    """A file as its format wants it, of a kind that is not read; with what to do and the case."""

    def __init__(self, what: str, fix: str, number: int = 63) -> None:
        super().__init__(what)
        self.fix, self.number = fix, number


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file. ``dtype`` is torch's name; ``spans`` are the pieces, from byte to byte,
    that follow each other in C order, little endian."""

    name: str
    dtype: str
    shape: Shape
    spans: tuple[tuple[int, int], ...]


def is_encrypted(head: bytes) -> bool:
    """Whether MindSpore encrypted the file that starts with ``head``."""
    return head[:4] in _CIPHERS


@contextmanager
def opened(path: Path, form: str) -> Iterator[BinaryIO]:
    """The file at ``path``, at its start. ``form`` is what it should be, for people.

    What goes wrong inside becomes a WeightsError that names the file.
    """
    size = 0
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            cipher = _CIPHERS.get(stream.read(4))
            if cipher:
                fix = "load it in MindSpore with its key and save it without enc_key"
                raise Unsupported(f"is encrypted by MindSpore ({cipher})", fix, 60)
            if not size:
                raise Malformed("it is empty")
            stream.seek(0)
            yield stream
    except Unsupported as error:
        raise WeightsError(path, str(error), error.fix, error.number) from error
    except (Malformed, OSError) as error:
        what = f"cannot be read as a {form} ({size} bytes; {error})"
        fix = "check that the download is complete and what kind of file it is"
        raise WeightsError(path, what, fix, 61) from error


def stored_tensor(
    name: str, dtype: str, dims: Sequence[int], spans: Sequence[tuple[int, int]]
) -> StoredTensor:
    """A tensor whose shape and bytes agree; raises Malformed when they do not.

    MindSpore writes a scalar without dims or, up to 2.0, with one dim of 0.
    """
    size, width = sum(stop - start for start, stop in spans), WIDTHS[dtype]
    shape = () if is_scalar(dims, size, width) else tuple(dims)
    if min(shape, default=0) < 0:
        raise Malformed(f"'{name}' has a negative dim in {list(shape)}")
    if math.prod(shape) * width != size:
        raise Malformed(f"'{name}' of {list(shape)} {dtype} numbers has {size} bytes")
    if math.prod(n for n in shape if n) > max(size, 1 << 31):
        raise Malformed(f"'{name}' holds nothing in a shape of {list(shape)}")
    return StoredTensor(name, dtype, shape, tuple(spans))


def is_scalar(dims: Sequence[int], size: int, width: int) -> bool:
    """Whether ``size`` bytes with these dims are a single number of shape ()."""
    return list(dims) in ([], [0]) and size == width


def read_tensors(stream: BinaryIO, entries: Iterable[StoredTensor]) -> dict[str, torch.Tensor]:
    """The tensors by name, each in aligned memory of its own, on the CPU.

    Raises Malformed when the file has become shorter meanwhile.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for entry in entries:
        tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
        raw = tensor.reshape(-1).view(torch.uint8)
        rest = raw.numpy().data
        for start, stop in entry.spans:
            stream.seek(start)
            if stream.readinto(rest[: stop - start]) != stop - start:  # type: ignore[attr-defined]
                raise Malformed(f"ended within '{entry.name}' while it was read")
            rest = rest[stop - start :]
        if entry.dtype == "bool" and bool((raw > 1).any()):
            raise Malformed(f"'{entry.name}' holds bytes that are neither true nor false")
        tensors[entry.name] = tensor
    return tensors
