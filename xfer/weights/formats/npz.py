"""numpy's .npz: arrays by name, each measured against its header before it is read."""

from __future__ import annotations

import tokenize
import warnings
import zipfile
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from xfer.core.errors import SafetyError, WeightsError
from xfer.core.types import Array
from xfer.weights.content import Content
from xfer.weights.formats.detect import NPZ
from xfer.weights.formats.zip_check import BROKEN, damaged, members

if TYPE_CHECKING:
    import torch

_ODD = (*BROKEN, TypeError, SyntaxError, tokenize.TokenError)
"""What numpy was seen to raise on damaged headers, beside what zipfile raises."""


def read_npz(path: Path) -> Content:
    """Tensors by name, on the CPU, in the order of the file; arrays of text are asides.

    Raises WeightsError when it is cut or damaged or an array is of no number, SafetyError when it
    holds Python objects, which only a pickle can bring back, or unpacks to more than it may.
    """
    import numpy as np
    import torch

    state: dict[str, torch.Tensor] = {}
    asides: dict[str, str] = {}
    for member in members(path):
        name = member.filename.removesuffix(".npy")
        try:
            array = _array(path, name, member)
        except _ODD as error:
            raise damaged(path, f"its array '{name[:60]}': {error}") from error
        if array is None:
            asides[name] = "an array of text"
            continue
        try:
            native = array.astype(array.dtype.newbyteorder("="), copy=False)
            state[name] = torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))
        except TypeError as error:
            what = f"its array '{name[:60]}' is of dtype {array.dtype}"
            raise WeightsError(path, what, "save floats", 95) from error
    return Content(NPZ, state, asides)


def _array(path: Path, name: str, member: zipfile.ZipInfo) -> Array | None:
    """The array, or ``None`` when it is of text."""
    from numpy.lib import format as npy

    headers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
        with archive.open(member) as stream:
            # Evaluates the header as a literal, of at most 10 000 characters.
            shape, _, dtype = headers[npy.read_magic(stream)](stream)
            size = member.file_size - stream.tell()
        if dtype.hasobject:
            what = f"its array '{name[:60]}' holds Python objects, which are pickles"
            raise SafetyError(path, what, "save arrays of numbers: numpy.savez(...)", 27)
        if prod(shape) * dtype.itemsize != size:
            raise ValueError(f"shape {shape} does not fit its {size} bytes")
        if dtype.kind in "SU":
            return None
        with archive.open(member) as stream:
            array: Array = npy.read_array(stream, allow_pickle=False)
            if stream.read(1):  # at the end the checksum is compared
                raise ValueError("is longer than its header says")
        return array
