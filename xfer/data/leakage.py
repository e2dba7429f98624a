"""Images on both sides of a split, which make a score too good, and images in two classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xfer.core.errors import DataError
from xfer.data.image_hash import MOST, alike
from xfer.data.options import ImageRow, Loading

_SHOWN = 5


def first_few(texts: Sequence[str]) -> str:
    """The first of ``texts`` in one line."""
    return "; ".join(texts[:_SHOWN]) + ("; ..." if len(texts) > _SHOWN else "")


class Leak(NamedTuple):
    """A held-out image and its twin in ``train``; ``kind`` is "same bytes" or "looks alike"."""

    held: str
    twin: str
    kind: str


def compare(
    rows: Sequence[ImageRow],
    hashes: Sequence[str],
    looks: Sequence[str],
    how: Loading,
    where: object,
) -> tuple[list[Leak], list[str]]:
    """Every held-out image that is in ``train`` too, by its bytes or its looks (see
    :mod:`xfer.data.image_hash`; empty where there are none to compare), and remarks on them and
    on images in two classes; nothing where ``how`` ignores it.

    Raises DataError for the same bytes on both sides where ``how`` says so.
    """
    if how.leakage == "ignore":
        return [], []
    train = [i for i, row in enumerate(rows) if row.split == "train"]
    held = [i for i, row in enumerate(rows) if row.split != "train"]
    first = {hashes[i]: rows[i].name for i in reversed(train)}
    copies = [i for i in held if hashes[i] in first]
    same = [Leak(rows[i].name, first[hashes[i]], "same bytes") for i in copies]
    shown = first_few([f"'{leak.held}' is '{leak.twin}'" for leak in same])
    if same and how.leakage == "error":
        what = f"{len(same)} held-out images are also in train: {shown}"
        raise DataError(where, what, "remove one of each pair, or set data.leakage=warn", 40)
    lines = [f"held-out images that are also in train: {len(same)} ({shown})"] if same else []
    near, near_lines = _near(rows, looks, train, sorted({*held} - {*copies}))
    lines += [*near_lines, *_torn_apart(rows, looks, train)]
    return same + near, [*lines, *_conflicts(rows, hashes)]


def _near(
    rows: Sequence[ImageRow], looks: Sequence[str], train: Sequence[int], held: Sequence[int]
) -> tuple[list[Leak], list[str]]:
    if not looks:
        return [], []
    if (pairs := len(train) * len(held)) > MOST:
        return [], [f"images that look alike were not searched for: {pairs} pairs are too many"]
    leaks = [
        Leak(rows[held[i]].name, rows[train[j]].name, "looks alike")
        for i, j in alike([looks[i] for i in held], [looks[i] for i in train])
    ]
    shown = first_few([f"'{leak.held}' is '{leak.twin}'" for leak in leaks])
    what = "pairs of a held-out and a training image that look alike"
    return leaks, [f"{what}: {len(leaks)} ({shown})"] if leaks else []


def _torn_apart(rows: Sequence[ImageRow], looks: Sequence[str], train: Sequence[int]) -> list[str]:
    """A remark where training images that look alike are in different folds, which makes the score
    of the folds too good."""
    if not looks or not any(rows[i].folds for i in train):
        return []
    if (pairs := len(train) ** 2) > MOST:
        return [f"folds: images that look alike were not searched for: {pairs} pairs are too many"]
    some = [rows[i] for i in train]
    seen = [looks[i] for i in train]
    apart = [
        f"'{some[i].name}' and '{some[j].name}'"
        for i, j in alike(seen, seen)
        if i < j and some[i].folds[0] != some[j].folds[0]
    ]
    what = "pairs of images that look alike and are in different folds"
    return [f"{what}: {len(apart)} ({first_few(apart)}); data.group holds them together"] * bool(
        apart
    )


def _conflicts(rows: Sequence[ImageRow], hashes: Sequence[str]) -> list[str]:
    """A remark where the same bytes are in two classes: one of the labels is wrong."""
    first: dict[str, ImageRow] = {}
    pairs = []
    for row, digest in zip(rows, hashes, strict=True):
        twin = first.setdefault(digest, row)
        if twin.label != row.label:
            pairs.append(f"'{row.name}' is '{twin.name}'")
    return [f"images that are in two classes: {len(pairs)} ({first_few(pairs)})"] if pairs else []
