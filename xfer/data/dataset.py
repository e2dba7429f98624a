"""From rows to a data set: images opened, hashed and told about."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xfer.core.errors import DataError, printable
from xfer.core.types import Dataset, Images, Samples
from xfer.data.bit_depth import decide
from xfer.data.image import Arrays, Files
from xfer.data.leakage import check, conflicts, leaks, told
from xfer.data.options import SPLITS, Loading, Row
from xfer.data.scan import Facts, broken_files, examine

if TYPE_CHECKING:
    import numpy.typing as npt

_IMBALANCED = 10  # largest class over smallest
_FEW = 30  # images


def of_files(rows: list[Row], root: Path, how: Loading, remarks: Iterable[str] = ()) -> Dataset:
    """The image files ``root / name``, every one read.

    Raises DataError for broken ones, unless ``how`` skips them, and for leakage as it says.
    """
    found = examine([root / row.name for row in rows], root)
    kept, skipped = rows, list[str]()
    if how.on_bad == "skip":
        kept, found, skipped = _sound(rows, found, root)
    elif broken := [facts for facts in found if facts.problem]:
        raise broken_files(broken)
    hashes, looks = [facts.sha256 for facts in found], [facts.look for facts in found]
    deep = [(facts.path, facts.reach) for facts in found if facts.reach]
    over, told_range = decide(how.range, deep, root)

    def files(some: list[Facts]) -> Files:
        scanned = tuple((facts.stamp, facts.sha256) for facts in some)
        sizes = tuple(facts.size for facts in some)
        return Files(tuple(facts.path for facts in some), over, scanned, sizes)

    dataset = _gather(kept, found, hashes, files, [*remarks, *skipped, *told_range])
    return _with_leaks(replace(dataset, range=over), kept, (hashes, looks), how, root)


def of_arrays(
    rows: list[Row],
    pixels: Mapping[str, npt.NDArray[np.uint8]],
    how: Loading,
    remarks: Iterable[str] = (),
) -> Dataset:
    """Grey pictures by name, uint8 (height, width), all of one size."""
    arrays = [pixels[row.name] for row in rows]
    hashes = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
    dataset = _gather(rows, arrays, hashes, lambda some: Arrays(np.stack(some)), remarks)
    return _with_leaks(dataset, rows, (hashes, []), how, "data")


def _sound(
    rows: list[Row], found: list[Facts], root: Path
) -> tuple[list[Row], list[Facts], list[str]]:
    """What is no broken file, and a remark about the others. Raises DataError when a class of a
    split has none left."""
    pairs = list(zip(rows, found, strict=True))
    kept = [(row, facts) for row, facts in pairs if facts.problem is None]
    bad = [f"'{row.name}': {facts.problem}" for row, facts in pairs if facts.problem]
    lost = {(r.split, r.label) for r in rows} - {(r.split, r.label) for r, _ in kept}
    if lost:
        split, label = min(lost)
        raise DataError(
            root,
            f"class '{label}' has no sound image in {split}; the first broken one is {bad[0]}",
            "replace the broken files",
            19,
        )
    more = "; ..." if len(bad) > 5 else ""
    told = [f"skipped {len(bad)} broken files ({'; '.join(bad[:5])}{more})"] if bad else []
    return [row for row, _ in kept], [facts for _, facts in kept], [printable(t) for t in told]


def _with_leaks(
    dataset: Dataset,
    rows: list[Row],
    known: tuple[list[str], list[str]],
    how: Loading,
    where: object,
) -> Dataset:
    """With what is known of images on both sides of a split; ``known`` are hashes and looks."""
    if how.leakage == "ignore":
        return dataset
    hashes, looks = known
    found = leaks(rows, hashes, looks)
    check(found, how, where)
    train = sum(row.split == "train" for row in rows)
    compared = train * (len(rows) - train) if looks else 0
    lines = [printable(line) for line in (*told(found, compared), *conflicts(rows, hashes))]
    return replace(dataset, remarks=(*dataset.remarks, *lines), leaks=tuple(map(tuple, found)))


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
                sha256=fingerprint((rows[i], hashes[i]) for i in picked),
            )
    return Dataset(classes, splits, (*remarks, *_remarks(rows)))


def fingerprint(rows: Iterable[tuple[Row, str]]) -> str:
    """The sha256 of a split: over the names, labels and hashes of its images."""
    total = hashlib.sha256()
    for row, digest in rows:
        line = f"{row.name}\0{row.label}\0{digest}\n"
        total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _remarks(rows: list[Row]) -> list[str]:
    counts = Counter(row.label for row in rows)
    (most, many), *_, (least, few) = counts.most_common()
    val = sum(row.split == "val" for row in rows)
    found = []
    if many > _IMBALANCED * few:
        found.append(f"classes are imbalanced: {many} images of '{most}', {few} of '{least}'")
    if 0 < val < _FEW:
        found.append(f"val has {val} images: each is {100 / val:.1f} points of accuracy")
    alike: dict[str, list[str]] = {}
    for label in sorted(counts):
        alike.setdefault(label.casefold(), []).append(label)
    found += [f"classes that look the same: {same}" for same in alike.values() if len(same) > 1]
    return [printable(remark) for remark in found]
