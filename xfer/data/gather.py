"""From rows to a data set: images opened, hashed and told about."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.data.loading import SPLITS, Row
from xfer.errors import printable
from xfer.images import Arrays, Files, scan
from xfer.types import Dataset, Images, Samples

if TYPE_CHECKING:
    import numpy.typing as npt

_IMBALANCED = 10  # largest class over smallest
_FEW = 30  # images


def of_files(rows: list[Row], root: Path, remarks: Iterable[str] = ()) -> Dataset:
    """The image files ``root / name``, every one read. Raises DataError for broken ones."""
    paths = [root / row.name for row in rows]
    return _gather(rows, paths, scan(paths, root), lambda some: Files(tuple(some)), remarks)


def of_arrays(
    rows: list[Row], pixels: Mapping[str, npt.NDArray[np.uint8]], remarks: Iterable[str] = ()
) -> Dataset:
    """Grey pictures by name, uint8 (height, width), all of one size."""
    arrays = [pixels[row.name] for row in rows]
    hashes = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    return _gather(rows, arrays, hashes, lambda some: Arrays(np.stack(some)), remarks)


def _gather(
    rows: list[Row],
    items: Sequence[Any],
    hashes: list[str],
    images: Callable[[list[Any]], Images],
    remarks: Iterable[str],
) -> Dataset:
    classes = tuple(sorted({row.label for row in rows}))
    index = {label: i for i, label in enumerate(classes)}
    splits: dict[str, Samples] = {}
    for split in SPLITS:
        picked = [i for i, row in enumerate(rows) if row.split == split]
        if picked:
            splits[split] = Samples(
                names=tuple(rows[i].name for i in picked),
                labels=np.array([index[rows[i].label] for i in picked], np.int64),
                images=images([items[i] for i in picked]),
                sha256=_fingerprint((rows[i], hashes[i]) for i in picked),
            )
    return Dataset(classes, splits, (*remarks, *_remarks(rows, hashes)))


def _fingerprint(rows: Iterable[tuple[Row, str]]) -> str:
    total = hashlib.sha256()
    for row, digest in rows:
        line = f"{row.name}\0{row.label}\0{digest}\n"
        total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _remarks(rows: list[Row], hashes: list[str]) -> list[str]:
    counts = Counter(row.label for row in rows)
    (most, many), *_, (least, few) = counts.most_common()
    val = sum(row.split == "val" for row in rows)
    found = []
    if many > _IMBALANCED * few:
        found.append(f"classes are imbalanced: {many} images of '{most}', {few} of '{least}'")
    if 0 < val < _FEW:
        found.append(f"val has {val} images: each is {100 / val:.1f} points of accuracy")
    return [printable(remark) for remark in found + _twins(rows, hashes)]


def _twins(rows: list[Row], hashes: list[str]) -> list[str]:
    """Files of the same bytes on both sides of a split make a score too good."""
    trained = {
        digest: row.name for row, digest in zip(rows, hashes, strict=True) if row.split == "train"
    }
    pairs = [
        (row.name, trained[digest])
        for row, digest in zip(rows, hashes, strict=True)
        if row.split != "train" and digest in trained
    ]
    if not pairs:
        return []
    held, twin = pairs[0]
    return [f"held-out images that are also in train: {len(pairs)} ('{held}' is '{twin}')"]
