"""MindSpore's checkpoint, with its own names, written without MindSpore.

A file is a row of messages ``Value { string tag = 1; TensorProto tensor = 2 }`` with ``TensorProto
{ repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }``, which MindSpore
has read since 1.0.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from xfer.core.errors import ExportError
from xfer.core.protobuf import Malformed, Wire, chunk, number, text
from xfer.export.mindspore_names import back, chosen, difference, names
from xfer.export.parity import run_torch
from xfer.weights.mindspore.translate import DialectName

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from xfer.core.protobuf import Field
    from xfer.core.protocols import Runner
    from xfer.core.types import Array, Card, Plain

_TYPES = {"float32": "Float32", "int64": "Int64", "int32": "Int32", "bool": "Bool"}
_PIECE = 512 << 20  # MindSpore's own writer cuts longer tensors as well
_MARK, _CRC = b"crc_num", 10


@dataclass(frozen=True)
class MindSporeCkpt:
    """The trained weights under MindSpore's names, for MindSpore 1.x and 2.x and for
    ``source=mindspore``.

    ``dialect``: whose names; ``auto`` takes those of the weights' source, else of the model zoo or
    mindcv, whichever has this architecture, and ``plain`` are torch's but for gamma, beta and
    moving_*. ``crc``: the checksum of MindSpore 2.10, which 1.0 and 2.0 cannot read.
    """

    file: ClassVar[str] = "model.ckpt"

    dialect: DialectName = "auto"
    crc: bool = False

    def check(self, card: Card) -> None:
        """Raise ExportError when there are no names for the network of ``card``."""
        chosen(card, self.dialect)

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Write the state of ``net``; ``same_function`` says whether MindSpore's own network
        computes the same with it, or why not."""
        dialect = chosen(card, self.dialect)
        state, called = net.state_dict(), names(net, card, dialect)
        crc = 0
        with path.open("wb") as stream:
            for old, new in called.items():
                for value in _values(new, state[old].cpu().numpy()):
                    crc = zlib.crc32(value, crc)
                    stream.write(value)
            if self.crc:
                stream.write(_MARK + crc.to_bytes(_CRC, "big"))
        facts = {"dialect": dialect, "same_function": difference(net, card, dialect)}
        return {**facts, "tensors": len(called), "crc": self.crc}

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """The file's tensors, read back and under torch's names again, in a copy of ``net``."""
        import torch

        tensors = _read(path)
        model, theirs = deepcopy(net), back(net, list(tensors))
        state = {new: torch.from_numpy(tensors[old]) for old, new in theirs.items()}
        counters = {n: t for n, t in net.state_dict().items() if n not in state}
        model.load_state_dict({**counters, **state}, strict=True)
        # In the layout that the network itself is asked in.
        return run_torch(model.eval().to(memory_format=torch.channels_last))


def _values(name: str, values: Array) -> Iterator[bytes]:
    """The messages of one tensor, with all its dims in each."""
    if values.dtype.kind == "f":
        values = values.astype(np.float32)
    if str(values.dtype) not in _TYPES:
        what = f"'{name}' is {values.dtype}, which MindSpore's checkpoints do not hold"
        raise ExportError("mindspore_ckpt", what, "choose other formats, export=[...]", 33)
    # A scalar has the dims [0]: what MindSpore 1.x and 2.0 write, and all read.
    dims = b"".join(number(1, dim) for dim in values.shape or (0,))
    content = values.tobytes()
    for start in range(0, max(len(content), 1), _PIECE):
        piece = chunk(3, content[start : start + _PIECE])
        tensor = dims + text(2, _TYPES[str(values.dtype)]) + piece
        yield chunk(1, text(1, name) + chunk(2, tensor))


def _read(path: Path) -> dict[str, Array]:
    """Tensors by MindSpore's names. Raises Malformed for a file that is none of this writer's."""
    data = path.read_bytes()
    end = len(data) - len(_MARK) - _CRC
    if data[end:].startswith(_MARK) and end >= 0:
        if zlib.crc32(data[:end]) != int.from_bytes(data[end + len(_MARK) :], "big"):
            raise Malformed("its checksum is wrong")
    else:
        end = len(data)
    wire = Wire(data)
    pieces: dict[str, list[tuple[str, list[int], bytes]]] = {}
    for value in wire.fields(0, end):
        name, tensor = wire.fields(value.start, value.stop)
        pieces.setdefault(wire.text(name), []).append(_piece(wire, tensor))
    return {name: _joined(name, found) for name, found in pieces.items()}


def _piece(wire: Wire, whole: Field) -> tuple[str, list[int], bytes]:
    *dims, kind, content = wire.fields(whole.start, whole.stop)
    numbers = bytes(wire.data[content.start : content.stop])
    return wire.text(kind), [dim.signed() for dim in dims], numbers


def _joined(name: str, pieces: list[tuple[str, list[int], bytes]]) -> Array:
    kind, dims, _ = pieces[0]
    types = {written: known for known, written in _TYPES.items()}
    values = np.frombuffer(b"".join(piece for _, _, piece in pieces), types[kind])
    shape = () if dims == [0] else tuple(dims)
    if prod(shape) != values.size:
        raise Malformed(f"'{name}' has {values.size} numbers for the shape {shape}")
    return values.reshape(shape).copy()
