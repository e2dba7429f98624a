"""From rows to a data set: images opened, hashed and compared, and those that cannot be used."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import DataError, printable
from xfer.core.types import Dataset, Images, InputSpec, Samples
from xfer.data.bit_depth import decide
from xfer.data.image import Arrays, Files
from xfer.data.image_bytes import ImagePlace
from xfer.data.leakage import compare, first_few
from xfer.data.options import SPLITS, ImageRow, Loading
from xfer.data.preprocess import check_size, named
from xfer.data.scan import Facts, broken_files, examine

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

_IMBALANCED = 10  # largest class over smallest
_FEW = 30  # images


def of_files(
    rows: list[ImageRow],
    root: Path,
    how: Loading,
    remarks: Iterable[str] = (),
    places: Mapping[str, ImagePlace] | None = None,
    about: Callable[[list[ImageRow]], list[str]] | None = None,
) -> Dataset:
    """The image files ``root / name``, or those that lie at ``places`` by name, every one read;
    ``about`` makes remarks on their classes.

    Raises DataError for broken ones, unless ``how`` skips them, and for leakage as it says.
    """
    facts = examine([places[r.name] if places else root / r.name for r in rows], root)
    if how.on_bad == "skip":
        rows, facts, skipped = _sound(rows, facts, root)
        remarks = [*remarks, *skipped]
    elif broken := [one for one in facts if one.problem]:
        raise broken_files(broken)
    over, range_lines = decide(how.range, [(f.path, f.reach) for f in facts if f.reach], root)

    def images(positions: Sequence[int]) -> Files:
        some = [facts[i] for i in positions]
        return Files(
            tuple(f.path for f in some),
            over,
            tuple((f.stamp, f.sha256) for f in some),
            tuple(f.size for f in some),
        )

    hashes, looks = [one.sha256 for one in facts], [one.look for one in facts]
    said = map(printable, (about or _remarks)(rows))
    dataset = _dataset(rows, hashes, looks, images, how, root, [*remarks, *range_lines, *said])
    return replace(dataset, range=over)


def of_arrays(
    rows: list[ImageRow],
    pixels: Mapping[str, npt.NDArray[np.uint8]],
    how: Loading,
    remarks: Iterable[str] = (),
) -> Dataset:
    """Grey pictures by name, uint8 (height, width), all of one size."""
    arrays = [pixels[row.name] for row in rows]
    hashes = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]

    def images(positions: Sequence[int]) -> Arrays:
        return Arrays(np.stack([arrays[i] for i in positions]))

    said = map(printable, _remarks(rows))
    return _dataset(rows, hashes, [], images, how, "data", [*remarks, *said])


def _sound(
    rows: list[ImageRow], facts: list[Facts], root: Path
) -> tuple[list[ImageRow], list[Facts], list[str]]:
    """What is no broken file, and a remark about the others. Raises DataError when a class of a
    split has none left."""
    pairs = list(zip(rows, facts, strict=True))
    sound = [(row, one) for row, one in pairs if one.problem is None]
    bad = [f"'{row.name}': {one.problem}" for row, one in pairs if one.problem]
    lost = {(r.split, r.label) for r in rows} - {(r.split, r.label) for r, _ in sound}
    if lost:
        split, label = min(lost)
        what = f"class '{label}' has no sound image in {split}; the first broken one is {bad[0]}"
        raise DataError(root, what, "replace the broken files", 19)
    remark = [f"skipped {len(bad)} broken files ({first_few(bad)})"] if bad else []
    return [row for row, _ in sound], [one for _, one in sound], list(map(printable, remark))


def _dataset(
    rows: list[ImageRow],
    hashes: Sequence[str],
    looks: Sequence[str],
    images: Callable[[Sequence[int]], Images],
    how: Loading,
    where: object,
    remarks: Iterable[str],
) -> Dataset:
    """The data set of all ``rows``; ``images`` gives those at some positions."""
    classes = tuple(sorted({row.label for row in rows}))
    splits: dict[str, Samples] = {}
    for split in SPLITS:
        if members := [i for i, row in enumerate(rows) if row.split == split]:
            some, digests = [rows[i] for i in members], [hashes[i] for i in members]
            splits[split] = _samples(some, classes, digests, images(members))
    leaks, lines = compare(rows, hashes, looks, how, where)
    said = (*remarks, *map(printable, lines))
    return Dataset(classes, splits, said, tuple(map(tuple, leaks)))


def _samples(
    rows: Sequence[ImageRow], classes: Sequence[str], hashes: Sequence[str], images: Images
) -> Samples:
    index = {label: i for i, label in enumerate(classes)}
    total = hashlib.sha256()
    for row, digest in zip(rows, hashes, strict=True):
        line = f"{row.name}\0{row.label}\0{digest}\n"
        total.update(line.encode("utf-8", "surrogateescape"))
    return Samples(
        names=tuple(row.name for row in rows),
        labels=np.array([index[row.label] for row in rows], np.int64),
        images=images,
        sha256=total.hexdigest(),
        folds=np.array([row.folds for row in rows], np.int64).T if rows[0].folds else None,
        groups=tuple(row.group for row in rows) if rows[0].group else (),
    )


def _remarks(rows: list[ImageRow]) -> list[str]:
    counts = Counter(row.label for row in rows)
    (most, many), *_, (least, few) = counts.most_common()
    val = sum(row.split == "val" for row in rows)
    lines = []
    if many > _IMBALANCED * few:
        lines.append(f"classes are imbalanced: {many} images of '{most}', {few} of '{least}'")
    if 0 < val < _FEW:
        lines.append(f"val has {val} images: each is {100 / val:.1f} points of accuracy")
    alike: dict[str, list[str]] = {}
    for label in sorted(counts):
        alike.setdefault(label.casefold(), []).append(label)
    lines += [f"classes that look the same: {same}" for same in alike.values() if len(same) > 1]
    return lines


def resizable(dataset: Dataset, spec: InputSpec, on_bad: str) -> Dataset:
    """``dataset`` as it is where ``spec`` makes no image huge, as it does with one that is long
    and narrow; else without those, and with a remark, if ``on_bad`` is ``skip``.

    Raises DataError that names the first of them if they are not skipped, and where they are all
    the images of a class in a split.
    """
    huge = {split: _huge(samples.images, spec) for split, samples in dataset.splits.items()}
    errors = {
        dataset.splits[split].names[i]: error
        for split, by_position in huge.items()
        for i, error in by_position.items()
    }
    if not errors:
        return dataset
    if on_bad != "skip":
        first = next(iter(errors.values()))
        more = f"; {len(errors) - 1} more files are like it" if len(errors) > 1 else ""
        fix = f"{first.fix}, or type data.on_bad=skip"
        raise DataError(first.where, first.what + more, fix, 74) from first
    shown = first_few([f"'{name}': {error.what}" for name, error in errors.items()])
    remark = printable(f"skipped {len(errors)} files ({shown})")
    return replace(
        dataset,
        splits={split: _without(dataset, split, huge[split]) for split in huge},
        remarks=(*dataset.remarks, remark),
        leaks=tuple(leak for leak in dataset.leaks if errors.keys().isdisjoint(leak)),
    )


def _huge(images: Images, spec: InputSpec) -> dict[int, DataError]:
    """What is wrong with each image that is huge after resizing, by its position."""
    errors: dict[int, DataError] = {}
    if isinstance(images, Files) and images.scanned:
        for i, size in enumerate(images.sizes):
            try:
                check_size(size, spec)
            except DataError as error:
                errors[i] = named(error, str(images.paths[i]))
    return errors


def _without(dataset: Dataset, split: str, huge: Mapping[int, DataError]) -> Samples:
    samples = dataset.splits[split]
    files = samples.images
    if not huge or not isinstance(files, Files):
        return samples
    left = [i for i in range(len(samples)) if i not in huge]
    labels = samples.labels[left].tolist()
    groups, folds = samples.groups, samples.folds
    if lost := set(samples.labels.tolist()) - set(labels):
        label = min(lost)
        error = next(error for i, error in huge.items() if samples.labels[i] == label)
        what = f"{error.what}, and class '{dataset.classes[label]}' has no other image in {split}"
        raise DataError(error.where, what, "crop it, or add images", 19)
    pairs = zip(left, labels, strict=True)
    rows = [
        ImageRow(
            samples.names[i],
            dataset.classes[label],
            group=groups[i] if groups else "",
            folds=() if folds is None else tuple(folds[:, i].tolist()),
        )
        for i, label in pairs
    ]
    scanned = tuple(files.scanned[i] for i in left)
    images = replace(
        files,
        paths=tuple(files.paths[i] for i in left),
        scanned=scanned,
        sizes=tuple(files.sizes[i] for i in left),
    )
    return _samples(rows, dataset.classes, [digest for _, digest in scanned], images)


@dataclass(frozen=True)
class _Part:
    """Some of the ``images``, in the order of ``rows``."""

    images: Images
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Image:
        return self.images[int(self.rows[index])]


def part_of(samples: Samples, rows: npt.NDArray[np.int64]) -> Samples:
    """The images at ``rows`` as a split."""
    names = tuple(samples.names[i] for i in rows)
    text = f"{samples.sha256} {rows.astype('<i8').tobytes().hex()}"
    hashed = hashlib.sha256(text.encode()).hexdigest()
    return Samples(names, samples.labels[rows], _Part(samples.images, rows), hashed)
