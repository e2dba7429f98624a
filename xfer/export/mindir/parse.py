"""A ``.mindir`` file as plain values: what the interpreter runs.

Only what MindIR's version 1 says in attributes of primitives is read; a file that holds more
(hash tables, subgraphs, other files) is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xfer.core.protobuf import BYTES, FIXED32, Field, Malformed, Wire
from xfer.core.types import Array

MOST_FIELDS = 5_000_000
_TUPLES = (20, 21)
_KINDS = {1: "<f4", 6: "<i4", 7: "<i8", 9: "?"}


class _Tensor(NamedTuple):
    """Shape and type of a tensor; of a type alone the shape is empty."""

    dims: tuple[int, ...]
    kind: np.dtype[Any]


@dataclass(frozen=True)
class Call:
    """One operator. ``dims`` and ``kind`` are what the file says comes out, None for a tuple."""

    primitive: str
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    output: str
    dims: tuple[int, ...] | None
    kind: np.dtype[Any] | None


@dataclass(frozen=True)
class Program:
    """The calls in order, with weights and constants by name."""

    calls: tuple[Call, ...]
    tensors: dict[str, Array]
    constants: dict[str, Any]
    entry: str
    answer: str
    facts: dict[str, str]


def read(path: Path) -> Program:
    """The program in ``path``. Raises Malformed for what is no such file."""
    data = path.read_bytes()
    wire = Wire(data)
    wire.left = MOST_FIELDS
    whole = _fields(wire, None, len(data))
    if _number(whole, 13) != 1:
        raise Malformed(f"mind_ir_version is {_number(whole, 13)}, not 1")
    primitives = dict(_primitive(wire, each) for each in whole.get(12, ()))
    graph = _fields(wire, whole[7][0])
    tensors = dict(_parameter(wire, each) for each in graph.get(3, ()))
    calls: list[Call] = []
    constants: dict[str, Any] = {}
    for node in (_fields(wire, each) for each in graph[1]):
        output, kind = wire.text(node[2][0]), wire.text(node[4][0])
        _, value = _attribute(wire, node[5][0])
        if kind == "Constant":
            constants[output] = value
            continue
        primitive, attributes = primitives[kind.removeprefix("REF::")]
        inputs = tuple(wire.text(each) for each in node[1])
        dims, sort = value if isinstance(value, _Tensor) else (None, None)
        calls.append(Call(primitive, attributes, inputs, output, dims, sort))
    entry, answer = (wire.text(_fields(wire, graph[key][0])[1][0]) for key in (5, 6))
    return Program(tuple(calls), tensors, constants, entry, answer, _facts(wire, whole))


def _fields(wire: Wire, whole: Field | None, size: int = 0) -> dict[int, list[Field]]:
    start, stop = (whole.expect(BYTES).start, whole.stop) if whole else (0, size)
    found: dict[int, list[Field]] = {}
    for field in wire.fields(start, stop):
        found.setdefault(field.number, []).append(field)
    return found


def _number(message: dict[int, list[Field]], key: int) -> int:
    return message[key][0].signed() if key in message else 0


def _facts(wire: Wire, whole: dict[int, list[Field]]) -> dict[str, str]:
    pairs = (_fields(wire, each) for each in whole.get(14, ()))
    return {
        wire.text(pair[1][0]): bytes(wire.data[pair[2][0].start : pair[2][0].stop]).decode()
        for pair in pairs
    }


def _parameter(wire: Wire, whole: Field) -> tuple[str, Array]:
    message = _fields(wire, whole)
    dims, kind = _tensor(message)
    raw = message[9][0]
    values = np.frombuffer(wire.data, kind, (raw.stop - raw.start) // kind.itemsize, raw.start)
    return wire.text(message[7][0]), values.reshape(dims)


def _tensor(message: dict[int, list[Field]]) -> _Tensor:
    if _number(message, 2) not in _KINDS:
        raise Malformed(f"a tensor of type {_number(message, 2)}")
    dims = tuple(dim.signed() for dim in message.get(1, ()))
    return _Tensor(dims, np.dtype(_KINDS[_number(message, 2)]))


def _primitive(wire: Wire, whole: Field) -> tuple[str, tuple[str, dict[str, Any]]]:
    message = _fields(wire, whole)
    attributes = dict(_attribute(wire, each) for each in message.get(3, ()))
    return wire.text(message[1][0]), (wire.text(message[2][0]), attributes)


def _attribute(wire: Wire, whole: Field) -> tuple[str, Any]:
    message = _fields(wire, whole)
    return wire.text(message[1][0]), _value(wire, message)


def _value(wire: Wire, message: dict[int, list[Field]], depth: int = 0) -> Any:
    kind = _number(message, 16)
    if kind in _TUPLES and depth < 3:
        return tuple(_value(wire, _fields(wire, each), depth + 1) for each in message.get(17, ()))
    if kind == 19:  # shape and type of a tensor, or a type alone
        return _tensor(_fields(wire, message[12][0]))
    if kind == 8:
        return wire.text((message.get(5) or message[11])[0])
    if kind == 7:
        return (message.get(3) or message[10])[0].signed()
    if kind == 9:
        return bool(_number(message, 3))
    if kind == 1:
        field = message[2][0].expect(FIXED32)
        return struct.unpack("<f", wire.data[field.start : field.stop])[0]
    raise Malformed(f"an attribute of type {kind}")
