"""Many texts, and parts of long sequences, without an object an entry.

A Python string takes some 80 bytes for a name of 30, and a list of them 8 more; of a million
images that is more than all that a run computes from them. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from operator import eq
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

T = TypeVar("T")
_AT_ONCE = 1 << 10  # texts that are encoded or positions that are looked up in one go
_SMALL = 1 << 32  # bytes that four of an offset are enough for


class Texts(Sequence[str]):
    """A sequence of texts that never changes, as UTF-8 in one block: an entry takes its bytes and
    4, or 8 where all of them are more than 4 GiB. Names of files that are no UTF-8 are what they
    were. It equals any sequence of the same texts; a slice is a :class:`Picked`."""

    def __init__(self, texts: Iterable[str]) -> None:
        data, ends, total = bytearray(), [np.zeros(1, np.int64)], 0
        remaining = iter(texts)
        while some := [t.encode("utf-8", "surrogateescape") for t in islice(remaining, _AT_ONCE)]:
            data += b"".join(some)
            ends.append(total + np.cumsum([len(text) for text in some], dtype=np.int64))
            total = len(data)
            ends[-1] = ends[-1].astype(np.uint32) if total < _SMALL else ends[-1]
        self._data = data
        self._ends = np.concatenate([part.astype(ends[-1].dtype, copy=False) for part in ends])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Picked[str]: ...

    def __getitem__(self, index: int | slice) -> str | Picked[str]:
        if isinstance(index, slice):
            return Picked(self, np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        at = index % len(self)
        start, end = int(self._ends[at]), int(self._ends[at + 1])
        return self._data[start:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            for start, end in pairwise(self._ends[first : first + _AT_ONCE + 1].tolist()):
                yield self._data[start:end].decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        return same_entries(self, other)

    def __repr__(self) -> str:
        return _shown(self)


class Picked(Sequence[T]):
    """The entries of ``source`` at the positions ``at``, int (n,): nothing of it is copied. It
    equals any sequence of the same entries."""

    def __init__(self, source: Sequence[T], at: npt.NDArray[np.integer]) -> None:
        if isinstance(source, Picked):
            earlier: Picked[T] = source
            source, at = earlier.source, earlier.at[at]
        self.source: Sequence[T] = source
        self.at: npt.NDArray[np.integer] = (
            at.astype(np.int32, copy=False) if len(source) < 1 << 31 else at
        )

    def __len__(self) -> int:
        return len(self.at)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Picked[T]: ...

    def __getitem__(self, index: int | slice) -> T | Picked[T]:
        if isinstance(index, slice):
            return Picked(self.source, self.at[index])
        return self.source[int(self.at[index])]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self.at), _AT_ONCE):
            for position in self.at[start : start + _AT_ONCE].tolist():
                yield self.source[position]

    def __eq__(self, other: object) -> bool:
        return same_entries(self, other)

    def __repr__(self) -> str:
        return _shown(self)


class Made(Sequence[T]):
    """``count`` entries, each made by ``entry`` of its position when it is asked for. It equals any
    sequence of the same entries."""

    def __init__(self, count: int, entry: Callable[[int], T]) -> None:
        self._count, self.entry = count, entry

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Picked[T]: ...

    def __getitem__(self, index: int | slice) -> T | Picked[T]:
        if isinstance(index, slice):
            return Picked(self, np.arange(self._count)[index])
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self.entry(index % self._count)

    def __eq__(self, other: object) -> bool:
        return same_entries(self, other)

    def __repr__(self) -> str:
        return _shown(self)


def repeated(texts: Sequence[str], times: int) -> Sequence[str]:
    """``texts``, ``times`` after each other."""
    return Picked(texts, np.tile(np.arange(len(texts), dtype=np.int32), times))


def same_entries(one: Sequence[T], other: object) -> bool:
    """What ``one == other`` is for a sequence that equals any other of the same entries."""
    if not isinstance(other, Sequence) or isinstance(other, str | bytes):
        return False
    if one is other:
        return True
    return len(one) == len(other) and all(bool(eq(a, b)) for a, b in zip(one, other, strict=True))


def _shown(some: Sequence[object]) -> str:
    more = ", ..." if len(some) > 3 else ""
    return f"({', '.join(map(repr, some[:3]))}{more})"
