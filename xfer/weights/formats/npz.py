"""numpy's .npz: arrays by name, each measured against its header before it is read."""

from __future__ import annotations

import re
import zipfile
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING

from xfer.core.errors import SafetyError, WeightsError
from xfer.weights.content import Content, Shape
from xfer.weights.formats.detect import NPZ
from xfer.weights.formats.zip_check import BROKEN, damaged, members

if TYPE_CHECKING:
    import numpy as np
    import torch

    from xfer.core.types import Array

_ODD = (*BROKEN, TypeError)
HEADER = 10_000
"""The longest header of an array, in characters."""
# The three facts of a header, which is the text of a Python dictionary.
_FACTS = (
    r"""['"]descr['"]\s*:\s*['"]([<>|=]?[A-Za-z]\d{0,9}(?:\[\w{1,9}\])?)['"]""",
    r"""['"]fortran_order['"]\s*:\s*(True|False)""",
    r"""['"]shape['"]\s*:\s*\(((?:\s*\d{1,19}L?\s*,?)*)\s*\)""",
)


def read_npz(path: Path) -> Content:
    """Tensors by name, on the CPU, in the order of the file; arrays of text are asides.

    Raises WeightsError when it is cut or damaged or an array is of no number, SafetyError when it
    holds Python objects, which only a pickle can bring back, or unpacks to more than it may.
    """
    found = members(path)
    state: dict[str, torch.Tensor] = {}
    asides: dict[str, str] = {}
    for member in found:
        name = member.filename.removesuffix(".npy")
        try:
            with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
                array = _array(path, name, stream, member.file_size)
        except _ODD as error:
            raise damaged(path, f"its array '{name[:60]}': {error}") from error
        if array is None:
            asides[name] = "an array of text"
        else:
            state[name] = _tensor(path, name, array)
    return Content(NPZ, state, asides)


def _array(path: Path, name: str, stream: IO[bytes], size: int) -> Array | None:
    """The array, or ``None`` when it is of text."""
    import numpy as np

    shape, fortran, dtype = _header(stream)
    if dtype.hasobject:
        raise SafetyError(
            path,
            f"its array '{name[:60]}' holds Python objects, which are pickles",
            "save arrays of numbers: numpy.savez(...)",
            27,
        )
    needed = prod(shape) * dtype.itemsize
    if needed != size - stream.tell():
        raise ValueError(f"shape {shape} does not fit its {size} bytes")
    if dtype.kind in "SU":
        return None
    data = bytearray(needed)
    _fill(stream, memoryview(data))
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _header(stream: IO[bytes]) -> tuple[Shape, bool, np.dtype]:
    """Shape, Fortran order and dtype. numpy's own reader evaluates this text; it need not be."""
    import numpy as np

    start = stream.read(8)
    width = {(1, 0): 2, (2, 0): 4, (3, 0): 4}.get((start[6], start[7]), 0)
    length = int.from_bytes(stream.read(width), "little")
    if start[:6] != b"\x93NUMPY" or not 0 < length <= HEADER:
        raise ValueError("does not begin as numpy's arrays do")
    text = stream.read(length).decode("latin-1")
    found = [re.search(pattern, text) for pattern in _FACTS]
    if len(text) < length or not all(found):
        raise ValueError("has no dtype and shape of plain numbers")
    descr, order, shape = (str(f.group(1)) for f in found if f)
    sizes = tuple(int(n.rstrip("L ")) for n in shape.split(",") if n.strip())
    return sizes, order == "True", np.dtype(descr)


def _fill(stream: IO[bytes], place: memoryview) -> None:
    """Read exactly ``place``, then the end, where the checksum is compared."""
    done = 0
    while done < len(place):
        part = stream.read(min(len(place) - done, 1 << 20))
        if not part:
            raise ValueError("ends too early")
        place[done : done + len(part)] = part
        done += len(part)
    if stream.read(1):
        raise ValueError("is longer than its header says")


def _tensor(path: Path, name: str, array: Array) -> torch.Tensor:
    import numpy as np
    import torch

    try:
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))
    except TypeError as error:
        raise WeightsError(
            path, f"its array '{name[:60]}' is of dtype {array.dtype}", "save floats", 95
        ) from error
