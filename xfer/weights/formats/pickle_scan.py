"""What a pickle would do, found out without doing it: no name in it is ever looked up.

A stack machine over :func:`pickletools.genops` that keeps descriptions in place of objects. It
is run before torch reads the file, because torch allocates what a pickle declares, and hashes
what it nests, before anything is checked.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, BinaryIO

# What a pickle of tensors may name is narrower than torch's own list, which has callables that
# take as much memory as they are asked for.
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

STEPS = 300_000
"""The most opcodes and elements visited: 1700 parameters with Adam's memory, at 42 a tensor."""
DEPTH = 64


class TooMuch(Exception):
    """The pickle is longer or deeper than any file of weights."""


class Name(str):
    """A dotted name that the pickle asks for."""


@dataclass(slots=True)
class PickleNode:
    """Something that the pickle makes. ``weight`` counts what a walk through it would visit."""

    kind: str
    items: Sequence[Any] = ()
    weight: int = 1
    depth: int = 1

    def grow(self, values: Iterable[Any]) -> None:
        """Put ``values`` inside."""
        for value in values:
            if isinstance(value, PickleNode):
                self.weight = min(self.weight + value.weight, 1 << 60)
                self.depth = max(self.depth, value.depth + 1)
            else:
                self.weight += 1 + len(value) // 16 if isinstance(value, str | bytes) else 1
        if self.depth > DEPTH:
            raise TooMuch(f"nests deeper than {DEPTH} levels")


@dataclass(frozen=True)
class Stored:
    """A storage that a tensor points to; ``width`` is in bytes an element."""

    key: str
    width: int
    nbytes: int


@dataclass
class Demands:
    """What the pickles ask for: forbidden ``names``, opcodes that torch's safe reader lacks
    (``unread``), bytes by storage key (``stored``), the bytes that all tensors show together
    (``spread``), and whether one shows more than is stored (``stretched``)."""

    names: list[str] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    stored: dict[str, int] = field(default_factory=dict)
    spread: int = 0
    stretched: bool = False

    def name(self, what: str) -> None:
        """Note something forbidden, once; the first few say enough."""
        if len(self.names) < 20 and what[:120] not in self.names:
            self.names.append(what[:120])


class Machine:
    """Runs pickles, one after the other, and notes in ``demands`` what they want."""

    def __init__(self) -> None:
        self.demands = Demands()
        self.steps = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> None:
        """One pickle, up to its STOP. Raises ValueError and its like for malformed ones,
        TooMuch for those that are too long or too deep."""
        self.stack, self.memo = [], {}
        for op, arg, _ in pickletools.genops(stream):
            self._spend(1)
            if op.name not in OPCODES:
                self.demands.unread.add(op.name)
            act = _ACTIONS.get(op.name)
            if act is None:
                self.stack.append(arg)
            else:
                act(self, arg)

    def _spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > STEPS:
            raise TooMuch(f"takes more than {STEPS} steps, far more than tensors need")

    def _to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def _last(self, count: int) -> list[Any]:
        items = self.stack[-count:] if count else []
        if len(items) < count or any(item is _MARK for item in items):
            raise ValueError("a pickle's stack is empty")
        del self.stack[len(self.stack) - count :]
        return items

    def make(self, kind: str, values: list[Any]) -> None:
        """Push a new ``kind`` of ``values``, which only tuples keep."""
        self._spend(1)
        node = PickleNode(kind, values if kind == "tuple" else ())
        if values:
            node.grow(values)
        self.stack.append(node)

    def put(self, values: list[Any], keys: bool) -> None:
        """Put ``values`` into the container on the stack; ``keys`` of a mapping are hashed."""
        for key in values[::2] if keys else []:
            self._spend(key.weight if isinstance(key, PickleNode) else 0)
            if isinstance(key, int) and abs(key) >> 61:
                raise ValueError("a pickle has numbers as keys that share one hash")
        if not isinstance(self.stack[-1], PickleNode):
            raise ValueError("a pickle fills what is no container")
        self.stack[-1].grow(values)

    def remember(self, place: int | None) -> None:
        """Note the top of the stack under ``place``, or the next free one."""
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def ask(self, module: object, name: object) -> None:
        """Push a name, and note it when it is forbidden."""
        self._spend(3)
        if not (isinstance(module, str) and isinstance(name, str)):
            self.demands.name("a name that it computes")
            self.stack.append(Name("?"))
            return
        # Pickles of protocol 2 carry Python 2's names.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = Name(f"{module}.{name}")
        if full not in NAMES:
            self.demands.name(full)
        self.stack.append(full)

    def create(self, way: str, callee: object, arguments: list[Any]) -> None:
        """Push what a call gives. Only REDUCE of a known callable is fit for tensors."""
        if not isinstance(callee, Name):
            self.demands.name("a call of what it made itself")
        elif callee in NAMES and (way != "REDUCE" or callee not in CALLABLE):
            self.demands.name(f"a call of {callee}")
        given = arguments[0] if way == "REDUCE" else None
        # The arguments with which protocol 2 writes bytes.
        latin = isinstance(given, PickleNode) and given.items[1:] in (["latin1"], ["latin-1"])
        if callee == "_codecs.encode" and not latin:
            self.demands.name("_codecs.encode to another encoding than latin1")
        if isinstance(callee, Name) and callee in REBUILD:
            self.stack.append(self._tensor(callee, given))
        elif callee == "torch._utils._rebuild_parameter" and isinstance(given, PickleNode):
            self.stack.append(given.items[0])
        else:
            node = PickleNode(str(callee))
            node.grow(arguments)
            self._spend(node.weight)
            self.stack.append(node)

    def build(self) -> None:
        """Attributes for the object on the stack; dictionaries carry their ``_metadata`` so."""
        (state,) = self._last(1)
        target = self.stack[-1]
        if not (isinstance(target, PickleNode) and target.kind == "collections.OrderedDict"):
            self.demands.name(f"attributes of a {getattr(target, 'kind', type(target).__name__)}")
        else:
            target.grow([state])

    def store(self) -> None:
        """Replace the description of a storage by the storage."""
        (pid,) = self._last(1)
        items = pid.items if isinstance(pid, PickleNode) else ()
        if len(items) < 5 or items[0] != "storage" or items[1] not in STORAGES:
            raise ValueError("a pickle points to data in an unknown way")
        width, key, numbers = STORAGES[items[1]], str(items[2]), items[4]
        if not isinstance(numbers, int) or numbers < 0:
            raise ValueError(f"storage {key} has no size")
        nbytes = width * numbers
        if self.demands.stored.setdefault(key, nbytes) != nbytes:
            raise ValueError(f"storage {key} has two sizes")
        self.stack.append(Stored(key, width, nbytes))

    def _tensor(self, callee: str, given: object) -> PickleNode:
        items = given.items if isinstance(given, PickleNode) else ()
        if len(items) < REBUILD[callee] or not isinstance(items[0], Stored):
            raise ValueError("a tensor has no storage")
        size = items[2].items if isinstance(items[2], PickleNode) else (-1,)
        if not all(type(n) is int and n >= 0 for n in size):
            raise ValueError("a tensor has no shape")
        width = DTYPES.get(items[6], 1) if callee.endswith("_v3") else items[0].width
        nbytes = prod(size) * width
        self.demands.spread += nbytes
        self.demands.stretched |= nbytes > items[0].nbytes
        return PickleNode("tensor")


