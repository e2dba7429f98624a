"""MindSpore's checkpoint, written without MindSpore, with the names that its networks have.

A file is a row of messages ``Value { string tag = 1; TensorProto tensor = 2 }`` with ``TensorProto
{ repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3 }``, which MindSpore
has read since 1.0.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from xfer.core.errors import ExportError, WeightsError, closest
from xfer.core.protobuf import Malformed, chunk, number, text
from xfer.core.protocols import Runner
from xfer.core.types import Array, Card, Plain
from xfer.export.metadata import library_of
from xfer.export.parity import run_torch
from xfer.weights.mindspore.translate import DialectName, renamed, shipped, suits, to_torch

if TYPE_CHECKING:
    import torch
    from torch import nn

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
    """whose names: ``auto`` takes those of the weights' source, else the first of the dialects
    that has this architecture; ``plain`` are torch's but for ``gamma``, ``beta`` and
    ``moving_*``"""
    crc: bool = False
    """the checksum that MindSpore 2.10 can verify; MindSpore 1.0 and 2.0 cannot read a file
    that has one"""

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
        """The file's tensors, read as ``source=mindspore`` reads them and under torch's names
        again, in a copy of ``net``."""
        import torch

        from xfer.weights.mindspore.ckpt import read

        try:
            tensors = read(path).state
        except WeightsError as error:
            raise Malformed(error.what) from error
        model = deepcopy(net)
        state = {new: tensors[old] for old, new in back(net, list(tensors)).items()}
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


WHERE = "export.mindspore_ckpt.dialect"
_PLAIN = f"type {WHERE}=plain for torch's names with gamma, beta and moving_*, or export=mindir"


def chosen(card: Card, asked: str) -> str:
    """The dialect to write in: ``asked``, or with ``auto`` that of the weights' source, else the
    first that has this architecture. Raises ExportError when there is none."""
    known = shipped()["dialects"]
    # A class of the user's own is no library that has maps.
    library = library_of(card) or str(card.backbone["_target_"])
    name = str(card.backbone.get("name", ""))
    fits = [str(dialect) for dialect, facts in known.items() if suits(facts, library, name)]
    if asked == "auto":
        source = card.compat.get("dialect")
        if source in fits:
            return str(source)
        if not fits:
            what = f"there is no map from {library}'s {name} to MindSpore's names"
            raise ExportError(WHERE, what, _PLAIN, 30)
        return fits[0]
    if asked not in known:
        raise ExportError(WHERE, f"'{asked}' is not a dialect", closest(asked, known), 31)
    if asked != "plain" and asked not in fits:
        what = (
            f"'{asked}' has the names of {known[asked]['about']}, which {library}'s {name} is not"
        )
        raise ExportError(WHERE, what, f"leave it out, or type {WHERE}=plain", 32)
    return asked


def difference(net: nn.Module, card: Card, dialect: str) -> str:
    """``yes`` when MindSpore's network of those names computes what ``net`` does, else why not."""
    from torch import nn

    facts = shipped()["dialects"][dialect]
    if dialect == "plain":
        return "as far as your own network with these names does"
    if card.compat.get("dialect") != dialect:
        settings = ", ".join(sorted(facts["compat"]))
        return f"no: MindSpore's own, {facts['about']}, has other settings ({settings})"
    activation = dict(net.named_modules()).get("classifier.2")
    if "squeezenet" in dialect and isinstance(activation, nn.Identity):
        return "no: MindSpore's own has a ReLU after the classifier, which cuts logits below zero"
    return "yes"


def names(net: nn.Module, card: Card, dialect: str) -> dict[str, str]:
    """MindSpore's name by torch's, for every tensor that MindSpore has: counters of batches are
    not among them."""
    from torch import nn

    facts, library = shipped()["dialects"][dialect], library_of(card)
    rules = [*facts.get("back_in", {}).get(library, ()), *facts.get("back", ())]
    words = {torch: mindspore for mindspore, torch in shipped()["suffixes"].items()}
    norms = nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm
    normed = {path for path, layer in net.named_modules() if isinstance(layer, norms)}
    theirs = {}
    for name in net.state_dict():
        path, _, last = name.rpartition(".")
        if last == "num_batches_tracked":
            continue
        new = renamed(name, rules)
        if path in normed:
            new = new[: -len(last)] + words.get(last, last)
        theirs[name] = new
    return theirs


def back(net: nn.Module, theirs: list[str]) -> dict[str, str]:
    """Torch's name by MindSpore's: those of the first dialect whose load map makes of ``theirs``
    the names of ``net``. Raises Malformed when none does."""
    want = {name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    for dialect in shipped()["dialects"]:
        for library in ("timm", "torchvision"):
            made = to_torch(theirs, dialect, library)
            if len(made) == len(want) and set(made.values()) == want:
                return made
    raise Malformed(f"its {len(theirs)} names do not become the network's")
