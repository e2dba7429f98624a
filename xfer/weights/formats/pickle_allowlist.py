"""The names that a pickle of tensors may ask for. Narrower than torch's own list, which has
callables that take as much memory as they are told to."""

from __future__ import annotations

REBUILD = {
    "torch._utils._rebuild_tensor": 4,
    "torch._utils._rebuild_tensor_v2": 6,
    "torch._utils._rebuild_tensor_v3": 7,
}
"""What makes a tensor of a storage, and its least number of arguments."""

CALLABLE = frozenset(
    {
        *REBUILD,
        "torch._utils._rebuild_parameter",
        "torch.serialization._get_layout",
        "torch.Size",
        "torch.device",
        "collections.OrderedDict",
        "collections.Counter",
        "builtins.set",
        "builtins.complex",
        "_codecs.encode",
    }
)

WIDTHS = {
    **{"uint8": 1, "int8": 1, "bool": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4},
    **{"int64": 8, "uint64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8},
    **{"float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1},
    **{"float8_e8m0fnu": 1, "complex32": 4, "complex64": 8, "complex128": 16},
}
"""Bytes an element, by dtype."""

_STORAGES = {
    **{"Byte": 1, "Char": 1, "Bool": 1, "Short": 2, "Int": 4, "Long": 8, "Half": 2},
    **{"BFloat16": 2, "Float": 4, "Double": 8, "ComplexFloat": 8, "ComplexDouble": 16},
}
STORAGES = {
    "torch.storage.UntypedStorage": 1,
    "torch.UntypedStorage": 1,
    **{f"torch.{n}Storage": width for n, width in _STORAGES.items()},
    **{f"torch.cuda.{n}Storage": width for n, width in _STORAGES.items()},
}
"""Bytes an element, by the name of the storage class."""

DTYPES = {f"torch.{name}": width for name, width in WIDTHS.items()}
NAMES = frozenset({*CALLABLE, *STORAGES, *DTYPES})
"""Everything that a pickle may name."""

QUANTISED = ("torch._utils._rebuild_qtensor", "torch.per_", "torch.qint", "torch.quint", "torch.Q")
UNUSUAL = (
    "torch._utils._rebuild_sparse",
    "torch._utils._rebuild_meta",
    "torch._utils._rebuild_wrapper",
    "torch._utils._rebuild_device",
    "torch._utils._rebuild_nested",
    "torch.distributed.tensor.",
)
"""How the names of tensors begin that are no plain numbers."""

OPCODES = frozenset(
    "APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD "
    "EMPTY_DICT EMPTY_LIST EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK "
    "NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE SETITEM SETITEMS SHORT_BINSTRING STOP TUPLE "
    "TUPLE1 TUPLE2 TUPLE3".split()
)
"""What torch's safe reader of pickles knows."""