_MARK = object()
_Action = Callable[[Machine, Any], None]


def _made(kind: str, count: int | None) -> _Action:
    """Make a ``kind`` of the last ``count`` values, or of those since the mark."""
    return lambda m, _: m.make(kind, m._to_mark() if count is None else m._last(count))


def _filled(count: int | None, keys: bool = False) -> _Action:
    return lambda m, _: m.put(m._to_mark() if count is None else m._last(count), keys)


def _called(way: str, count: int) -> _Action:
    def act(machine: Machine, _: Any) -> None:
        callee, *arguments = machine._last(count)
        machine.create(way, callee, arguments)

    return act


def _inst(machine: Machine, arg: str) -> None:
    arguments = machine._to_mark()
    machine.ask(*arg.split(" ", 1))
    machine.create("INST", machine.stack.pop(), arguments)


def _obj(machine: Machine, _: Any) -> None:
    callee, *arguments = machine._to_mark()
    machine.create("OBJ", callee, arguments)


def _extension(machine: Machine, code: int) -> None:
    machine.demands.name(f"the registry of extensions (code {code})")
    machine.stack.append(Name("?"))


def _persistent(machine: Machine, arg: Any) -> None:
    raise ValueError("a pickle points to data in an unknown way")


_ACTIONS: dict[str, _Action] = {
    **{"PROTO": lambda m, _: None, "FRAME": lambda m, _: None, "STOP": lambda m, _: None},
    "MARK": lambda m, _: m.stack.append(_MARK),
    **{"EMPTY_TUPLE": _made("tuple", 0), "TUPLE1": _made("tuple", 1)},
    **{"TUPLE2": _made("tuple", 2), "TUPLE3": _made("tuple", 3), "TUPLE": _made("tuple", None)},
    **{"EMPTY_LIST": _made("list", 0), "EMPTY_DICT": _made("dict", 0)},
    **{"EMPTY_SET": _made("set", 0), "LIST": _made("list", None), "DICT": _made("dict", None)},
    "FROZENSET": _made("set", None),
    **{"APPEND": _filled(1), "APPENDS": _filled(None), "ADDITEMS": _filled(None)},
    **{"SETITEM": _filled(2, True), "SETITEMS": _filled(None, True)},
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, at: m.stack.append(m.memo[at])),
    **{"POP": lambda m, _: m._last(1).clear(), "POP_MARK": lambda m, _: m._to_mark().clear()},
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "GLOBAL": lambda m, arg: m.ask(*arg.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.ask(*m._last(2)),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _extension),
    **{"REDUCE": _called("REDUCE", 2), "NEWOBJ": _called("NEWOBJ", 2)},
    **{"NEWOBJ_EX": _called("NEWOBJ_EX", 3), "INST": _inst, "OBJ": _obj},
    "BUILD": lambda m, _: m.build(),
    **{"BINPERSID": lambda m, _: m.store(), "PERSID": _persistent},
}
