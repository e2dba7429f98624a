"""MindSpore's ``.ckpt``, of 1.x and 2.x, and its ``.safetensors``, read without MindSpore.

A ``.ckpt`` is a message ``Checkpoint { repeated Value value = 1 }`` with ``Value { string tag =
1; TensorProto tensor = 2; MapTensorProto maptensor = 3 }`` and ``TensorProto { repeated int64 dims
= 1; string tensor_type = 2; bytes tensor_content = 3 }``, and maybe a checksum after it. A
``.safetensors`` is an ordinary one, with MindSpore's names and maybe a checksum.
"""

from __future__ import annotations

import math
import mmap
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from xfer.core.errors import WeightsError
from xfer.core.protobuf import BYTES, LONGEST_TEXT, VARINT, Field, Malformed, Wire
from xfer.core.types import Plain, StateDict
from xfer.weights.content import Content
from xfer.weights.formats.safetensors_file import load
from xfer.weights.mindspore.tensors import (
    MOST_DIMS,
    WIDTHS,
    StoredTensor,
    Unsupported,
    is_scalar,
    opened,
    read_tensors,
    stored_tensor,
)
from xfer.weights.mindspore.training_state import sorted_out

if TYPE_CHECKING:
    import torch

FORMAT = "MindSpore checkpoint"
SAFETENSORS_FORMAT = "MindSpore safetensors"
_VALUE = {1: (BYTES, 1), 2: (BYTES, 1), 3: (BYTES, 1)}
_TENSOR = {1: (VARINT, MOST_DIMS), 2: (BYTES, 1), 3: (BYTES, 1)}
_MARK, _TRAILER = b"crc_num", 17
_CHUNK = 1 << 20
_STARTS = (b"\x12\x08", b"\x12\x12", b"\x1a\x0a")
"""What follows the tag of a value, without lengths: a tensor with dims, one without, a map."""


@dataclass(slots=True)
class _Run:
    """A parameter as it is written: above 512 MiB in several adjacent values, each with all
    dims and a piece of the content."""

    tag: str
    kind: str
    dims: list[int]
    spans: list[tuple[int, int]]


