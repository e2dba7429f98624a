"""From rows to a data set: images opened, hashed and compared, and those that cannot be used."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xfer.core.errors import DataError, NamesError, plural, printable
from xfer.core.text_columns import Made, Picked
from xfer.core.types import Dataset, Images, InputSpec, Samples
from xfer.data.bit_depth import decide
from xfer.data.image import Arrays, Files, ImagesAt
from xfer.data.image_bytes import ImagePlace
from xfer.data.image_places import FilesBelow, lasting
from xfer.data.image_rows import ImageRows, by_position
from xfer.data.leakage import compare, in_one_line
from xfer.data.multilabel_rows import in_one_text, lost_labels
from xfer.data.options import SPLITS, ImageRow, Loading
from xfer.data.preprocess import check_size, named
from xfer.data.scan import Examined, broken_files, examine
from xfer.data.scan_cache import positions_but
from xfer.data.split import group_lines

_IMBALANCED = 10  # largest class over smallest
_FEW = 30  # images
_AT_ONCE = 1 << 10  # images


def of_files(
    listed: Iterable[ImageRow],
    root: Path,
    how: Loading,
    remarks: Iterable[str] = (),
    places: Mapping[str, ImagePlace] | Sequence[ImagePlace] | None = None,
    several: bool = False,
) -> Dataset:
    """The image files ``root / name``, or those that lie at ``places``, by name or in the order of
    the listing that the rows are of, every one read. Their classes are combinations of ``several``
    labels where an image may have these.

    Raises DataError for broken ones, unless ``how`` skips them, and for leakage as it says.
    """
    rows = ImageRows.of(listed)
    _refuse_ascii(root, rows.names)
    where = FilesBelow(root, rows.names) if places is None else by_position(rows, places)
    facts = examine(where, root)
    sound: npt.NDArray[np.integer] | None = None  # of a million images, all positions are many
    if how.on_bad == "skip" and facts.problems:
        sound, skipped = _sound(rows, facts, root, several)
        rows, remarks = rows.take(sound), [*remarks, *skipped]
    elif broken := facts.broken:
        raise broken_files(broken)
    over, range_lines = decide(how.range, facts.deep, root)

    def images(positions: npt.NDArray[np.integer]) -> Files:
        at = positions if sound is None else sound[positions]
        return facts.files(at, over, lasting(where))

    digests = facts.columns.digests
    looks: Sequence[str] = Made(len(facts), facts.columns.look)
    if sound is not None:
        digests, looks = digests[sound], Picked(looks, sound)
    said = [] if several else map(printable, _remarks(rows))
    lines = [*remarks, *range_lines, *group_lines(rows, how), *said]
    dataset = _dataset(rows, digests, looks, images, how, root, lines)
    return replace(dataset, range=over)


def _refuse_ascii(root: Path, names: Iterable[str]) -> None:
    """Raise NamesError for names that this Python has read as ASCII, and they are not."""
    if sys.getfilesystemencoding() != "ascii":
        return
    for name in (str(root), *names):
        if not name.isascii():
            what = f"'{name}' is no ASCII, and this Python reads names as ASCII"
            raise NamesError(root, what, "type export PYTHONUTF8=1 and start Python again", 0)


def of_arrays(
    listed: Iterable[ImageRow],
    pixels: Mapping[str, npt.NDArray[np.uint8]],
    how: Loading,
    remarks: Iterable[str] = (),
) -> Dataset:
    """Grey pictures by name, uint8 (height, width), all of one size."""
    rows = ImageRows.of(listed)
    arrays = [pixels[name] for name in rows.names]
    hashes = b"".join(hashlib.sha256(array.tobytes()).digest() for array in arrays)

    def images(positions: npt.NDArray[np.integer]) -> Arrays:
        return Arrays(np.stack([arrays[i] for i in positions]))

    said = map(printable, _remarks(rows))
    digests = np.frombuffer(hashes, np.uint8).reshape(-1, 32)
    return _dataset(rows, digests, [], images, how, "data", [*remarks, *said])


def _sound(
    rows: ImageRows, facts: Examined, root: Path, several: bool
) -> tuple[npt.NDArray[np.int32], list[str]]:
    """The positions of what is no broken file, and a remark about the others. Raises DataError when
    a class of a split has none left or, where the classes are combinations of ``several`` labels, a
    split."""
    broken = sorted(facts.problems)
    sound = positions_but(len(rows), broken)
    bad = [f"'{rows.names[i]}': {facts.problems[i]}" for i in broken]
    left, lost = rows.take(sound), ""
    if several and (splits := rows.given - left.given):
        lost = f"{min(splits)} has no sound image"
    elif not several and (pairs := rows.pairs - left.pairs):
        split, label = min(pairs)
        lost = f"class '{label}' has no sound image in {split}"
    if lost:
        what = f"{lost}; the first broken one is {bad[0]}"
        raise DataError(root, what, "replace the broken files", 19)
    files = "file" if len(bad) == 1 else "files"
    return sound, [printable(f"skipped {len(bad)} broken {files} ({in_one_line(bad)})")]


def _dataset(
    rows: ImageRows,
    digests: npt.NDArray[np.uint8],
    looks: Sequence[str],
    images: Callable[[npt.NDArray[np.integer]], Images],
    how: Loading,
    where: object,
    remarks: Iterable[str],
) -> Dataset:
    """The data set of all ``rows``; ``images`` gives those at some positions."""
    classes = tuple(sorted(rows.counts()))
    splits: dict[str, Samples] = {}
    for split in SPLITS:
        members = np.flatnonzero(rows.in_split(split)).astype(np.int32)
        if len(members):
            some = rows.take(members)
            splits[split] = _samples(some, classes, _in_hex(digests, members), images(members))
    leaks, lines = compare(rows, digests, looks, how, where)
    said = (*remarks, *map(printable, lines))
    return Dataset(classes, splits, said, leaks)


def _samples(
    rows: ImageRows, classes: Sequence[str], digests: Iterable[str], images: Images
) -> Samples:
    code = {label: i for i, label in enumerate(classes)}
    table = np.array([code.get(kind, -1) for kind in rows.kinds], np.int64)
    total = hashlib.sha256()
    for name, kind, digest in zip(rows.names, rows.labels, digests, strict=True):
        line = f"{name}\0{rows.kinds[kind]}\0{digest}\n"
        total.update(line.encode("utf-8", "surrogateescape"))
    return Samples(
        names=rows.names,
        labels=table[rows.labels],
        images=images,
        sha256=total.hexdigest(),
        folds=rows.folds.T if rows.folds is not None and rows.folds[0, 0] >= 0 else None,
        groups=rows.groups,
    )


def _in_hex(digests: npt.NDArray[np.uint8], positions: npt.NDArray[np.integer]) -> Iterator[str]:
    for i in range(0, len(positions), _AT_ONCE):
        yield from (row.tobytes().hex() for row in digests[positions[i : i + _AT_ONCE]])


def _remarks(rows: ImageRows) -> list[str]:
    counts = Counter(rows.counts())
    (most, many), *_, (least, few) = counts.most_common()
    val = int(rows.in_split("val").sum())
    lines = []
    if many > _IMBALANCED * few:
        lines.append(
            f"classes are imbalanced: {plural(many, 'image')} of '{most}', {few} of '{least}'"
        )
    if 0 < val < _FEW:
        lines.append(f"val has {plural(val, 'image')}: each is {100 / val:.1f} points of accuracy")
    return [*lines, *look_the_same(counts)]


def look_the_same(classes: Iterable[str]) -> list[str]:
    """A remark on ``classes`` whose names differ in capitals alone, if there are any."""
    alike: dict[str, list[str]] = {}
    for label in sorted(classes):
        alike.setdefault(label.casefold(), []).append(label)
    same = ", ".join(str(labels) for labels in alike.values() if len(labels) > 1)
    return [f"classes that look the same: {same}"] if same else []


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
        count = len(errors) - 1
        more = f"; {count} more {'file is' if count == 1 else 'files are'} like it" if count else ""
        fix = f"{first.fix}, or type data.on_bad=skip"
        raise DataError(first.where, first.what + more, fix, 74) from first
    shown = in_one_line([f"'{name}': {error.what}" for name, error in errors.items()])
    files = "file" if len(errors) == 1 else "files"
    remark = printable(f"skipped {len(errors)} {files} ({shown})")
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
    left = np.delete(np.arange(len(samples)), sorted(huge))
    several = samples.labels.ndim == 2
    kinds, codes = dataset.classes, samples.labels
    if several:
        values, codes = np.unique(codes, axis=0, return_inverse=True)
        kinds = tuple(in_one_text(row, dataset.classes) for row in values.tolist())
        lost = lost_labels(samples.labels, left) if split == "train" else set()
    else:
        lost = set(codes.tolist()) - set(codes[left].tolist())
    if lost or not len(left):
        label = min(lost, default=0)
        error = next(e for i, e in huge.items() if several or codes[i] == label)
        what = f"{error.what}, and class '{dataset.classes[label]}' has no other image in {split}"
        if not len(left):
            what = f"{error.what}, and {split} has no other image"
        raise DataError(error.where, what, "crop it, or add images", 19)
    rows = ImageRows(
        names=Picked(samples.names, left),
        kinds=kinds,
        labels=codes[left].astype(np.int32),
        splits=np.zeros(len(left), np.int8),
        at=left,
        groups=Picked(samples.groups, left) if samples.groups else (),
        folds=None if samples.folds is None else samples.folds.T[left],
    )
    scanned = Picked(files.scanned, left)
    images = replace(
        files,
        paths=Picked(files.paths, left),
        scanned=scanned,
        sizes=Picked(files.sizes, left),
    )
    made = _samples(rows, dataset.classes, (digest for _, digest in scanned), images)
    return replace(made, labels=samples.labels[left]) if several else made


def part_of(samples: Samples, rows: npt.NDArray[np.int64]) -> Samples:
    """The images at ``rows`` as a split."""
    names = Picked(samples.names, rows)
    text = f"{samples.sha256} {rows.astype('<i8').tobytes().hex()}"
    hashed = hashlib.sha256(text.encode()).hexdigest()
    return Samples(names, samples.labels[rows], ImagesAt(samples.images, rows), hashed)
