"""Images sorted into one folder per class, with or without folders per split."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import MinLen

from xfer.core.download import fetch_zip
from xfer.core.errors import DataError, printable
from xfer.core.files import read_json
from xfer.core.read_back import checked
from xfer.core.types import Dataset
from xfer.data.dataset import of_files
from xfer.data.folds import by_folder
from xfer.data.image_rows import ImageRows
from xfer.data.options import SPLITS, ImageRow, Loading, place
from xfer.data.split import divide, shares
from xfer.data.walk import FOREIGN, Tree

_CANIDAE = (
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com"
    "/notebook/datasets/intermediate/Canidae_data.zip"
)
SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "eval": "val"}
SYNONYMS |= {"testing": "test"} | {split: split for split in SPLITS}
"""What people call a split, in lower case, and what it is called here."""


@dataclass(frozen=True)
class Folder(Loading):
    """``root/train/<class>/``, ``root/val/<class>/`` and optionally ``root/test/<class>/``.

    Without ``val/`` it is split off ``train/``; class folders directly below ``root`` are split
    too. A ``test/`` of images without classes is left out with a remark, and a class has one name
    in whatever form of Unicode it is written. Folders inside a class folder are walked, linked
    ones as well; hidden files, files without an image's suffix and linked folders that lead back
    are left out with a remark.
    """

    groups: ClassVar[str] = "FOLDER"

    root: Annotated[str, MinLen(1)]
    """the folder; ``canidae`` and ``mnist`` have ``$XFER_DATA/Canidae`` and
    ``$XFER_DATA/MNIST``, with ``data`` where ``XFER_DATA`` is not set"""

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        root = place(self.root)
        tree = Tree(root)
        _refuse_one_split(root)
        splits = _splits(tree)
        if not training and set(shares(self, splits)) == {"train"}:
            splits = [split for split in splits if split != "train"]  # nothing is held out of it
        rows = ImageRows.of(row for split in splits for row in _rows(tree, split))
        rows = by_folder(rows, root) if self.group else rows
        return of_files(divide(rows, self, root, training), root, self, tree.remarks())


@dataclass(frozen=True)
class Canidae(Folder):
    """Dogs against wolves, the photographs of the MindSpore tutorials; downloaded when missing."""

    url: str = _CANIDAE
    """archive to download when ``root`` is missing; https only"""
    sha256: str | None = None
    """refuse an archive with another hash"""

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        root = place(self.root)
        if not root.exists():
            self._download(root)
        dataset = super().dataset(training)
        return replace(dataset, remarks=(*_origin(root), *dataset.remarks))

    def _download(self, root: Path) -> None:
        try:
            fetch_zip(self.url, root, "Canidae", self.sha256)
        except DataError as error:
            what = f"there is no such folder, and {error.where} {error.what}"
            fix = (
                f"put the images into {root}/train/{{dogs,wolves}} and {root}/val/{{dogs,wolves}},"
                " or set XFER_DATA=DIR where DIR/Canidae holds them"
            )
            raise DataError(root, what, fix, 25) from error


def _origin(root: Path) -> list[str]:
    try:
        facts = checked(dict[str, str], read_json(root / ".origin.json"))
        return [printable(f"downloaded from {facts['url']}, sha256 {facts['sha256']}")]
    except (OSError, ValueError, KeyError):
        return []  # there is none, or it is not ours: the images are looked at all the same


def listed(root: Path) -> tuple[list[ImageRow], list[str]]:
    """All images below ``root``, in order, with the splits that have folders, and remarks on what
    was left out. Raises DataError as :meth:`Folder.dataset`."""
    tree = Tree(root)
    _refuse_one_split(root)
    rows = [row for split in _splits(tree) for row in _rows(tree, split)]
    return rows, tree.remarks()


def _splits(tree: Tree) -> list[str]:
    """The split folders below the root; one empty name when the class folders are there."""
    root, top = tree.root, tree.folders("")
    splits = [split for split in SPLITS if split in top]
    if len(splits) < len(top) and not any(map(tree.has_folders, splits)):
        splits = []  # classes that happen to be called train or test
    for name in sorted(set(top) - set(splits)):
        _refuse_misnamed(tree, name, bool(splits))
        if splits:
            tree.leave_out(name, "beside the splits")
    if not splits and len(top) == 1 and tree.has_folders(top[0]):
        what = f"holds one folder, '{top[0]}', and that holds folders"
        raise DataError(root, what, f"did you mean data.root={root / top[0]}?", 5)
    ahead = Tree(root)  # a look ahead: what this one leaves out gives no remark
    flat = len(splits) > 1 and "test" in splits and not ahead.folders("test")
    if flat and Tree(root).images("test"):
        splits.remove("test")
        tree.leave_out("test", "images without classes; give them to predict.input")
    for split in splits or [""]:
        for label in ahead.folders(split):
            _refuse_data_set(ahead, f"{split}/{label}" if split else label)
    return splits or [""]


def _refuse_misnamed(tree: Tree, name: str, beside: bool) -> None:
    near = difflib.get_close_matches(name.lower(), SPLITS, 1) if beside else []
    meant = SYNONYMS.get(name.lower(), near[0] if near else None)
    if meant and tree.has_folders(name):
        what = f"is not the name of a split; did you mean '{meant}'?"
        raise DataError(tree.root / name, what, f"rename the folder to {tree.root / meant}", 3)


def _refuse_one_split(root: Path) -> None:
    """Raise DataError where the root is one split of a data set that has another beside it."""
    if root.name.lower() not in SYNONYMS:
        return
    classes = set(Tree(root).folders(""))
    for name in Tree(root.parent).folders(""):
        beside, is_split = root.parent / name, name.lower() in SYNONYMS
        if name != root.name and is_split and classes & set(Tree(beside).folders("")):
            what = f"is one split of a data set: {beside} lies beside it"
            raise DataError(root, what, f"type data.root={root.parent}", 72)


def _refuse_data_set(tree: Tree, below: str) -> None:
    """Raise DataError where a class folder holds splits: it is a data set, and no class."""
    inner = tree.folders(below)
    splits = {SYNONYMS[name.lower()] for name in inner if name.lower() in SYNONYMS}
    if len(splits) > 1 or (splits and all(name.lower() in SYNONYMS for name in inner)):
        what = f"its folder '{below}' is a data set, not a class: it holds {', '.join(inner[:3])}"
        raise DataError(tree.root, what, f"did you mean data.root={tree.root / below}?", 71)


def _other_option(folder: Path) -> str:
    """What reads a folder that has no images but tar files or tables; empty for neither."""
    kinds = {"tar": "shards", "parquet": "parquet", "arrow": "hf", "npy": "arrays"}
    for suffix, option in kinds.items():
        if any(folder.glob(f"*.{suffix}")):
            return f"type data={option} to read its {suffix} files"
    return ""


def _rows(tree: Tree, split: str) -> Iterator[ImageRow]:
    labels, folder = tree.folders(split), tree.root / split
    if not labels:
        what = "; ".join(["holds no class folders", *tree.remarks()])
        examples = f"{folder / 'cats'} and {folder / 'dogs'}"
        fix = f"sort the images into one folder per class, such as {examples}"
        fix = _other_option(folder) or fix
        raise DataError(folder, what, fix, 2)
    for label in labels:
        below = f"{split}/{label}" if split else label
        names = tree.images(below)
        if not names:
            what = "; ".join(["holds no images", *tree.remarks(f"{below}/")])
            fix = _other_option(tree.root / below) or "add images or remove the folder"
            if FOREIGN in what:
                fix = f"convert them, as with: magick mogrify -format png '{tree.root / below}'/*"
            raise DataError(tree.root / below, what, fix, 7)
        yield from (ImageRow(name, label, split) for name in names)
