"""Pictures in arrays of NumPy: a folder of ``.npy`` files, or an ``.npz`` file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from annotated_types import MaxLen, MinLen

from xfer.core.control_groups import available
from xfer.core.errors import DataError, LabelledDataError, closest
from xfer.core.types import Dataset, class_name
from xfer.data.array_file import ArrayFacts, ArrayRow, arrays_in
from xfer.data.arrow_columns import OF_FEATURES
from xfer.data.folder import SYNONYMS
from xfer.data.image_table import Listing, TableRow, dataset_of, listing_of
from xfer.data.multilabel_rows import Labelled
from xfer.data.multilabel_split import ImageSource, labelled_dataset
from xfer.data.options import Loading, place

_PAIRS = (("images", "labels"), ("image", "label"), ("x", "y"))
_CLASSES, _SPLIT = "classes", "split"
_SAVE = "save it as uint8 of (n, height, width, 3), of one channel, or of (n, height, width)"


@dataclass(frozen=True)
class ArrayFiles(Loading):
    """An ``.npz`` file, or a folder of ``.npy`` files: ``images`` and ``labels``, or
    ``train_images``, ``train_labels``, ``val_images`` and so on, or ``x_train`` and ``y_train``.

    Images are uint8 of (n, height, width, 3), of one channel, or of (n, height, width). Labels are
    text or whole numbers, (n,) or (n, 1); where there is an array ``classes`` of text, a number is
    a position in it. An array ``split`` of text says the split of each image. ``group`` is the
    name of one array more. An ``.npy`` file and an uncompressed ``.npz`` are read a row at a time.

    With ``task=multilabel`` labels are (n, classes): 1, 0 and, where nobody has looked, -1 or NaN.
    """

    groups: ClassVar[str] = "COLUMN"

    root: Annotated[str, MinLen(1)]
    """an ``.npz`` file, or a folder of ``.npy`` files"""
    columns: Annotated[tuple[str, ...], MinLen(2), MaxLen(3)] | None = None
    """the arrays of the images, of their classes and, if there is one, of their splits; ``null`` is
    ``images,labels`` with ``split`` where there is one, or such a pair a split, as
    ``train_images,train_labels``"""

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        return dataset_of(self.listed(), self, place(self.root), training)

    def labelled(self, training: bool, known: tuple[str, ...] = ()) -> Dataset:
        """The same where labels are a matrix (n, classes) of whole numbers, bools or floats; the
        columns are called as ``classes`` has it, or by their numbers. See
        :class:`xfer.core.protocols.ReadsLabels`."""
        root = place(self.root)
        (rows, places, remarks), matrices = self._listed(True)
        names = _columns(matrices, _arrays(root).get(_CLASSES))
        labels = [image for matrix in matrices for image in _labelled(matrix, names)]
        source = ImageSource(root, root, names, remarks, places)
        return labelled_dataset(list(zip(rows, labels, strict=True)), self, source, training, known)

    def listed(self, several: bool | None = False) -> Listing:
        """All pictures, before they are divided, without labels and splits where ``several`` is
        ``None``. Raises DataError naming the file."""
        return self._listed(several)[0]

    def _listed(self, several: bool | None) -> tuple[Listing, list[ArrayFacts]]:
        """All pictures, and the matrices of their labels where they may have ``several``."""
        root = place(self.root)
        arrays = _arrays(root)
        pairs, used = _pairs(root, arrays, self) if several is not None else _images(root, arrays)
        classes = _words(arrays[_CLASSES], _CLASSES) if _CLASSES in arrays else ()
        cells: list[TableRow] = []
        remarks = []
        for split, (images, labels) in pairs.items():
            remarks += _loaded(images)
            count = images.shape[0] if images.shape else 0
            names = _classes_of(labels, count, classes) if several is False else [""] * count
            cells += _cells(split, images, names, arrays if several is not None else {}, self)
            if several and (len(labels.shape) != 2 or labels.shape[0] != count):
                sizes = ", ".join(map(str, labels.shape))
                what = f"has the shape ({sizes}), and there are {count} images"
                fix = "give it a row an image and a column a class, or type task=single"
                raise DataError(f"{labels.file}: {labels.name}", what, fix, 35)
        if others := sorted(set(arrays) - used - {_CLASSES, self.group}):
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            remarks.append(f"left out (other arrays): '{others[0]}'{more}")
        listing = listing_of(cells, root, root.parent, self.group, several)
        listing = Listing(listing.rows, listing.places, [*remarks, *listing.remarks])
        return listing, [labels for _, labels in pairs.values()] if several else []


def _columns(matrices: Sequence[ArrayFacts], classes: ArrayFacts | None) -> tuple[str, ...]:
    """What the columns of the labels are called: as ``classes`` has it, or by their numbers. Raises
    DataError for other columns in one matrix than in another, and names that are none."""
    given = _words(classes, _CLASSES) if classes else map(str, range(matrices[0].shape[1]))
    names = tuple(map(class_name, given))
    for labels in matrices:
        if labels.shape[1] != len(names):
            of = f"'{_CLASSES}' has" if classes else f"{matrices[0].name} has"
            what = f"has {labels.shape[1]} columns, and {of} {len(names)}"
            fix = "give all of them a column a class, in one order"
            raise DataError(f"{labels.file}: {labels.name}", what, fix, 35)
    for i, name in enumerate(names):
        if not name.strip() or name.startswith("?") or name in names[:i]:
            what = f"'{name}' is no name of a label, or the name of two"
            fix = "give every class one name: no blank, and no '?' in front"
            raise LabelledDataError(f"{matrices[0].file}: {_CLASSES}", what, fix, 2)
    return names


def _labelled(matrix: ArrayFacts, names: Sequence[str]) -> Iterator[Labelled]:
    """The labels of the rows of a matrix. Raises DataError for what is neither yes, no nor
    unknown."""
    where, values = f"{matrix.file}: {matrix.name}", matrix.values()
    if values.dtype.kind not in "biuf":
        what = f"has {values.dtype}, and labels are 1, 0 and -1"
        raise DataError(where, what, "save it as np.int8", 35)
    known = np.where(np.isnan(values), -1, values) if values.dtype.kind == "f" else values
    odd = np.argwhere(~np.isin(known, (1, 0, -1)))
    if len(odd):
        row, column = odd[0].tolist()
        what = f"{values[row, column]} in row {row}, class '{names[column]}', is no label"
        fix = "write 1 for an image that has it, 0 for one that has it not, -1 where it is unknown"
        raise LabelledDataError(where, what, fix, 3)
    called = np.array(names, object)
    for i, image in enumerate(known):
        has, unknown = (tuple(called[image == n].tolist()) for n in (1, -1))
        yield Labelled(f"{where}, row {i}", "", "", has, unknown)


def _arrays(root: Path) -> dict[str, ArrayFacts]:
    """The arrays by name. Raises DataError where there are none."""
    paths = sorted(root.glob("*.npy")) if root.is_dir() else [root]
    found = {name: facts for path in paths for name, facts in arrays_in(path).items()}
    if not found:
        what, fix = "holds no arrays", "give an .npz file, or a folder of .npy files"
        raise DataError(root, what, fix, 38)
    return found


def _pairs(
    root: Path, arrays: Mapping[str, ArrayFacts], how: ArrayFiles
) -> tuple[dict[str, tuple[ArrayFacts, ArrayFacts]], set[str]]:
    """The images and labels of every split, of one with an empty name where none has a name; and
    the names of what is used."""
    if how.group and how.group not in arrays:
        what = f"has no array '{how.group}' to group by"
        raise DataError(root, what, closest(how.group, arrays), 92)
    if lost := [name for name in how.columns or () if name not in arrays]:
        raise DataError(root, f"has no array '{lost[0]}'", closest(lost[0], arrays), 38)
    if how.columns:
        images, labels = how.columns[:2]
        return {"": (arrays[images], arrays[labels])}, set(how.columns)
    by_split = _named(arrays)
    if not by_split:
        if {"features", "recipe"} <= arrays.keys():
            what, fix = OF_FEATURES
            raise DataError(root, what, fix, 38)
        there = ", ".join(list(arrays)[:8])
        what = f"has no arrays 'images' and 'labels', nor such of splits; it has {there}"
        names = [*arrays, "LABELS"]
        fix = f"type 'data.columns=[{names[0]},{names[1]}]', or those that you mean"
        raise DataError(root, what, fix, 38)
    used = {name for names in by_split.values() for name in names}
    used |= {_SPLIT} if "" in by_split else set()
    return {s: (arrays[a], arrays[b]) for s, (a, b) in by_split.items()}, used


def _images(
    root: Path, arrays: Mapping[str, ArrayFacts]
) -> tuple[dict[str, tuple[ArrayFacts, ArrayFacts]], set[str]]:
    """As :func:`_pairs` where nobody asks for labels: each with itself."""
    names = {split: pair[0] for split, pair in _named(arrays, labelled=False).items()}
    if not names:
        pictures = [name for name, one in arrays.items() if len(one.shape) in (3, 4)]
        if len(pictures) != 1:
            what = (
                f"has no array 'images', nor a single one of pictures; it has {', '.join(arrays)}"
            )
            raise DataError(root, what, "save the pictures as 'images'", 26)
        names[""] = pictures[0]
    return {s: (arrays[name], arrays[name]) for s, name in names.items()}, set(names.values())


def _named(arrays: Mapping[str, ArrayFacts], labelled: bool = True) -> dict[str, tuple[str, str]]:
    """The arrays of images and of labels of each split by their names; of a split with an empty
    name where there is a pair without one. No labels are needed unless they are ``labelled``."""
    lower = {name.lower(): name for name in arrays}
    forms = [("", "{}")]
    forms += [
        (split, form)
        for word, split in SYNONYMS.items()
        for form in (f"{word}_{{}}", f"{{}}_{word}")
    ]
    found: dict[str, tuple[str, str]] = {}
    for split, form in forms:
        for one, two in _PAIRS:
            names = lower.get(form.format(one)), lower.get(form.format(two))
            if names[0] and (names[1] or not labelled) and "" not in found:
                found.setdefault(split, (names[0], names[1] or ""))
    return found


def _cells(
    split: str,
    images: ArrayFacts,
    names: Sequence[str],
    arrays: Mapping[str, ArrayFacts],
    how: ArrayFiles,
) -> Iterator[TableRow]:
    """The pictures of a split, whose classes have these ``names``."""
    count, shape = len(names), _shape(images)
    by_column = how.columns[2] if how.columns and len(how.columns) > 2 else None
    by_column = by_column or (_SPLIT if _SPLIT in arrays and not (split or how.columns) else None)
    splits = _texts(arrays[by_column], count) if by_column else [split] * count
    groups = _texts(arrays[how.group], count) if how.group else [""] * count
    size = shape[0] * shape[1] * shape[2]
    for row in range(count):
        start = images.start + row * size if images.start >= 0 else -1
        name = images.called(row)
        at = ArrayRow(images.file, images.name, name, row, start, shape)
        yield TableRow(name, at, "", names[row], splits[row], groups[row])


def _shape(images: ArrayFacts) -> tuple[int, int, int]:
    """Height, width and channels. Raises DataError for what are no pictures."""
    shape, where = images.shape, f"{images.file}: {images.name}"
    sizes = ", ".join(map(str, shape))
    if str(images.dtype) != "uint8":
        what = f"has {images.dtype}, and pictures are uint8, 0 to 255"
        fix = f"{_SAVE}; from 0 to 1: np.round(x * 255).astype(np.uint8)"
        raise DataError(where, what, fix, 35)
    channels = shape[3] if len(shape) == 4 else 1
    if len(shape) not in (3, 4) or 0 in shape or channels not in (1, 3):
        first = len(shape) == 4 and shape[1] in (1, 3)
        fix = "save x.transpose(0, 2, 3, 1), with the channels last" if first else _SAVE
        raise DataError(where, f"has the shape ({sizes})", fix, 35)
    return shape[1], shape[2], channels


def _texts(facts: ArrayFacts, count: int, more: str = "") -> list[str]:
    """An array of ``count`` texts or whole numbers, as texts; ``more`` ends the remedy."""
    shape, where = facts.shape, f"{facts.file}: {facts.name}"
    if shape not in ((count,), (count, 1)):
        what = f"has the shape ({', '.join(map(str, shape))}), and there are {count} images"
        raise DataError(where, what, f"give every image one value, (n,) or (n, 1){more}", 35)
    if facts.dtype.kind not in "iuUS":
        what = f"has {facts.dtype}, and"
        raise DataError(where, f"{what} text or whole numbers are needed", "save it so", 35)
    return list(_words(facts, facts.name))


def _words(facts: ArrayFacts, name: str) -> tuple[str, ...]:
    values: npt.NDArray[Any] = facts.values().reshape(-1)
    if values.dtype.kind == "S":
        try:
            return tuple(value.decode() for value in values.tolist())
        except UnicodeDecodeError as error:
            where = f"{facts.file}: {name}"
            raise DataError(where, "has text that is no UTF-8", "save it as text", 35) from error
    return tuple(str(value) for value in values.tolist())


def _classes_of(labels: ArrayFacts, count: int, classes: Sequence[str]) -> list[str]:
    """The class of every image in words."""
    words = _texts(labels, count, "; of several labels type task=multilabel")
    if not classes or labels.dtype.kind not in "iu":
        return words
    for row, word in enumerate(words):
        if not 0 <= int(word) < len(classes):
            what = f"the label {word} of row {row} is no class, 0 to {len(classes) - 1}"
            where = f"{labels.file}: {labels.name}"
            raise DataError(where, what, f"correct it, or the array '{_CLASSES}'", 29)
    return [classes[int(word)] for word in words]


def _loaded(images: ArrayFacts) -> list[str]:
    """Load a compressed array of pictures, and say so. Raises DataError where it does not fit."""
    if images.start >= 0:
        return []
    free, size = available(), images.bytes
    if size > free:
        what = f"{images.name} takes {size / 1e9:.1f} GB unpacked, and {free / 1e9:.1f} are free"
        raise DataError(images.file, what, "save it with np.savez, which packs nothing", 35)
    images.values()
    line = f"{images.file.name}: {images.name} is compressed and loaded whole, {size / 1e6:,.1f} MB"
    return [f"{line}; np.savez writes it so that it is read a picture at a time"]
