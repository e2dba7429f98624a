"""The parameters of a ``.mindir``, MindSpore's graph format, read without MindSpore.

``ModelProto { string ir_version = 1; string model_version = 5; GraphProto graph = 7; bool
little_endian = 10 }``, ``GraphProto { repeated TensorProto parameter = 3; repeated MapTensorProto
map_parameter = 10 }``, ``TensorProto { repeated int64 dims = 1; int32 data_type = 2; string name
= 7; bytes raw_data = 9; ExternalDataProto external_data = 12; string ref_key = 13; int32
compression_type = 16 }``. The operators are not looked at.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from xfer.core.protobuf import BYTES, VARINT, Field, Malformed, Wire
from xfer.core.types import Plain
from xfer.weights.content import Content
from xfer.weights.mindspore.tensors import (
    MOST_DIMS,
    StoredTensor,
    Unsupported,
    opened,
    read_tensors,
    stored_tensor,
)
from xfer.weights.mindspore.training_state import sorted_out

FORMAT = "MindIR file"
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
    17: "float64",
}  # fmt: skip
_TENSOR = {
    1: (VARINT, MOST_DIMS), 2: (VARINT, 1), 7: (BYTES, 1), 9: (BYTES, 1), 12: (BYTES, 1),
    13: (BYTES, 1), 16: (VARINT, 1),
}  # fmt: skip


def is_mindir(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that starts with ``head``, a few hundred bytes of it, is
    a MindIR file, whole or cut off."""
    wire, at = Wire(head), 0
    texts: dict[int, bytes] = {}
    try:
        while at < len(head):
            key, start = wire.varint(at, len(head))
            length, start = wire.varint(start, len(head))
            number, at = key >> 3, start + length
            if key & 7 != BYTES or number > 7:
                return False
            if number == 7:
                known = texts.get(2) == b"MindSpore" or at <= size
                return known and texts.get(1, b"").replace(b".", b"").isdigit()
            texts[number] = head[start:at]
    except Malformed:
        pass
    return False


def read(path: Path) -> Content:
    """The parameters by MindSpore's names, apart from what training left beside them.

    Adds as much memory as the file has bytes. Raises WeightsError when the file is damaged or
    encrypted, keeps its parameters elsewhere, or has none.
    """
    with opened(path, FORMAT) as stream:
        size = path.stat().st_size
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            wire = Wire(data)
            graph, facts = _model(wire, size)
            parameters: dict[str, StoredTensor] = {}
            for field in wire.fields(graph.start, graph.stop):
                if field.number == 10:
                    fix = "export the network without it"
                    raise Unsupported("has a hash table (MapParameter)", fix)
                if field.number == 3:
                    parameter = _parameter(wire, field)
                    if parameter.name in parameters:
                        raise Malformed(f"two parameters are called '{parameter.name}'")
                    parameters[parameter.name] = parameter
        tensors = read_tensors(stream, parameters.values())
    return sorted_out(path, FORMAT, tensors, {}, facts)


def _model(wire: Wire, size: int) -> tuple[Field, Plain]:
    graph: Field | None = None
    facts: Plain = {}
    for field in wire.fields(0, size):
        if field.number in (1, 5):
            facts[{1: "ir_version", 5: "model_version"}[field.number]] = wire.text(field)
        elif field.number == 7:
            if graph is not None:
                raise Malformed("it has two graphs")
            graph = field.expect(BYTES)
        elif field.number == 10 and not field.expect(VARINT).value:
            raise Unsupported("is of a big-endian machine", "export it on another machine")
    if graph is None or "ir_version" not in facts:
        raise Malformed("it has no version or no graph")
    return graph, facts


def _parameter(wire: Wire, whole: Field) -> StoredTensor:
    tensor = wire.message(whole, _TENSOR, strict=False)
    if 13 not in tensor and 7 not in tensor:
        raise Malformed(f"a parameter without a name (at byte {whole.start})")
    # The name is that of the node, `graph:parameter`; the key is the parameter's own.
    name = wire.text(tensor[13][0]) if 13 in tensor else wire.text(tensor[7][0]).split(":")[-1]
    if 12 in tensor:
        raise Unsupported(
            f"keeps its parameters in other files ('{name}' and more)",
            "export the network again as one file, or save it as .ckpt",
            64,
        )
    if 16 in tensor and tensor[16][0].value:
        raise Unsupported(f"its parameter '{name}' is compressed", "export it uncompressed")
    kind = tensor[2][0].value if 2 in tensor else 0
    if kind not in _TYPES:
        raise Malformed(f"'{name}' is of the unknown type {kind}")
    if 9 not in tensor:
        raise Malformed(f"'{name}' has no data")
    dims = [dim.signed() for dim in tensor.get(1, [])]
    return stored_tensor(name, _TYPES[kind], dims, [(tensor[9][0].start, tensor[9][0].stop)])
