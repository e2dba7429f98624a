"""The stratified split of images into training, validation and test."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from xfer.core.errors import ConfigError, DataError, LabelledDataError, closest, first_few, plural
from xfer.core.seeds import derive
from xfer.core.text_columns import Picked
from xfer.core.types import class_name
from xfer.data.folds import by_name, divided, into_folds
from xfer.data.image_rows import ImageRows, code_of
from xfer.data.options import SPLITS, ImageRow, Loading

_EPSILON = 1e-9  # of a sum of fractions
_PARTS = 20  # at most, of which groups are held out


def shares(how: Loading, given: Collection[str]) -> dict[str, float]:
    """What becomes of images that have no split yet, or that of ``train`` alone.

    Raises ConfigError when the fractions are over 1 together.
    """
    parts = {
        "test": 0.0 if "test" in given else how.test_fraction,
        "val": 0.0 if "val" in given or how.folds else how.val_fraction,
    }
    rest = 1 - sum(parts.values())
    if rest < -_EPSILON:
        what = "adds up to more than 1 with data.test_fraction"
        raise ConfigError("data.val_fraction", what, "lower one of them", 65)
    parts["train"] = rest if rest > _EPSILON else 0.0
    return {split: share for split, share in parts.items() if share}


def divide(listed: Iterable[ImageRow], how: Loading, where: object, training: bool) -> ImageRows:
    """Give every row a split, keep those that are asked for, and check classes and splits.

    What has no split, and ``train`` where ``val`` or ``test`` is missing, is divided by
    :func:`shares`. With ``how.folds`` what is left of ``train`` is divided into folds. The order
    stays. Raises DataError naming ``where``.
    """
    rows = ImageRows.of(listed).relabelled(class_name)
    parts = shares(how, rows.given)
    pool = np.flatnonzero(rows.in_split("", "train"))
    rows = rows.moved(pool, hold_out(rows.take(pool), parts, how, where))
    refuse_divided_groups(rows, where)
    if how.folds and training:
        rows = into_folds(rows, how, where)
    if not training:
        rows = rows.take(np.flatnonzero(~rows.in_split("train")))
    refuse_missing(rows.given, how, where, training)
    _check_classes(rows, where)
    return rows


def unread_split(header: Collection[str], asked: Sequence[str] | None) -> list[str]:
    """A remark where a table has a column ``split`` and ``data.columns`` does not name it."""
    if asked is None or len(asked) > 2 or "split" not in header:
        return []
    typed = ",".join([*asked, "split"])
    return [f"the column 'split' is not read: 'data.columns=[{typed}]' divides by it"]


def refuse_missing(given: Collection[str], how: Loading, where: object, training: bool) -> None:
    """Raise DataError where a split that is needed is not among those ``given``."""
    wanted = ("train",) if how.folds and how.fold is None else ("train", "val")
    for split in wanted if training else ():
        if split not in given:
            raise DataError(where, f"there is no '{split}' part", _remedy(split, how, given), 4)
    if not given and how.folds:
        what = "every image is in a fold, and the final model was fitted on all of them"
        fix = "see cv in the run's result.json, or give other images with data.root"
        raise DataError(where, what, fix, 55)
    if not given:
        raise DataError(where, "there is nothing to evaluate", _remedy("val", how, given), 4)


def hold_out(
    pool: ImageRows, parts: dict[str, float], how: Loading, where: object
) -> npt.NDArray[np.int8]:
    """The code of the split of every row of ``pool``, int8 (n,). Each class is ranked by hashes of
    seed and name, so that neither the order of the files nor a new file moves the others from one
    split to another; where there are groups, these are held out whole."""
    counts = pool.counts()
    few = sorted(label for label, count in counts.items() if count < len(parts))
    if few:
        others = (
            f" (and {plural(len(few) - 1, 'more class', 'more classes')})" if len(few) > 1 else ""
        )
        what = (
            f"class '{few[0]}' has {plural(counts[few[0]], 'image')}{others}; "
            f"{', '.join(sorted(parts))} need one each"
        )
        fix = "add images, remove the class, or give the splits folders of their own"
        raise DataError(where, what, fix, 8)
    if how.group and len(parts) > 1:
        return groups_held_out(pool, parts, how, where)
    taken = np.zeros(len(pool), np.int8)
    for label in counts:
        members = np.flatnonzero(pool.labels == pool.kinds.index(label))
        ranked = members[_ranked(Picked(pool.names, members), label, how.split_seed)]
        start = 0
        for split, count in _counts(len(members), parts).items():
            taken[ranked[start : start + count]] = code_of(split)
            start += count
    return taken


def _ranked(names: Sequence[str], label: str, seed: int) -> npt.NDArray[np.int64]:
    """The order of ``names`` by their hashes, and by themselves where those are equal."""
    # A Mac and Linux spell an accent in two ways; the split must not hang on that.
    hashes = (derive("split", seed, label, normalize("NFC", name)) for name in names)
    ranks = np.fromiter(hashes, np.int64, len(names))
    order = np.argsort(ranks, kind="stable")
    if (np.diff(ranks[order]) == 0).any():
        order = np.array(sorted(order.tolist(), key=lambda i: (ranks[i], names[i])))
    return order


def _counts(total: int, parts: dict[str, float]) -> dict[str, int]:
    """Whole numbers near the shares, at least one each; the last split takes the remainder."""
    counts: dict[str, int] = {}
    for split, share in parts.items():
        spare = total - sum(counts.values()) - (len(parts) - len(counts) - 1)
        counts[split] = min(max(1, int(total * share + 0.5)), spare)
    counts[split] += total - sum(counts.values())
    return counts


def groups_held_out(
    pool: ImageRows, parts: dict[str, float], how: Loading, where: object
) -> npt.NDArray[np.int8]:
    """As :func:`hold_out`, with all images of a group in one split.

    scikit-learn's ``StratifiedGroupKFold`` makes equal parts, in which the classes are spread as
    evenly as groups allow, and a split is as many of them as are nearest to its share. Raises
    DataError for too few groups.
    """
    order = by_name(pool, np.arange(len(pool)))
    labels, groups = pool.labels[order].astype(np.int64), list(Picked(pool.groups, order))
    total = len(set(groups))
    count = min(_equal_parts(parts.values()), total, int(np.bincount(labels).max()))
    if count < len(parts):
        what = f"{plural(total, 'group')} cannot be divided into {' and '.join(sorted(parts))}"
        fix = "add images of other groups, or give the splits as a column"
        raise LabelledDataError(where, what, fix, 4)
    with warnings.catch_warnings():
        # A class with fewer images than parts is not in each of them.
        warnings.filterwarnings("ignore", "The least populated class")
        part_of = divided(labels, groups, count, derive("groups held out", how.split_seed))
    sizes = np.bincount(part_of, minlength=count)
    free = [part for part in range(count) if sizes[part]]
    codes = np.full(count, code_of("train"), np.int8)
    for split, share in list(parts.items())[:-1]:
        wanted, held = share * len(pool), 0
        while len(free) > 1 and (not held or abs(wanted - held - sizes[free[0]]) < wanted - held):
            held += int(sizes[free[0]])
            codes[free.pop(0)] = code_of(split)
    taken = np.empty(len(pool), np.int8)
    taken[order] = codes[part_of]
    return taken


def _equal_parts(fractions: Iterable[float]) -> int:
    """The least number of equal parts of which all ``fractions`` are a whole number."""
    given = list(fractions)
    fits = (n for n in range(2, _PARTS) if all(abs(x * n - round(x * n)) < 0.01 for x in given))
    return next(fits, _PARTS)


def refuse_divided_groups(rows: ImageRows, where: object) -> None:
    """Raise DataError for a group that is in two splits, which the data give."""
    splits: dict[str, int] = {}
    for group, split in zip(rows.groups, rows.splits.tolist(), strict=bool(rows.groups)):
        if splits.setdefault(group, split) != split:
            names = sorted((SPLITS[splits[group] - 1], SPLITS[split - 1]), key=SPLITS.index)
            what = f"the group '{group.removesuffix('/')}' is in {' and in '.join(names)}"
            fix = "let every group be in one split, or drop data.group"
            raise LabelledDataError(where, what, fix, 5)


def group_lines(rows: ImageRows, how: Loading) -> list[str]:
    """How many groups are in each split, where there are no folds that say so; and whether each
    is of one image."""
    if not how.group:
        return []
    if "train" in rows.given and len(set(rows.groups)) == len(rows):
        alone = f"groups by {how.group}: each of the {len(rows):,} images is a group by itself"
        return [f"{alone}, so that it keeps none together; name what several share, or drop it"]
    if how.folds:
        return []
    counts = {s: len(set(Picked(rows.groups, np.flatnonzero(rows.in_split(s))))) for s in SPLITS}
    each = ", ".join(f"{split} has {n}" for split, n in counts.items() if n)
    return [f"groups by {how.group}, none of them in two splits: {each}"]


def _remedy(split: str, how: Loading, given: Collection[str]) -> str:
    """What makes a part ``split`` of data that has the parts ``given``."""
    held = how.val_fraction + how.test_fraction
    if split == "val":
        return "type data.val_fraction=0.2 to split it off train"
    if held >= 1 - _EPSILON:
        return "type data.val_fraction=0.2" + (" data.test_fraction=0" if how.test_fraction else "")
    return f"add images to train on; those of {', '.join(sorted(given))} are all held out"


def _check_classes(rows: ImageRows, where: object) -> None:
    classes = {
        split: set(rows.counts(rows.in_split(split))) for split in SPLITS if split in rows.given
    }
    first, *others = classes
    for split in others:
        if classes[split] != classes[first]:
            expected, given = classes[first], classes[split]
            missing, extra = sorted(expected - given), sorted(given - expected)
            parts = [f"has no class {_listed(missing)}"] if missing else []
            parts += [f"has the class {_listed(extra)}"] if extra else []
            fix = f"let {first} and {split} have the same classes"
            if extra:
                fix += f"; for '{extra[0]}' {closest(extra[0], missing or sorted(expected))}"
            raise DataError(where, f"{split} {' and '.join(parts)}, unlike {first}", fix, 6)
    if len(classes[first]) < 2:
        what = f"there is one class ('{min(classes[first])}'); at least two are needed"
        raise DataError(where, what, "add the images of the other classes", 5)


def _listed(names: list[str]) -> str:
    return first_few([f"'{name}'" for name in names], 5)
