"""The folds of a cross-validation: which part of the training images an image is held out in.

Classes are spread evenly over the folds, and what belongs to one group is never on both sides:
scikit-learn's ``StratifiedKFold`` and ``StratifiedGroupKFold``. Which fold an image is in depends
on ``data.split_seed``, the repeat and the names, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from xfer.core.errors import CombinationError, DataError, plural
from xfer.core.seeds import derive
from xfer.core.text_columns import Picked, Texts
from xfer.core.types import Dataset, Plain
from xfer.data.image_rows import ImageRows, code_of
from xfer.data.options import ImageRow, Loading

if TYPE_CHECKING:
    from xfer.core.protocols import Data
    from xfer.core.types import Samples

    Labels = npt.NDArray[np.int64]

BY_FOLDER = "FOLDER"
"""What ``data.group`` says where the folders of images are their groups."""


def into_folds(rows: ImageRows, how: Loading, where: object, several: bool = False) -> ImageRows:
    """``rows`` with the folds of those of ``train``. Where ``how.fold`` names one, that fold is
    ``val``, the rest of ``train`` trains, and every other image is left out. Classes that are
    combinations of ``several`` labels may be in one group, and in one fold.

    Raises DataError, naming ``where``, for classes and groups that cannot be divided.
    """
    if how.folds is None:
        return rows
    inside = np.flatnonzero(rows.in_split("train"))
    pool = by_name(rows, inside)
    kinds = sorted(rows.counts(rows.in_split("train")))
    code = np.array([kinds.index(k) if k in kinds else -1 for k in rows.kinds], np.int64)
    labels = code[rows.labels[pool]]
    groups = list(Picked(rows.groups, pool)) if how.group else None
    _check(labels, kinds, groups, how.folds, where, several)
    folds = np.full((len(rows), how.repeats), -1, np.int64)
    for repeat in range(how.repeats):
        seed = derive("folds of data", how.split_seed, repeat)
        column = divided(labels, groups, how.folds, seed)
        _check_parts(column, labels, [] if several else kinds, how.folds, where, repeat)
        folds[pool, repeat] = column
    if how.fold is None:
        return replace(rows, folds=folds)
    repeat, fold = divmod(how.fold, how.folds)
    splits = np.where(folds[inside, repeat] == fold, code_of("val"), code_of("train"))
    return rows.moved(inside, splits).take(inside)


def by_name(rows: ImageRows, inside: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """The positions ``inside`` in the order of names, so that the order of a CSV file's lines
    decides nothing."""
    names = [normalize("NFC", name) for name in Picked(rows.names, inside)]
    return inside[np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)]


def divided(labels: Labels, groups: Sequence[str] | None, count: int, seed: int) -> Labels:
    """The fold, 0 to ``count`` - 1, of each image: int64 (n,).

    ``labels`` int64 (n,); ``groups`` a name an image, ``None`` where each image stands for itself.
    """
    # An import of a second, which other runs do without.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(count, shuffle=True, random_state=seed % 2**32)
    fold_of = np.zeros(len(labels), np.int64)
    for fold, (_, held) in enumerate(splitter.split(np.zeros(len(labels)), labels, groups)):
        fold_of[held] = fold
    return fold_of


def inner(labels: Labels, groups: Sequence[str] | None, count: int, seed: int) -> Labels | None:
    """Folds inside a training part by which a strength is chosen, int64 (n,): -1 for an image that
    is never held out, as no other group has its class. ``None`` where nothing is grouped.

    Where there are fewer groups than ``count``, there are as many folds as groups.
    """
    if groups is None:
        return None
    free = _free(labels, groups)
    fold_of = np.full(len(labels), -1, np.int64)
    some = [groups[i] for i in free]
    fold_of[free] = as_many_as_groups(labels[free], some, count, seed)
    return fold_of


def _free(labels: Labels, groups: Sequence[str]) -> Labels:
    """The positions of images in groups that are not all that a class has."""
    of_class: dict[int, set[str]] = {}
    for label, name in zip(labels.tolist(), groups, strict=True):
        of_class.setdefault(label, set()).add(name)
    stays = {next(iter(some)) for some in of_class.values() if len(some) == 1}
    return np.array([i for i, name in enumerate(groups) if name not in stays], np.int64)


def holds_out(labels: Labels, groups: Sequence[str], count: int) -> bool:
    """Whether any image of a training part can be held out in turn, ``count`` folds or fewer: not
    where each class has one image or, with ``groups`` (none or one an image), one group."""
    if not len(groups):
        return bool(np.bincount(labels).max(initial=0) > 1)
    free = _free(labels, groups)
    return _parts(labels[free], [groups[i] for i in free], count) > 1


def chooses(train: Samples, count: int) -> bool:
    """Whether a penalty can be chosen by held-out images of all of ``train``, and of what each fold
    of a cross-validation leaves of it."""
    turns = (
        []
        if train.folds is None
        else [(row, fold) for row in train.folds for fold in np.unique(row)]
    )
    parts = [np.arange(len(train)), *(np.flatnonzero(row != fold) for row, fold in turns)]
    groups = train.groups
    return all(
        holds_out(train.labels[part], [groups[i] for i in part.tolist()] if groups else (), count)
        for part in parts
    )


def none_held_out() -> CombinationError:
    """The error about a penalty that is to be chosen where no image :func:`holds_out`."""
    what = "is chosen by images that are held out, and each class has one image, or one group"
    fix = "type head=prototype, optim=exact optim.l2=0.1 or optim=adamw, or add images"
    return CombinationError("optim.l2", what, fix, 9)


def _parts(labels: Labels, groups: Sequence[str], count: int) -> int:
    """How many folds these groups can be divided into, at most ``count``; 0 for none."""
    # A class of as many images as there are parts is what scikit-learn's splitter asks for.
    parts = min(count, len(set(groups)), int(np.bincount(labels).max(initial=0)))
    return parts if parts > 1 else 0


def as_many_as_groups(labels: Labels, groups: Sequence[str], count: int, seed: int) -> Labels:
    """At most ``count`` folds of groups, int64 (n,): -1 where there are no two."""
    fold_of = np.full(len(labels), -1, np.int64)
    if not (parts := _parts(labels, groups, count)):
        return fold_of
    import warnings

    with warnings.catch_warnings():
        # A class with fewer images than folds is not in every fold, which is as it must be here.
        warnings.filterwarnings("ignore", "The least populated class")
        return divided(labels, groups, parts, seed)


def by_folder(listed: Iterable[ImageRow], root: object, in_classes: bool = True) -> ImageRows:
    """``listed`` grouped by the first folder below their class folder, or where these are not
    ``in_classes`` below their split; an image that lies in none is a group by itself. A folder of
    the same name in two classes is one group.

    Raises DataError, naming ``root``, where images of ``train`` are listed and none of them lies in
    such a folder.
    """
    rows = ImageRows.of(listed)
    grouped = replace(rows, groups=Texts(_group(row, in_classes) for row in rows))
    inside = np.flatnonzero(rows.in_split("", "train"))
    if len(inside) and not any(group.endswith("/") for group in Picked(grouped.groups, inside)):
        below = "its class folder" if in_classes else "its split"
        what = f"data.group=FOLDER, and no image lies in a folder below {below}"
        fix = "put the images that belong together into a folder, or drop data.group"
        raise DataError(root, what, fix, 54)
    return grouped


def _group(row: ImageRow, in_classes: bool) -> str:
    below = row.name.split("/")[bool(row.split) + in_classes :]
    return below[0] + "/" if len(below) > 1 else row.name


def _check(
    labels: Labels,
    kinds: Sequence[str],
    groups: Sequence[str] | None,
    count: int,
    where: object,
    several: bool,
) -> None:
    counts = np.bincount(labels, minlength=len(kinds))
    # The smallest class, so that what is typed is right for the others too.
    if (n := int(counts.min())) < count:
        kind = kinds[int(counts.argmin())]
        what = f"class '{kind}' has {plural(n, 'image')}, fewer than the {count} folds"
        fix = f"type data.folds={n}, or add images" if n >= 2 else "add images of that class"
        raise DataError(where, what, fix, 50)
    if groups is None:
        return
    names = np.asarray(groups)
    for i, kind in enumerate([] if several else kinds):
        some = sorted(set(names[labels == i].tolist()))
        if len(some) == 1:
            what = f"all {counts[i]} images of class '{kind}' are in one group, '{some[0]}'"
            fix = "a fit without that group cannot know the class: add images of other groups"
            raise DataError(where, what, fix, 51)
    if (total := len(set(groups))) < count:
        what = f"{plural(total, 'group')} cannot be divided into {count} folds"
        fix = f"type data.folds={total}" if total > 1 else "add images of other groups"
        raise DataError(where, what, fix, 53)


def _check_parts(
    column: Labels,
    labels: Labels,
    kinds: Sequence[str],
    count: int,
    where: object,
    repeat: int,
) -> None:
    """Groups are divided as evenly as they can be, which may be not at all."""
    for fold in range(count):
        if not (column == fold).any():
            what = f"the groups leave fold {fold} of repeat {repeat} without an image"
            fix = f"type data.folds={count - 1}" if count > 2 else "add images of other groups"
            raise DataError(where, what, fix, 53)
        lost = set(range(len(kinds))) - set(labels[column != fold].tolist())
        if lost:
            kind = kinds[min(lost)]
            what = f"the groups put all of class '{kind}' into fold {fold} of repeat {repeat}"
            raise DataError(where, what, "type another data.split_seed, or fewer folds", 51)


def fold_facts(dataset: Dataset, how: Data) -> Plain | None:
    """What ``plan.json`` says of the folds: how many, how large in each repeat, and by what they
    are grouped; ``None`` without a cross-validation."""
    samples = dataset.splits.get("train")
    if samples is None or samples.folds is None:
        return None
    sizes = [np.bincount(row).tolist() for row in samples.folds]
    return {
        "folds": len(sizes[0]),
        "repeats": len(sizes),
        "sizes": sizes,
        "group": getattr(how, "group", None),
        "groups": len(set(samples.groups)) if samples.groups else None,
    }


def fold_words(facts: Plain) -> str:
    """The folds in one line: ``5 folds x 3 repeats of 48 to 49 images``."""
    sizes = [size for row in facts["sizes"] for size in row]
    low, high = min(sizes), max(sizes)
    times = f" x {facts['repeats']} repeats" if facts["repeats"] > 1 else ""
    of = f"{low:,} images" if low == high else f"{low:,} to {high:,} images"
    grouped = f", {facts['groups']:,} groups by {facts['group']}" if facts["group"] else ""
    return f"{facts['folds']} folds{times} of {of}{grouped}"
