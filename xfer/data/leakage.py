"""Images on both sides of a split, which make a score too good, and images in two classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xfer.core.errors import DataError
from xfer.core.text_columns import Entries, Picked
from xfer.data.image_hash import MOST, alike
from xfer.data.image_rows import ImageRows
from xfer.data.options import Loading

Digests = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_SHOWN = 5
_PARTS = 64  # of all digests, by their first byte: so many are compared after each other
_KINDS = ("same bytes", "looks alike")


def in_one_line(texts: Iterable[str]) -> str:
    """The first of ``texts`` in one line."""
    shown = list(islice(texts, _SHOWN + 1))
    return "; ".join(shown[:_SHOWN]) + ("; ..." if len(shown) > _SHOWN else "")


class Leak(NamedTuple):
    """A held-out image and its twin in ``train``; ``kind`` is "same bytes" or "looks alike"."""

    held: str
    twin: str
    kind: str


@dataclass(frozen=True, eq=False)
class Leaks(Entries[Leak]):
    """The leaks among images that are called ``names``: ``pairs`` int32 (n, 2) are the positions of
    a held-out image and its twin, the first ``copies`` of them of the same bytes."""

    names: Sequence[str]
    pairs: npt.NDArray[np.int32]
    copies: int

    def __len__(self) -> int:
        return len(self.pairs)

    def entry(self, index: int) -> Leak:
        """See :meth:`xfer.core.text_columns.Entries.entry`."""
        held, twin = self.pairs[index].tolist()
        looks = int(index >= self.copies)
        return Leak(self.names[held], self.names[twin], _KINDS[looks])


NO_LEAKS = Leaks((), np.empty((0, 2), np.int32), 0)


def compare(
    rows: ImageRows, digests: Digests, looks: Sequence[str], how: Loading, where: object
) -> tuple[Leaks, list[str]]:
    """Every held-out image that is in ``train`` too, by its bytes (``digests``, the sha256 uint8
    (n, 32)) or its looks (see :mod:`xfer.data.image_hash`; empty where there are none to compare),
    and remarks on them and on images in two classes; nothing where ``how`` ignores it.

    Raises DataError for the same bytes on both sides where ``how`` says so.
    """
    if how.leakage == "ignore":
        return NO_LEAKS, []
    inside = rows.in_split("train")
    twin = same_bytes(digests, inside)
    copies = np.flatnonzero(~inside & (twin >= 0)).astype(np.int32)
    pairs = np.column_stack([copies, twin[copies]])
    same = Leaks(rows.names, pairs, len(pairs))
    shown = in_one_line(f"'{leak.held}' is '{leak.twin}'" for leak in same)
    if same and how.leakage == "error":
        what = f"{len(same)} held-out images are also in train: {shown}"
        raise DataError(where, what, "remove one of each pair, or set data.leakage=warn", 40)
    lines = [f"held-out images that are also in train: {len(same)} ({shown})"] if same else []
    near, near_lines = _near(rows, looks, inside, ~inside & (twin < 0))
    del twin, copies  # of a million images, they are in the way
    lines += [*near_lines, *_torn_apart(rows, looks, inside)]
    both = Leaks(rows.names, np.concatenate([pairs, near]) if len(near) else pairs, len(pairs))
    return both, [*lines, *_conflicts(rows, digests)]


def same_bytes(digests: Digests, among: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """The first of the images ``among`` (n,) that has the same bytes as each image, int32 (n,): -1
    where there is none. ``digests`` are their sha256, uint8 (n, 32)."""
    twin = np.full(len(digests), -1, np.int32)
    parts = digests[:, 0] % _PARTS
    for part in range(_PARTS):
        inside = parts == part
        # Those among come first, so that each run of equal ones begins with the first of them.
        at = np.concatenate([np.flatnonzero(inside & among), np.flatnonzero(inside & ~among)])
        keys = np.ascontiguousarray(digests[at]).view("V32").ravel()
        order = np.argsort(keys, kind="stable")
        begins = np.ones(len(order), bool)
        begins[1:] = keys[order[1:]] != keys[order[:-1]]
        first = at[order[np.flatnonzero(begins)]][np.cumsum(begins) - 1]
        twin[at[order]] = np.where(among[first], first, -1)
    return twin


def _near(
    rows: ImageRows, looks: Sequence[str], inside: Mask, outside: Mask
) -> tuple[npt.NDArray[np.int32], list[str]]:
    none = NO_LEAKS.pairs
    if not looks:
        return none, []
    if (count := int(inside.sum()) * int(outside.sum())) > MOST:
        return none, [f"images that look alike were not searched for: {count} pairs are too many"]
    train, held = np.flatnonzero(inside), np.flatnonzero(outside)
    near = alike(Picked(looks, held), Picked(looks, train))
    pairs = np.column_stack([held[near[:, 0]], train[near[:, 1]]]).astype(np.int32)
    leaks = Leaks(rows.names, pairs, 0)
    shown = in_one_line(f"'{leak.held}' is '{leak.twin}'" for leak in leaks)
    what = "pairs of a held-out and a training image that look alike"
    return leaks.pairs, [f"{what}: {len(leaks)} ({shown})"] if leaks else []


def _torn_apart(rows: ImageRows, looks: Sequence[str], inside: Mask) -> list[str]:
    """A remark where training images that look alike are in different folds, which makes the score
    of the folds too good."""
    if not looks or rows.folds is None:
        return []
    train = np.flatnonzero(inside)
    if (pairs := len(train) ** 2) > MOST:
        return [f"folds: images that look alike were not searched for: {pairs} pairs are too many"]
    seen, folds = Picked(looks, train), rows.folds[train, 0]
    apart = alike(seen, seen, lambda i, j: (i < j) & (folds[i] != folds[j]))
    if not len(apart):
        return []
    names = Picked(rows.names, train)
    shown = in_one_line(f"'{names[i]}' and '{names[j]}'" for i, j in apart)
    what = "pairs of images that look alike and are in different folds"
    return [f"{what}: {len(apart)} ({shown}); data.group holds them together"]


def _conflicts(rows: ImageRows, digests: Digests) -> list[str]:
    """A remark where the same bytes are in two classes: one of the labels is wrong."""
    twin = same_bytes(digests, np.ones(len(rows), bool))
    torn = np.flatnonzero(rows.labels[twin] != rows.labels)
    if not len(torn):
        return []
    names = (f"'{rows.names[i]}' is '{rows.names[int(twin[i])]}'" for i in map(int, torn))
    return [f"images that are in two classes: {len(torn)} ({in_one_line(names)})"]
