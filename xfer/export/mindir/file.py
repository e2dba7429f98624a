"""A MindIR file, put together message by message; nothing of MindSpore is needed.

Field numbers are those of MindSpore's ``mind_ir.proto``. ``mind_ir_version`` is 1, the one that
every MindSpore from 2.0 to 2.10 reads. Layers are tensors first, then nodes in the order in which
they run; parameters feed operators directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xfer.core.protobuf import chunk, number, real, text
from xfer.core.types import Array

Value = bool | int | float | str | np.dtype[Any] | tuple["Value", ...] | list["Value"]
Dims = tuple[int, ...]

_FLOAT, _INT64, _STRING, _BOOL, _TENSORS, _TUPLE, _LIST = 1, 7, 8, 9, 19, 20, 21
KINDS = {"float32": 1, "int32": 6, "int64": 7, "bool": 9}
"""The types of tensors that are written, and their numbers in the format."""
FLOAT32 = np.dtype(np.float32)
_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
_INPUTS = {
    **dict.fromkeys(("Erf", "GeLU", "HSigmoid", "HSwish", "MaxPool", "Pad"), "x"),
    **dict.fromkeys(("ReLU", "ReLU6", "Sigmoid", "Softmax"), "x"),
    **dict.fromkeys(("Add", "Mul", "RealDiv", "Sub"), "x y"),
    **dict.fromkeys(("BatchMatMul", "MatMul"), "x1 x2"),
    **dict.fromkeys(_REDUCTIONS, "input_x axis"),
    **{"BiasAdd": "x b", "Conv2D": "x w", "Reshape": "tensor shape", "Tile": "x multiples"},
    **{"Slice": "x begin size", "StridedSlice": "x begin end strides", "Transpose": "x perm"},
    **{"Gather": "params indices axis", "PadV3": "x paddings constant_value"},
}
"""What MindSpore calls the inputs of a primitive; without an entry the file does not say."""
GRAPH = "net"
"""The graph's name, which stands before the names of its parameters."""


@dataclass
class MindIrFile:
    """Collects one graph; names are given by the caller or made here."""

    nodes: list[bytes] = field(default_factory=list)
    parameters: list[bytes] = field(default_factory=list)
    primitives: dict[bytes, str] = field(default_factory=dict)
    constants: dict[tuple[type, Value], str] = field(default_factory=dict)

    def parameter(self, name: str, values: Array) -> str:
        """Weights in the file, of one of KINDS. Returns the name that operators call them by."""
        called = f"{GRAPH}:{name}"
        little = values.dtype.newbyteorder("<")
        self.parameters.append(
            _tensor(values.shape, values.dtype)
            + text(7, called)
            + chunk(9, values.astype(little, order="C").tobytes())
            + text(13, name)
            + number(16, 0)
        )
        return called

    def constant(self, value: Value) -> str:
        """A number or a tuple that an operator takes as an input."""
        key = (type(value), value)
        if key not in self.constants:
            name = self.constants[key] = f"{GRAPH}:const_{len(self.constants)}"
            attribute = chunk(5, _attribute("value", value))
            self.nodes.append(text(2, name) + text(3, name) + text(4, "Constant") + attribute)
        return self.constants[key]

    def operator(
        self,
        name: str,
        inputs: Sequence[str],
        dims: Dims | list[Dims],
        kind: np.dtype[Any] = FLOAT32,
        **attributes: Any,
    ) -> str:
        """One call of a primitive. ``dims`` is the shape of what comes out, -1 where it follows
        the batch; a list of shapes for a tuple of tensors. Returns the output's name."""
        if name in _INPUTS:
            names = {"input_names": _INPUTS[name].split()}
            output = "y" if name in _REDUCTIONS or name == "PadV3" else "output"
            attributes |= names | {"output_names": [output]}
        # The file holds a primitive once with exactly these attributes.
        facts = b"".join(chunk(3, _attribute(key, value)) for key, value in attributes.items())
        primitive = self.primitives.setdefault(
            text(2, name) + facts, f"{name}:{len(self.primitives)}"
        )
        output = f"{GRAPH}:{name}_{len(self.nodes)}"
        self.nodes.append(
            b"".join(text(1, each) for each in inputs)
            + text(2, output)
            + text(3, output)
            + text(4, f"REF::{primitive}")
            + chunk(5, _abstract(dims, kind))
            + text(7, f"Default/{name}-op{len(self.nodes)}")
        )
        return output

    def dump(
        self, entry: tuple[str, Dims], answer: tuple[str, Dims], facts: Mapping[str, str]
    ) -> bytes:
        """The whole file. ``entry`` and ``answer`` are name and shape of the graph's input and
        output; ``facts`` go into ``user_info``."""
        graph = (
            [chunk(1, node) for node in self.nodes]
            + [text(2, GRAPH)]
            + [chunk(3, parameter) for parameter in self.parameters]
            + [chunk(5, _value_info(*entry)), chunk(6, _value_info(*answer))]
        )
        primitives = [
            chunk(12, text(1, name) + facts + text(4, "") + number(5, 1))
            for facts, name in self.primitives.items()
        ]
        head = text(1, "0.1.1") + text(2, "MindSpore") + text(5, "2.0.0")
        information = [chunk(14, text(1, key) + text(2, value)) for key, value in facts.items()]
        whole = [head, chunk(7, b"".join(graph)), number(10, 1), *primitives, number(13, 1)]
        return b"".join(whole + information)


def _tensor(dims: Sequence[int], kind: np.dtype[Any]) -> bytes:
    return b"".join(number(1, dim) for dim in dims) + number(2, KINDS[kind.name])


def _value_info(name: str, dims: Dims) -> bytes:
    return text(1, name) + chunk(2, _tensor(dims, FLOAT32))


def _abstract(dims: Dims | list[Dims], kind: np.dtype[Any]) -> bytes:
    if isinstance(dims, list):
        members = b"".join(
            chunk(17, chunk(12, _tensor(each, kind)) + number(16, _TENSORS)) for each in dims
        )
        return text(1, "shape") + number(16, _TUPLE) + members + chunk(18, number(1, 0))
    return text(1, "shape") + chunk(12, _tensor(dims, kind)) + number(16, _TENSORS)


def _attribute(name: str, value: Value) -> bytes:
    return text(1, name) + _content(value)


def _content(value: Value) -> bytes:
    if isinstance(value, bool):
        return number(3, value) + number(16, _BOOL)
    if isinstance(value, int):
        return number(3, value) + number(16, _INT64)
    if isinstance(value, float):
        return real(2, value) + number(16, _FLOAT)
    if isinstance(value, str):
        return text(5, value) + number(16, _STRING)
    if isinstance(value, np.dtype):
        return chunk(12, number(2, KINDS[value.name]) + text(7, "value0")) + number(16, _TENSORS)
    kind = _TUPLE if isinstance(value, tuple) else _LIST
    return number(16, kind) + b"".join(chunk(17, _member(each)) for each in value)


def _member(value: Value) -> bytes:
    """An element of a tuple or list: numbers and strings stand in the repeated fields."""
    if isinstance(value, int):
        return number(10, value) + number(16, _INT64)
    if isinstance(value, str):
        return text(11, value) + number(16, _STRING)
    return _content(value)
