"""What is packed into shards: the images of a source, and what is said of their labels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from xfer.config.verbs import override, quoted, shell
from xfer.core.errors import CombinationError, DataError
from xfer.core.types import class_name
from xfer.data.arrays import ArrayFiles
from xfer.data.arrow_columns import BETWEEN
from xfer.data.folder import Folder, listed_labels
from xfer.data.folder import listed as listed_classes
from xfer.data.folds import BY_FOLDER
from xfer.data.hf import HuggingFace
from xfer.data.image_table import Listing, labels_in
from xfer.data.listed_image import located
from xfer.data.manifest import Manifest, class_list, label_list
from xfer.data.multilabel_rows import Labelled
from xfer.data.options import place
from xfer.data.parquet import Parquet

Source = Folder | Manifest | Parquet | HuggingFace


def packable(data: object) -> Source:
    """``data``, if shards can hold it. Raises CombinationError for other kinds of data, and for a
    column of groups that shards would take for folders."""
    if isinstance(data, ArrayFiles):
        what = "is arrays, whose rows are no files that could be copied, and are read at random"
        read = shell(["data=arrays", override("data.root", data.root)])
        raise CombinationError("data", what, f"train on them as they are: {read}", 49)
    if not isinstance(data, Source):
        what = "is of a kind that is not packed: folders, lists, parquet files and hf data sets are"
        raise CombinationError("data", what, "type data=folder data.root=DIR", 49)
    if data.group == BY_FOLDER and data.groups == "COLUMN":
        what = f"is the column '{BY_FOLDER}', and of shards that means the folders of images"
        raise CombinationError("data.group", what, "give that column another name", 49)
    return data


def place_of(data: Source) -> Path | None:
    """The folder or the file that a source is; ``None`` for a data set of the hub."""
    given = data.file if isinstance(data, Manifest) else data.root
    return place(given) if given else None


def listed(data: Source, several: bool) -> tuple[Listing, Sequence[Labelled]]:
    """All images and where they are, with the splits that are given; and the labels of each where
    it may have ``several``."""
    if not isinstance(data, Folder):
        listing = _of_list(data, several) if isinstance(data, Manifest) else data.listed(several)
        return listing, labels_in(listing) if several else []
    root = place(data.root)
    labels: Sequence[Labelled] = []
    if several:
        both, remarks = listed_labels(root, grouped=data.group is not None)
        rows, labels = [row for row, _ in both], [labels for _, labels in both]
    else:
        rows, remarks = listed_classes(root)
    return Listing(rows, {row.name: root / row.name for row in rows}, remarks), labels


def _of_list(data: Manifest, several: bool) -> Listing:
    """The images of a list, whose labels are in one text where there may be ``several``. Raises
    DataError as the list does, for images outside of the folder that paths start at, and for a
    label of which shards would know nothing."""
    path = place(data.file)
    root = place(data.root) if data.root else path.parent
    if several:
        images, columns, remarks = label_list(path, data)
        rows = [
            located(image, root, bool(data.root))._replace(label=image.in_text(BETWEEN))
            for image in images
        ]
        named = {name for image in images for name in (*image.has, *image.unknown)}
        if lost := sorted({class_name(name) for name in columns} - named):
            what = f"no image has the label '{lost[0]}', and shards have the labels of images"
            raise DataError(path, what, "take that column out", 84)
    else:
        rows, remarks = class_list(path, root, data)
    if outside := [row.name for row in rows if Path(row.name).is_absolute()]:
        common = os.path.commonpath([root, *outside])
        what = f"'{outside[0]}' lies outside of {root}, where the names in shards start"
        typed = quoted(override("data.root", common))
        fix = f"let paths be absolute or start at {common}, and type {typed}"
        raise DataError(path, what, fix, 84)
    return Listing(rows, {row.name: root / row.name for row in rows}, remarks)


def in_json(image: Labelled, classes: Sequence[str]) -> str:
    """What ``KEY.json`` says of an image with several labels, or none."""
    by_value: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for name, value in zip(classes, image.row(classes), strict=True):
        by_value[value].append(name)
    unknown = {"unknown": by_value[-1]} if by_value[-1] else {}
    return json.dumps({"labels": by_value[1], **unknown})