def is_mindspore_ckpt(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that starts with ``head``, a few hundred bytes of it, is
    a MindSpore checkpoint, whole or cut off."""
    wire, end = Wire(head), len(head)
    try:
        length, at = wire.varint(1, end)
        tag, start = wire.varint(at + 1, end)
        inner = start + tag
        if (head[0], head[at : at + 1]) != (0x0A, b"\n") or not 0 < tag <= LONGEST_TEXT:
            return False
        if not head[start:inner].decode(errors="ignore").isprintable():
            return False
        if inner >= end:
            return at + length <= size
        content, first = wire.varint(inner + 1, end)
        starts = head[inner : inner + 1] + head[first : first + 1]
        return starts in _STARTS and first + content == at + length
    except Malformed:
        return False


def read(path: Path) -> Content:
    """The weights of a checkpoint by MindSpore's names, apart from what training left beside
    them. Entries of one name that are not adjacent: the last counts, as in MindSpore.

    Adds as much memory as the file has bytes. Raises WeightsError when the file is damaged, its
    checksum is wrong, it is encrypted, or it holds no weights.
    """
    facts: Plain = {}
    with opened(path, FORMAT) as stream:
        end = _end(stream, path)
        if end < path.stat().st_size:
            facts["crc"] = "verified"
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            runs, repeated = _runs(Wire(data), end)
        if repeated:
            facts["repeated"] = repeated
        texts = {run.tag: "text" for run in runs if run.kind == "str"}
        entries = [_stored(run) for run in runs if run.kind != "str"]
        tensors = read_tensors(stream, entries)
    return sorted_out(path, FORMAT, tensors, texts, facts)


def _end(stream: BinaryIO, path: Path) -> int:
    """Where the message ends: before the checksum, if there is one, which must then be right."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _TRAILER))
    trailer = stream.read(_TRAILER)
    if not trailer.startswith(_MARK) or len(trailer) < _TRAILER:
        return size
    end, crc = size - _TRAILER, 0
    stream.seek(0)
    for start in range(0, end, _CHUNK):
        crc = zlib.crc32(stream.read(min(_CHUNK, end - start)), crc)
    if crc != int.from_bytes(trailer[len(_MARK) :], "big"):
        raise _wrong_checksum(path)
    return end


def _runs(wire: Wire, end: int) -> tuple[list[_Run], list[str]]:
    """What is written under each name, and the names that come again later."""
    runs: dict[str, _Run] = {}
    repeated: dict[str, None] = {}
    before: _Run | None = None
    for field in wire.fields(0, end):
        if field.number != 1:
            raise Malformed(f"unknown field {field.number} (at byte {field.start})")
        run = _value(wire, field)
        if before is not None and run.tag == before.tag:
            if (run.kind, run.dims) != (before.kind, before.dims):
                raise Malformed(f"two pieces of '{run.tag}' differ in type or shape")
            before.spans += run.spans
        else:
            if run.tag in runs:
                repeated[run.tag] = None
            runs[run.tag] = before = run
    return list(runs.values()), list(repeated)


def _value(wire: Wire, whole: Field) -> _Run:
    value = wire.message(whole, _VALUE, strict=True)
    if 1 not in value or (2 not in value and 3 not in value):
        raise Malformed(f"an entry without name or tensor (at byte {whole.start})")
    tag = wire.text(value[1][0])
    if not tag:
        raise Malformed(f"an entry without name (at byte {whole.start})")
    if 3 in value:
        raise Unsupported(
            f"its entry '{tag}' is a hash table (MapParameter)", "save the network without it"
        )
    tensor = wire.message(value[2][0], _TENSOR, strict=True)
    if 2 not in tensor or 3 not in tensor:
        raise Malformed(f"'{tag}' has no type or no content")
    kind, content = wire.text(tensor[2][0]).lower(), tensor[3][0]
    dims = [dim.signed() for dim in tensor.get(1, [])]
    return _Run(tag, kind, dims, [(content.start, content.stop)])


def _stored(run: _Run) -> StoredTensor:
    if run.kind == "int4":
        raise Unsupported(
            f"its entry '{run.tag}' is quantised to 4 bits", "save the network as it was before"
        )
    if run.kind not in WIDTHS:
        raise Malformed(f"'{run.tag}' is of the unknown type '{run.kind}'")
    dtype, size = run.kind, run.spans[0][1] - run.spans[0][0]
    # Old writers kept float32 under BFloat16.
    wide = size == 4 * math.prod(run.dims) or is_scalar(run.dims, size, 4)
    if dtype == "bfloat16" and size and wide:
        dtype = "float32"
    return stored_tensor(run.tag, dtype, run.dims, run.spans)


def read_safetensors(path: Path) -> Content:
    """The weights by MindSpore's names, apart from what training left beside them.

    Raises WeightsError when the file is damaged, its checksum is wrong, or it has no weights,
    SafetyError when its header is larger than any network needs.
    """
    tensors, metadata = load(path)
    packed = [name for name in tensors if metadata.get(name) == "Int4"]
    if packed:
        what = f"its entry '{packed[0]}' is quantised to 4 bits"
        raise WeightsError(path, what, "save the network as it was before", 63)
    facts: Plain = {"crc": "verified"} if _has_checksum(tensors, metadata, path) else {}
    return sorted_out(path, SAFETENSORS_FORMAT, tensors, {}, facts)


def _has_checksum(state: StateDict, metadata: Mapping[str, str], path: Path) -> bool:
    """Whether there is a checksum. Raises WeightsError when it is wrong.

    It runs over name and bytes of each tensor, by sorted name.
    """
    if "crc_num" not in metadata:
        return False
    # `bytes` of a 0-d numpy integer n, which MindSpore takes, is n zero bytes, not n itself.
    for zeros in (False, True):
        crc = 0
        for name in sorted(state):
            crc = zlib.crc32(_raw(state[name], zeros), zlib.crc32(name.encode(), crc))
        if str(crc) == metadata["crc_num"]:
            return True
    raise _wrong_checksum(path)


def _raw(tensor: torch.Tensor, zeros: bool) -> bytes | memoryview:
    import torch

    whole = not tensor.is_floating_point() and tensor.dtype != torch.bool
    if zeros and tensor.ndim == 0 and whole and 0 <= int(tensor) <= 1 << 20:
        return bytes(int(tensor))
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _wrong_checksum(path: Path) -> WeightsError:
    what = "its bytes do not match its checksum"
    return WeightsError(path, what, "fetch it again", 62)
