"""Images with several labels as a data set: their split, their labels as a matrix, and remarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xfer.core.errors import DataError, first_few, plural, printable
from xfer.core.types import Dataset, Samples, class_name
from xfer.data.dataset import look_the_same, of_files
from xfer.data.folds import into_folds
from xfer.data.image_bytes import ImagePlace
from xfer.data.image_rows import ImageRows, code_of
from xfer.data.multilabel_rows import (
    Labelled,
    classes_of,
    in_one_text,
    lost_labels,
    unnamed_words,
)
from xfer.data.options import SPLITS, ImageRow, Loading
from xfer.data.split import groups_held_out, hold_out, refuse_divided_groups, refuse_missing, shares

_FEW = 5  # images: rarer combinations of labels are split as one
_REST = "\0rest"


class ImageSource(NamedTuple):
    """Where images come from: ``where`` errors say that it is, the ``root`` of their names, the
    classes that it has ``named`` whether or not an image has them, as columns are (nothing where
    each image lists all that it has), remarks, and where the bytes of each lie, by name or in the
    order of the listing, if not in files of their own."""

    where: Path
    root: Path
    named: Sequence[str] = ()
    remarks: Sequence[str] = ()
    places: Mapping[str, ImagePlace] | Sequence[ImagePlace] | None = None


def labelled_dataset(
    listed: Sequence[tuple[ImageRow, Labelled]],
    how: Loading,
    source: ImageSource,
    training: bool,
    known: Sequence[str] = (),
) -> Dataset:
    """The data set of images and what each is labelled with; the classes are ``known`` where a
    network has learned them: one that the source has not ``named``, and names others, is unknown.
    Raises DataError as :func:`divide_labelled`, :func:`with_labels` and
    :func:`xfer.data.multilabel_rows.classes_of`."""
    named = {class_name(name) for name in source.named}
    if unnamed := [name for name in known if named and name not in named]:
        source = source._replace(remarks=[*source.remarks, unnamed_words(unnamed)])
    classes = classes_of([image for _, image in listed], source.where, source.named, known)
    values: dict[str, tuple[int, ...]] = {}

    def rows() -> Iterator[ImageRow]:
        for row, labels in listed:
            # The split hangs on the text, and is that of the fit, which did not know these classes.
            text = in_one_text(of_image := labels.row(classes), classes)
            if text not in values:
                pairs = zip(of_image, classes, strict=True)
                values[text] = tuple(-1 if not v and n in unnamed else v for v, n in pairs)
            yield row._replace(label=text)

    divided = divide_labelled(ImageRows.of(rows()), how, source.where, training)
    given = (source.root, how, source.remarks, source.places)
    dataset = of_files(divided, *given, several=True)
    if how.on_bad == "skip" and training:
        train = divided.take(np.flatnonzero(divided.in_split("train")))
        table = np.array([values[kind] for kind in train.kinds], np.int64)
        sound = set(dataset.splits["train"].names)
        left = np.flatnonzero([name in sound for name in train.names])
        if lost := lost_labels(table[train.labels], left):
            skipped = next(line for line in dataset.remarks if line.startswith("skipped "))
            lead = f"the class '{classes[min(lost)]}' cannot be learned from what is left"
            raise DataError(source.where, f"{lead}: {skipped}", "replace the broken files", 19)
    return with_labels(dataset, values, classes, source.where)


def divide_labelled(rows: ImageRows, how: Loading, where: object, training: bool) -> ImageRows:
    """Give every image a split, as :func:`xfer.data.split.divide` does it for classes: what is held
    out is a share of every combination of labels, and of the rare ones together."""
    parts = shares(how, rows.given)
    pool = np.flatnonzero(rows.in_split("", "train"))
    counts = rows.take(pool).counts()
    alike = rows.take(pool).relabelled(lambda kind: kind if counts.get(kind, 0) >= _FEW else _REST)
    taken = np.full(len(pool), code_of("train"), np.int8)
    if how.group and len(parts) > 1:
        taken = groups_held_out(alike, parts, how, where)
    else:
        alone = [alike.kinds.index(kind) for kind, n in alike.counts().items() if n < len(parts)]
        # So few rare ones are trained on: a part of them would be nothing.
        enough = np.flatnonzero(~np.isin(alike.labels, alone))
        taken[enough] = hold_out(alike.take(enough), parts, how, where)
    rows = rows.moved(pool, taken)
    refuse_divided_groups(rows, where)
    if how.folds and training:
        rows = _in_folds(rows, how, how.folds, where)
    if not training:
        rows = rows.take(np.flatnonzero(~rows.in_split("train")))
    refuse_missing(rows.given, how, where, training)
    return rows


def _in_folds(rows: ImageRows, how: Loading, count: int, where: object) -> ImageRows:
    """``rows`` with their folds, as :func:`xfer.data.folds.into_folds` has it: every combination
    of labels is spread evenly over them, and those that fewer images have than there are folds
    together; too few of these for all folds are spread with the rarest of the others.

    Raises DataError where there are fewer images than folds.
    """
    counts = Counter(rows.counts(rows.in_split("train")))
    if (total := counts.total()) < count:
        what = f"{plural(total, 'training image')} cannot be divided into {count} folds"
        raise DataError(where, what, f"type data.folds={max(total, 2)}, or add images", 50)
    common = {label: n for label, n in counts.items() if n >= count}
    alone = total - sum(common.values()) < count and common
    rest = min(common, key=lambda label: (common[label], label)) if alone else _REST
    alike = rows.relabelled(lambda kind: kind if kind in common else rest)
    folded = into_folds(alike, how, where, several=True)
    at = np.searchsorted(rows.at, folded.at)  # both ascend
    return replace(folded, kinds=rows.kinds, labels=rows.labels[at])


def with_labels(
    dataset: Dataset,
    values: Mapping[str, tuple[int, ...]],
    classes: tuple[str, ...],
    where: object,
) -> Dataset:
    """``dataset``, whose classes are combinations of labels that have these ``values`` (1, 0 or -1
    a class), with a matrix of labels int64 (n, classes) in each split, and a remark on what each
    of them has.

    Raises DataError for a class that cannot be learned: no training image is known to have it, or
    none to lack it.
    """
    table = np.array([values[text] for text in dataset.classes], np.int64)
    splits = {
        name: replace(samples, labels=table[samples.labels])
        for name, samples in dataset.splits.items()
    }
    for name, samples in splits.items():
        if (samples.labels < 0).all():
            what = f"not one label of {name} is known"
            raise DataError(where, what, "fill some in, or take those images out", 87)
    if "train" in splits:
        _refuse_unlearnable(splits, classes, where)
    remarks = [
        line.replace("images that are in two classes", "copies of an image with other labels")
        for line in dataset.remarks
    ]
    lines = [line for name in SPLITS if name in splits for line in _lines(name, splits[name])]
    lines += [*_empty_classes(splits, classes), *look_the_same(classes)]
    return replace(
        dataset, classes=classes, splits=splits, remarks=(*remarks, *map(printable, lines))
    )


def _refuse_unlearnable(splits: dict[str, Samples], classes: Sequence[str], where: object) -> None:
    train = splits["train"].labels
    _refuse_within_folds(splits["train"], classes, where)
    for i, name in enumerate(classes):
        has, lacks = int((train[:, i] == 1).sum()), int((train[:, i] == 0).sum())
        if has and lacks:
            continue
        fix = "add such images to train, or take the label out of the file"
        held = [s for s in splits if s != "train" and (splits[s].labels[:, i] == 1).any()]
        if held and not has:
            what = f"no training image has the label '{name}', and images of {held[0]} have it"
            raise DataError(where, what, fix, 86)
        what = f"no training image has the label '{name}'"
        if has:
            what = f"no training image is known to lack the label '{name}'"
        raise DataError(where, what, fix, 87)


def _refuse_within_folds(train: Samples, classes: Sequence[str], where: object) -> None:
    """Raise DataError for a label that the fit on all folds but one could not learn."""
    turns = [] if train.folds is None else [(row, k) for row in train.folds for k in np.unique(row)]
    for row, fold in turns:
        for value, has in ((1, "have"), (0, "lack")):
            held, every = (train.labels[row == fold] == value), (train.labels == value)
            lost = np.flatnonzero(every.any(axis=0) & (held.sum(axis=0) == every.sum(axis=0)))
            if len(lost):
                n, name = int(every[:, lost[0]].sum()), classes[lost[0]]
                what = f"all images known to {has} the label '{name}' ({n}) are in one fold"
                fix = "a fit without them cannot know it: add such images, or take the label out"
                raise DataError(where, what, fix, 51)


def _lines(name: str, samples: Samples) -> list[str]:
    labels: npt.NDArray[np.int64] = samples.labels
    none = int((labels == 0).all(axis=1).sum())
    unknown, n = int((labels < 0).sum()), labels.size
    have = "has" if none == 1 else "have"
    lines = [f"{name}: {none} of {len(labels)} images {have} no label at all"] if none else []
    if unknown:
        are, count = ("is", "counts") if unknown == 1 else ("are", "count")
        what = f"{name}: {unknown} of {n} labels {are} unknown"
        lines.append(f"{what}, and {count} neither in the loss nor in a score")
    return lines


def _empty_classes(splits: dict[str, Samples], classes: Sequence[str]) -> list[str]:
    lines = []
    for split, samples in splits.items():
        if split == "train":
            continue
        has, lacks = ((samples.labels == value).any(axis=0) for value in (1, 0))
        lost = [f"'{classes[i]}'" for i in np.flatnonzero(~(has & lacks)).tolist()]
        if lost:
            what = "have no image with the label, or none without it"
            lines.append(
                f"{split}: {first_few(lost, _FEW)} {what}: they have no average precision "
                "there, and the mean leaves them out"
            )
    return lines
