"""Arrays in ``.npy`` and ``.npz`` files: where their rows lie, so that one is read by one call.

An ``.npy`` file and an uncompressed member of an ``.npz`` file have their rows one after another.
A compressed member (``np.savez_compressed``) is loaded whole, once in a process. Nothing is
unpickled.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from xfer.core.errors import DataError, printable
from xfer.core.files import open_to_read
from xfer.data.image_bytes import ImagePlace, read_span, span_stamp, stamp_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Shape = tuple[int, int, int]
"""Height, width and channels of pixels, uint8."""
_LOCAL_HEADER = 30  # bytes before the name, as PKWARE's APPNOTE has them
_LOADED_AT_ONCE = 3  # arrays: one a split


class ArrayFacts(NamedTuple):
    """An array in a file: its name there (``images.npy``, or a member of an ``.npz``), its shape
    and type, and the byte that it starts at, -1 where it is compressed."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @property
    def bytes(self) -> int:
        """Bytes of all numbers, unpacked."""
        return prod(self.shape) * self.dtype.itemsize

    def called(self, row: int) -> str:
        """The name of a row: ``images.npy#7``, or ``data.npz#images/7``."""
        inside = "" if self.file.suffix.lower() == ".npy" else f"{self.name}/"
        return f"{self.file.name}#{inside}{row}"

    def values(self) -> npt.NDArray[Any]:
        """The whole array. Raises DataError where it cannot be read."""
        import numpy as np

        try:
            if self.start < 0:
                return _unpacked(self.file, self.name, stamp_of(self.file.stat()))
            data, _ = read_span(self.file, self.start, self.bytes)
        except _BROKEN as error:
            raise unreadable(self.file, error) from error
        return np.frombuffer(data, self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class ArrayRow:
    """A picture in row ``row`` of an array of pixels, from the byte ``start`` of the file on; -1
    where the array is compressed. ``name`` is what the row is called."""

    file: Path
    array: str
    name: str
    row: int
    start: int
    shape: Shape

    def __str__(self) -> str:
        return f"{self.file.parent}/{self.name}"

    def read(self) -> tuple[bytes, str]:
        """See :meth:`xfer.data.image_bytes.PartOfFile.read`."""
        if self.start >= 0:
            return read_span(self.file, self.start, prod(self.shape))
        facts = self.file.stat()
        whole = _unpacked(self.file, self.array, stamp_of(facts))
        return whole[self.row].tobytes(), self._stamped(facts)

    def stamp(self) -> str:
        """See :meth:`xfer.data.image_bytes.PartOfFile.stamp`."""
        return self._stamped(self.file.stat())

    def _stamped(self, facts: os.stat_result) -> str:
        start = self.start if self.start >= 0 else self.row
        return span_stamp(facts, start, prod(self.shape))


def shape_of(place: ImagePlace) -> Shape | None:
    """The shape of what lies at ``place`` where it is pixels; ``None`` for an image file."""
    return place.shape if isinstance(place, ArrayRow) else None


_BROKEN = (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile)


def unreadable(path: Path, error: Exception) -> DataError:
    """The error about a file that holds no arrays, or whose arrays cannot be read."""
    reason = getattr(error, "strerror", None) or printable(error) or type(error).__name__
    what = f"cannot be read as an array of NumPy ({reason})"
    return DataError(path, what, "write it with np.save or np.savez", 33)


def arrays_in(path: Path) -> dict[str, ArrayFacts]:
    """The arrays in an ``.npz`` file, or that in an ``.npy`` file, by name without a suffix.

    Raises DataError for damaged files, for Python objects and for arrays in Fortran's order.
    """
    try:
        if path.suffix.lower() != ".npz":
            with open_to_read(path) as stream:
                facts = _facts(path, path.name, stream)
                if facts.start + facts.bytes > os.fstat(stream.fileno()).st_size:
                    raise ValueError("it ends before its numbers do")
            return {path.stem: facts}
        with open_to_read(path) as raw, zipfile.ZipFile(raw) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {
                info.filename.removesuffix(".npy"): _member(path, archive, info, raw)
                for info in members
            }
    except _BROKEN as error:
        raise unreadable(path, error) from error


def _member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, raw: IO[bytes]
) -> ArrayFacts:
    name = info.filename.removesuffix(".npy")
    with archive.open(info) as stream:
        facts = _facts(path, name, stream)
    if facts.start + facts.bytes != info.file_size:
        raise ValueError(f"'{name}' has other bytes than its header says")
    if info.compress_type != zipfile.ZIP_STORED:
        return facts._replace(start=-1)
    raw.seek(info.header_offset)
    local = raw.read(_LOCAL_HEADER)
    lengths = [int.from_bytes(local[at : at + 2], "little") for at in (26, 28)]
    begin = info.header_offset + _LOCAL_HEADER + sum(lengths) + facts.start
    if begin + facts.bytes > os.fstat(raw.fileno()).st_size:
        raise ValueError("it ends before its numbers do")
    return facts._replace(start=begin)


def _facts(path: Path, name: str, stream: IO[bytes]) -> ArrayFacts:
    """What the header of an array says. Raises ValueError for what cannot be read by rows."""
    from numpy.lib import format as layout

    version = layout.read_magic(stream)
    read = {(1, 0): layout.read_array_header_1_0, (2, 0): layout.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"'{name}' has a header of version {version[0]}")
    shape, fortran, dtype = read[version](stream)
    if dtype.hasobject:
        raise ValueError(f"'{name}' holds Python objects, which could run code")
    if fortran and len(shape) > 1:
        raise ValueError(f"'{name}' is in Fortran's order; save np.ascontiguousarray of it")
    return ArrayFacts(path, name, tuple(shape), dtype, stream.tell())


@lru_cache(_LOADED_AT_ONCE)
def _unpacked(path: Path, name: str, stamp: str) -> npt.NDArray[Any]:
    """A compressed array, loaded; once for each ``stamp`` of its file."""
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        array: npt.NDArray[Any] = archive[name]
    array.flags.writeable = False
    return array
