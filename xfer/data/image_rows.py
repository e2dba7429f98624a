"""The rows of a listing as columns: what an image is called, its class, split, group and folds.

An :class:`xfer.data.options.ImageRow` a million times is a third of a gigabyte; as columns it is
the bytes of the names and some ten beside them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt

from xfer.core.text_columns import Picked, Texts
from xfer.data.options import SPLITS, ImageRow

Positions = npt.NDArray[np.integer]

T = TypeVar("T")
_SPLITS = ("", *SPLITS)
_NO_FOLD = -1


@dataclass(frozen=True, eq=False)
class ImageRows(Sequence[ImageRow]):
    """A sequence of rows; an :class:`ImageRow` is made of one when it is asked for.

    ``names`` and ``groups`` are texts a row (no groups where nothing is grouped), ``kinds`` the
    names of the classes in the order in which they come, ``labels`` int32 (n,) positions in them,
    ``splits`` int8 (n,) positions in an empty name, train, val and test, ``folds`` int64
    (n, repeats), -1 for a row that is in none, and ``at`` int32 (n,) which rows of the listing
    these are.
    """

    names: Sequence[str]
    kinds: tuple[str, ...]
    labels: npt.NDArray[np.int32]
    splits: npt.NDArray[np.int8]
    at: Positions
    groups: Sequence[str] = ()
    folds: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(cls, rows: Iterable[ImageRow]) -> ImageRows:
        """The columns of ``rows``, which may come one by one."""
        if isinstance(rows, ImageRows):
            return rows
        columns = _Columns()
        names = Texts(columns.name_of(row) for row in rows)
        groups = Texts(columns.groups) if any(columns.groups) else ()
        labels = np.array(columns.labels, np.int32)
        splits = np.array(columns.splits, np.int8)
        at = np.arange(len(names), dtype=np.int32)
        return cls(names, tuple(columns.kinds), labels, splits, at, groups)

    def __len__(self) -> int:
        return len(self.at)

    @overload
    def __getitem__(self, index: int) -> ImageRow: ...

    @overload
    def __getitem__(self, index: slice) -> ImageRows: ...

    def __getitem__(self, index: int | slice) -> ImageRow | ImageRows:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        label, split = self.kinds[self.labels[index]], _SPLITS[self.splits[index]]
        group = self.groups[index] if self.groups else ""
        folds = () if self.folds is None else tuple(self.folds[index].tolist())
        return ImageRow(self.names[index], label, split, group, () if _NO_FOLD in folds else folds)

    def __iter__(self) -> Iterator[ImageRow]:
        return (self[i] for i in range(len(self)))

    @property
    def given(self) -> set[str]:
        """The splits that there are, an empty name for rows that have none yet."""
        return {_SPLITS[code] for code in np.unique(self.splits)}

    @property
    def pairs(self) -> set[tuple[str, str]]:
        """Every (split, class) that there is an image of."""
        codes = enumerate(_SPLITS)
        return {(name, kind) for i, name in codes for kind in self.counts(self.splits == i)}

    def in_split(self, *splits: str) -> npt.NDArray[np.bool_]:
        """Which rows are in one of ``splits``, (n,)."""
        return np.isin(self.splits, [_SPLITS.index(split) for split in splits])

    def counts(self, where: npt.NDArray[np.bool_] | None = None) -> dict[str, int]:
        """Images by class, of all rows or those ``where``; no class without one."""
        labels = self.labels if where is None else self.labels[where]
        numbers = np.bincount(labels, minlength=len(self.kinds)).tolist()
        return {kind: n for kind, n in zip(self.kinds, numbers, strict=True) if n}

    def take(self, positions: Positions) -> ImageRows:
        """The rows at ``positions``; the names are not copied."""
        if len(positions) == len(self) and np.array_equal(positions, np.arange(len(self))):
            return self
        return replace(
            self,
            names=Picked(self.names, positions),
            labels=self.labels[positions],
            splits=self.splits[positions],
            at=self.at[positions],
            groups=Picked(self.groups, positions) if self.groups else (),
            folds=None if self.folds is None else self.folds[positions],
        )

    def relabelled(self, called: Callable[[str], str]) -> ImageRows:
        """The rows with other names of their classes; classes that get one name become one."""
        kinds = tuple(dict.fromkeys(map(called, self.kinds)))
        if kinds == self.kinds:
            return self
        code = np.array([kinds.index(called(kind)) for kind in self.kinds], np.int32)
        return replace(self, kinds=kinds, labels=code[self.labels])

    def moved(self, positions: Positions, splits: Positions) -> ImageRows:
        """The rows, those at ``positions`` in the splits of these codes."""
        codes = self.splits.copy()
        codes[positions] = splits
        return replace(self, splits=codes)


class _Columns:
    """The columns of rows that come one by one, but for their names."""

    def __init__(self) -> None:
        self.kinds: dict[str, int] = {}
        self.groups: list[str] = []
        self.labels, self.splits = array("i"), array("b")

    def name_of(self, row: ImageRow) -> str:
        """The name of the next row, whose other cells are noted."""
        self.labels.append(self.kinds.setdefault(row.label, len(self.kinds)))
        if row.group or self.groups:
            self.groups += [""] * (len(self.splits) - len(self.groups))
            self.groups.append(row.group)
        self.splits.append(_SPLITS.index(row.split))
        return row.name


def code_of(split: str) -> int:
    """The code of a split in :attr:`ImageRows.splits`."""
    return _SPLITS.index(split)


def by_position(rows: ImageRows, places: Mapping[str, T] | Sequence[T]) -> Sequence[T]:
    """What lies at each row: by name, or by the position in the listing."""
    if isinstance(places, Mapping):
        return [places[name] for name in rows.names]
    return Picked(places, rows.at) if len(rows) != len(places) else places
