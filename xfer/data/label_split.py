"""Images with several labels as a data set: their split, their labels as a matrix, and remarks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xfer.core.errors import DataError, printable
from xfer.core.types import Dataset, Samples
from xfer.data.image_rows import ImageRows, code_of
from xfer.data.options import SPLITS, ImageRow, Loading
from xfer.data.split import hold_out, refuse_missing, shares

_FEW = 5  # images: rarer combinations of labels are split as one
_REST = "\0rest"


class LabelledRow(NamedTuple):
    """An image's ``row``, whose label is all that is known of it in one text, and 1, 0 or -1 a
    class."""

    row: ImageRow
    known: tuple[int, ...]


def divide_labelled(
    images: Sequence[LabelledRow], how: Loading, where: object, training: bool
) -> list[LabelledRow]:
    """Give every image a split, as :func:`xfer.data.split.divide` does it for classes: what is held
    out is a share of every combination of labels, and of the rare ones together."""
    rows = ImageRows.of(image.row for image in images)
    parts = shares(how, rows.given)
    pool = np.flatnonzero(rows.in_split("", "train"))
    counts = rows.take(pool).counts()
    alike = rows.take(pool).relabelled(lambda kind: kind if counts.get(kind, 0) >= _FEW else _REST)
    alone = [alike.kinds.index(kind) for kind, n in alike.counts().items() if n < len(parts)]
    # So few rare ones are trained on: a part of them would be nothing.
    enough = np.flatnonzero(~np.isin(alike.labels, alone))
    taken = np.full(len(pool), code_of("train"), np.int8)
    taken[enough] = hold_out(alike.take(enough), parts, how, where)
    divided = rows.moved(pool, taken)
    split = [
        image._replace(row=image.row._replace(split=row.split))
        for image, row in zip(images, divided, strict=True)
    ]
    split = [image for image in split if training or image.row.split != "train"]
    refuse_missing({image.row.split for image in split}, how, where, training)
    return split


def with_labels(
    dataset: Dataset, images: Collection[LabelledRow], classes: tuple[str, ...], where: object
) -> Dataset:
    """``dataset``, whose classes are combinations of labels, with a matrix of labels int64
    (n, classes) in each split, and a remark on what each of them has.

    Raises DataError for a class that cannot be learned: no training image is known to have it, or
    none to lack it.
    """
    known = {image.row.label: image.known for image in images}
    table = np.array([known[text] for text in dataset.classes], np.int64)
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
    lines += _empty_classes(splits, classes)
    return replace(
        dataset, classes=classes, splits=splits, remarks=(*remarks, *map(printable, lines))
    )


def _refuse_unlearnable(splits: dict[str, Samples], classes: Sequence[str], where: object) -> None:
    train = splits["train"].labels
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


def _lines(name: str, samples: Samples) -> list[str]:
    labels: npt.NDArray[np.int64] = samples.labels
    none = int((labels == 0).all(axis=1).sum())
    unknown, n = int((labels < 0).sum()), labels.size
    lines = [f"{name}: {none} of {len(labels)} images have no label at all"] if none else []
    if unknown:
        what = f"{name}: {unknown} of {n} labels are unknown"
        lines.append(f"{what}, and count neither in the loss nor in a score")
    return lines


def _empty_classes(splits: dict[str, Samples], classes: Sequence[str]) -> list[str]:
    lines = []
    for split, samples in splits.items():
        if split == "train":
            continue
        has, lacks = ((samples.labels == value).any(axis=0) for value in (1, 0))
        lost = [f"'{classes[i]}'" for i in np.flatnonzero(~(has & lacks)).tolist()]
        if lost:
            more = ", ..." * (len(lost) > _FEW)
            what = "have no image with the label, or none without it"
            lines.append(
                f"{split}: {', '.join(lost[:_FEW])}{more} {what}: they have no average precision "
                "there, and the mean leaves them out"
            )
    return lines
