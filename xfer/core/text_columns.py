"""Many texts, and parts of long sequences, without an object an entry.

A Python string takes some 80 bytes for a name of 30, and a list of them 8 more; of a million
images that is more than all that a run computes from them. No torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import islice, pairwise
from operator import eq
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
_AT_ONCE = 1 << 10  # texts that are encoded or positions that are looked up in one go
_SORTED = 1 << 16  # texts that are sorted in one go
_SMALL = 1 << 32  # bytes that four of an offset are enough for


class Entries(Sequence[T], ABC):
    """A sequence that never changes and makes an entry when it is asked for. It equals any sequence
    of the same entries; a slice is a :class:`Picked`."""

    @abstractmethod
    def entry(self, index: int) -> T:
        """The entry at ``index``, which is at least 0 and below the length."""

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Picked[T]: ...

    def __getitem__(self, index: int | slice) -> T | Picked[T]:
        if isinstance(index, slice):
            return Picked(self, np.arange(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.entry(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str | bytes):
            return False
        if self is other:
            return True
        return len(self) == len(other) and all(map(eq, self, other))

    def __repr__(self) -> str:
        more = ", ..." if len(self) > 3 else ""
        return f"({', '.join(map(repr, self[:3]))}{more})"


class Texts(Entries[str]):
    """A sequence of texts that never changes, as UTF-8 in one block: an entry takes its bytes and
    4, or 8 where all of them are more than 4 GiB. Names of files that are no UTF-8 are what they
    were."""

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

    def entry(self, index: int) -> str:
        """See :meth:`Entries.entry`."""
        start, end = int(self._ends[index]), int(self._ends[index + 1])
        return self._data[start:end].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            for start, end in pairwise(self._ends[first : first + _AT_ONCE + 1].tolist()):
                yield self._data[start:end].decode("utf-8", "surrogateescape")


def in_order(texts: Iterable[str]) -> Texts:
    """``texts``, sorted, of which few are strings at any time."""
    remaining = iter(texts)
    runs = list(iter(lambda: Texts(sorted(islice(remaining, _SORTED))), ()))
    return runs[0] if len(runs) == 1 else Texts(merge(*runs))


class Picked(Entries[T]):
    """The entries of ``source`` at the positions ``at``, int (n,): nothing of it is copied."""

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

    def entry(self, index: int) -> T:
        """See :meth:`Entries.entry`."""
        return self.source[int(self.at[index])]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self.at), _AT_ONCE):
            for position in self.at[start : start + _AT_ONCE].tolist():
                yield self.source[position]


class Made(Entries[T]):
    """``count`` entries, each made by ``make`` of its position when it is asked for."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    def entry(self, index: int) -> T:
        """See :meth:`Entries.entry`."""
        return self._make(index)


def repeated(texts: Sequence[str], times: int) -> Sequence[str]:
    """``texts``, ``times`` after each other."""
    return Picked(texts, np.tile(np.arange(len(texts), dtype=np.int32), times))
