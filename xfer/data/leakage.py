"""Images on both sides of a split, which make a score too good, and images in two classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xfer.core.errors import DataError
from xfer.data.image_hash import MOST, alike
from xfer.data.options import Loading, Row

_SHOWN = 5


class Leak(NamedTuple):
    """A held-out image and its twin in ``train``; ``kind`` is "same bytes" or "looks alike"."""

    held: str
    twin: str
    kind: str


def leaks(rows: Sequence[Row], hashes: Sequence[str], looks: Sequence[str]) -> list[Leak]:
    """Every held-out image that is in ``train`` too, by its bytes or its looks (see
    :mod:`xfer.data.image_hash`; empty where there are none to compare)."""
    train = [i for i, row in enumerate(rows) if row.split == "train"]
    held = [i for i, row in enumerate(rows) if row.split != "train"]
    first = {hashes[i]: i for i in reversed(train)}
    found = [
        Leak(rows[i].name, rows[first[hashes[i]]].name, "same bytes")
        for i in held
        if hashes[i] in first
    ]
    if looks and len(train) * len(held) <= MOST:
        pairs = alike([looks[i] for i in held], [looks[i] for i in train])
        found += [
            Leak(rows[held[i]].name, rows[train[j]].name, "looks alike")
            for i, j in pairs
            if hashes[held[i]] not in first
        ]
    return found


def check(found: Sequence[Leak], how: Loading, where: object) -> None:
    """Raise DataError for the same bytes on both sides where ``leakage`` says so."""
    same = [leak for leak in found if leak.kind == "same bytes"]
    if same and how.leakage == "error":
        raise DataError(
            where,
            f"{len(same)} held-out images are also in train: {_pairs(same)}",
            "remove one of each pair, or set data.leakage=warn",
            40,
        )


def told(found: Sequence[Leak], compared: int) -> list[str]:
    """A remark for each kind; ``compared`` pairs of looks would have been to compare."""
    same = [leak for leak in found if leak.kind == "same bytes"]
    near = [leak for leak in found if leak.kind != "same bytes"]
    lines = []
    if same:
        lines.append(f"held-out images that are also in train: {len(same)} ({_pairs(same)})")
    if near:
        what = "pairs of a held-out and a training image that look alike"
        lines.append(f"{what}: {len(near)} ({_pairs(near)})")
    if compared > MOST:
        lines.append(f"images that look alike were not looked for: {compared} pairs are too many")
    return lines


def _pairs(found: Sequence[Leak]) -> str:
    shown = [f"'{leak.held}' is '{leak.twin}'" for leak in found[:_SHOWN]]
    return "; ".join(shown) + ("; ..." if len(found) > _SHOWN else "")


def conflicts(rows: Sequence[Row], hashes: Sequence[str]) -> list[str]:
    """A remark where the same bytes are in two classes: one of the labels is wrong."""
    first: dict[str, Row] = {}
    found = []
    for row, digest in zip(rows, hashes, strict=True):
        twin = first.setdefault(digest, row)
        if twin.label != row.label:
            found.append(f"'{row.name}' is '{twin.name}'")
    more = "; ..." if len(found) > _SHOWN else ""
    shown = "; ".join(found[:_SHOWN]) + more
    return [f"images that are in two classes: {len(found)} ({shown})"] if found else []
