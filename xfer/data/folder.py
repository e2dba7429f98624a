"""Images sorted into one folder per class, with or without folders per split."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import MinLen

from xfer.config.verbs import override, quoted
from xfer.core.download import fetch_zip
from xfer.core.errors import DataError, LabelledDataError, printable
from xfer.core.files import read_json
from xfer.core.read_back import checked
from xfer.core.types import Dataset, class_name
from xfer.data.dataset import of_files
from xfer.data.folds import BY_FOLDER, by_folder
from xfer.data.image_rows import ImageRows
from xfer.data.leakage import in_one_line
from xfer.data.multilabel_rows import Labelled, lines_on_labels
from xfer.data.multilabel_split import ImageSource, labelled_dataset
from xfer.data.options import SPLITS, ImageRow, Loading, place
from xfer.data.split import divide, shares
from xfer.data.walk import FOREIGN, Tree

_Labelled = list[tuple[ImageRow, Labelled]]

_CANIDAE = (
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com"
    "/notebook/datasets/intermediate/Canidae_data.zip"
)
SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "eval": "val"}
SYNONYMS |= {"testing": "test"} | {split: split for split in SPLITS}
"""What people call a split, in lower case, and what it is called here."""
_IN_A_NAME = re.compile(rf"(?<![a-z])({'|'.join(SYNONYMS)})(?:set|data|images)?(?![a-z])")


@dataclass(frozen=True)
class Folder(Loading):
    """``root/train/<class>/``, ``root/val/<class>/`` and optionally ``root/test/<class>/``.

    Without ``val/`` it is split off ``train/``; class folders directly below ``root`` are split
    too. Beside a folder to train on, ``validation/``, ``Testing/`` and what else people call a
    split are read under their own names, with a remark; ``seg_train/`` and ``seg_test/`` too, where
    they have a class in common. A ``test/`` of images without classes is left out with a remark,
    and a class has one name in whatever form of Unicode it is written.
    Folders inside a class folder are walked, linked ones as well, with a remark where a class has
    nothing else; hidden files, files without an image's suffix and linked folders that lead back
    are left out with a remark.

    With ``task=multilabel`` an image has the label of every folder on its way from the root, or
    from the folder of its split; one that lies directly there has none. With ``group`` the
    outermost of these folders is a group, and no label.
    """

    groups: ClassVar[str] = BY_FOLDER

    root: Annotated[str, MinLen(1)]
    """the folder; ``canidae`` and ``mnist`` have ``$XFER_DATA/Canidae`` and
    ``$XFER_DATA/MNIST``, with ``data`` where ``XFER_DATA`` is not set"""

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        root = place(self.root)
        tree = Tree(root)
        _refuse_one_split(root)
        splits = _splits(tree)
        read = dict(splits)
        if not training and set(shares(self, splits)) == {"train"}:
            read.pop("train", None)  # nothing is held out of it
        rows = ImageRows.of(row for split in read for row in _rows(tree, split, read[split]))
        rows = by_folder(rows, root) if self.group else rows
        nested = [] if self.group else _nested(root, splits.values())
        remarks = [*called_splits(splits), *nested, *tree.remarks()]
        return of_files(divide(rows, self, root, training), root, self, remarks)

    def labelled(self, training: bool, known: tuple[str, ...] = ()) -> Dataset:
        """The same where each folder on the way to an image is one of its labels. See
        :class:`xfer.core.protocols.ReadsLabels`."""
        root = place(self.root)
        rows, remarks = listed_labels(root, alone=bool(known), grouped=self.group is not None)
        if not training and set(shares(self, {row.split for row, _ in rows})) == {"train"}:
            rows = [(row, labels) for row, labels in rows if row.split != "train"]
        if self.group:
            groups = by_folder((row for row, _ in rows), root, in_classes=False)
            rows = [(row, labels) for row, (_, labels) in zip(groups, rows, strict=True)]
        return labelled_dataset(rows, self, ImageSource(root, root, (), remarks), training, known)


@dataclass(frozen=True)
class Canidae(Folder):
    """Dogs against wolves, the photographs of the MindSpore tutorials; downloaded when missing."""

    url: str = _CANIDAE
    """archive to download when ``root`` is missing; https only"""
    sha256: str | None = None
    """refuse an archive with another hash"""

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        self._download()
        return self._with_origin(super().dataset(training))

    def labelled(self, training: bool, known: tuple[str, ...] = ()) -> Dataset:
        """See :meth:`Folder.labelled`."""
        self._download()
        return self._with_origin(super().labelled(training, known))

    def _with_origin(self, dataset: Dataset) -> Dataset:
        return replace(dataset, remarks=(*_origin(place(self.root)), *dataset.remarks))

    def _download(self) -> None:
        """Fetch the images where they are missing."""
        root = place(self.root)
        if root.exists():
            return
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
    splits = _splits(tree)
    rows = [row for split, folder in splits.items() for row in _rows(tree, split, folder)]
    return rows, [*called_splits(splits), *tree.remarks()]


def listed_labels(
    root: Path, alone: bool = False, grouped: bool = False
) -> tuple[_Labelled, list[str]]:
    """All images below ``root``, in order, with the splits that have folders and the labels that
    are the folders on the way to them, and remarks. One folder may be ``alone`` with all of them
    where a network knows the labels that no image here has. Where images are ``grouped`` the
    outermost folder is their group, and no label.

    Raises DataError as :meth:`Folder.dataset`, for a name that is no label's, and for one that is
    there twice on the way to an image.
    """
    tree = Tree(root)
    _refuse_one_split(root)
    splits = _splits(tree, nested=True)
    flat = "" in splits
    tree = Tree(root) if flat else tree  # nothing lies outside of the folders then
    names = {split: tree.images(folder) for split, folder in splits.items()}
    for split, folder in splits.items():
        _check_folders(tree, folder, names[split])
    ways = {way for some in names.values() for way in map(_way_to, some)}
    tops = {way.partition("/")[0] for way in ways}
    if flat and not alone and len(tops) == 1:
        _refuse_lone(tree, min(tops))
    labels = {way: _labels_of(root, way, (not flat) + grouped) for way in sorted(ways)}
    rows = [
        (ImageRow(name, "", split), Labelled(str(root / name), "", "", labels[_way_to(name)]))
        for split in splits
        for name in names[split]
    ]
    lines = [*tree.remarks(), *lines_on_labels(labels.values())]
    if grouped:
        groups = {part for way in ways for part in way.split("/")[not flat :][:1] if part}
        what = "the outermost folders are groups, and no labels"
        lines.append(printable(f"{what}: {in_one_line(sorted(groups))}"))
    return rows, [*called_splits(splits), *lines]


def _way_to(name: str) -> str:
    return name.rpartition("/")[0]


def _labels_of(root: Path, way: str, above: int) -> tuple[str, ...]:
    """The labels of the images in the folder ``way``: its folders but for those ``above``, of the
    split and of the group."""
    folders = way.split("/")[above:] if way else []
    names = tuple(class_name(folder) for folder in folders)
    for name in names:
        if not name.strip() or name.startswith("?") or "\x1f" in name:
            what = f"the folder '{name}' has a name that no label can have"
            fix = "rename it: a label is no blank, and '?' in front of one says that it is unknown"
            raise LabelledDataError(root / way, what, fix, 0)
        if names.count(name) > 1:
            what = f"two folders on the way to an image are called '{name}', which is one label"
            raise LabelledDataError(root / way, what, "rename one of the two, or move it up", 1)
    return names


def _check_folders(tree: Tree, top: str, names: Sequence[str]) -> None:
    """Raise DataError for a folder from ``top`` on that has no image in it and below, and for one
    that holds splits; ``names`` are all images below ``top``."""
    ways = {top}
    for way in set(map(_way_to, names)):
        while way not in ways:
            ways.add(way)
            way = _way_to(way)
    if not names:
        raise _no_images(tree, top)
    for way in sorted(ways):
        if way != top:
            _refuse_data_set(Tree(tree.root), way)
        for name in tree.folders(way, outside=False):
            if (folder := f"{way}/{name}" if way else name) not in ways:
                raise _no_images(tree, folder)


def _splits(tree: Tree, nested: bool = False) -> dict[str, str]:
    """The folders of the splits below the root, by split; one empty name when the class folders,
    which may be ``nested``, are there."""
    top, ahead = tree.folders(""), Tree(tree.root)  # to look ahead, without a remark
    splits = named_splits(tree.root, top, Tree(tree.root).folders)
    if len(splits) < len(top) and not any(map(tree.has_folders, splits.values())):
        splits = {}  # classes that happen to be called train or test
    called = {split_in(name): name for name in top if not (splits or nested)}
    flat = "train" in called and "" not in called and not any(map(tree.has_folders, top))
    if flat and _other_option(tree.root):
        splits = called  # as contests have them: images alone, and a list beside them
    for name in sorted(set(top) - set(splits.values())):
        _refuse_misnamed(tree, name, splits)
        if splits:
            tree.leave_out(name, "beside the splits")
    if not splits and len(top) == 1 and not nested:
        _refuse_lone(tree, top[0])
    test = splits.get("test", "")
    if len(splits) > 1 and test and not ahead.folders(test) and Tree(tree.root).images(test):
        del splits["test"]
        tree.leave_out(test, "images without classes; give them to predict.input")
    classes = ((at, label) for at in splits.values() or [""] for label in ahead.folders(at))
    for at, label in classes:
        _refuse_data_set(ahead, f"{at}/{label}" if at else label)
    return splits or {"": ""}


def named_splits(
    root: Path, top: Sequence[str], held: Callable[[str], Collection[str]]
) -> dict[str, str]:
    """Which of the folders ``top`` in ``root`` are called as a split, by split: ``train``, ``val``
    and ``test`` as they are, and beside a folder to train on what else people call them, where
    something is ``held`` in it. A longer name with such a word counts where something of the same
    name is held in the folder to train on. Raises DataError for two of one split."""
    splits = {split: split for split in SPLITS if split in top}
    called = {name: split for name in top if (split := split_in(name))}
    training = [name for name, split in called.items() if split == "train"]
    if not training:
        return splits  # a class may be called valid
    train = min(training, key=lambda name: (name != "train", name.lower() not in SYNONYMS))
    for name in (name for name in called if name not in SPLITS and held(name)):
        beside = [train] if name != train else [other for other in called if other != train]
        split, longer = called[name], name.lower() not in SYNONYMS
        if longer and (split in splits or not any(set(held(name)) & {*held(o)} for o in beside)):
            continue
        if split in splits:
            what = f"is called as the split '{split}', and so is '{splits[split]}' beside it"
            fix = "put the images of both into one of the two, or move one away"
            raise DataError(root / name, what, fix, 3)
        splits[split] = name
    return {split: splits[split] for split in SPLITS if split in splits}


def split_in(name: str) -> str:
    """The split that ``name`` says, whole or with a word of its own; empty for none or several."""
    found = {SYNONYMS[word] for word in _IN_A_NAME.findall(name.lower())}
    return found.pop() if len(found) == 1 else ""


def called_splits(splits: Mapping[str, str]) -> list[str]:
    """Which split each folder of another name is."""
    return [
        printable(f"the folder '{folder}' is the split {split}")
        for split, folder in splits.items()
        if folder != split
    ]


def _nested(root: Path, splits: Iterable[str]) -> list[str]:
    """A line on class folders that hold folders alone, which may be the classes."""
    tree = Tree(root)
    classes = [f"{top}/{label}" if top else label for top in splits for label in tree.folders(top)]
    inner = {name: some for name in classes if len(some := tree.folders_alone(name)) > 1}
    if not inner:
        return []
    (first, *_), *_ = inner.values()
    count, fix = sum(map(len, inner.values())), "call the folders above them train, val and test"
    if len(inner) == 1:
        fix = f"type {_rooted(root / next(iter(inner)))}"
    what = f"folders below a class folder are no classes of their own: {count}, such as '{first}'"
    return [printable(f"{what}; if they are, {fix}")]


def _refuse_lone(tree: Tree, name: str) -> None:
    """Raise DataError where the one folder that there is holds folders, or has a list beside it."""
    if name and tree.has_folders(name):
        what = f"holds one folder, '{name}', and that holds folders"
        raise DataError(tree.root, what, f"did you mean {_rooted(tree.root / name)}?", 5)
    if name and (fix := _other_option(tree.root)):
        what = f"there is one class ('{name}'); at least two are needed"
        raise DataError(tree.root, what, fix, 5)


def _refuse_misnamed(tree: Tree, name: str, splits: Mapping[str, str]) -> None:
    inner, split = Tree(tree.root).folders(name), split_in(name)
    if split and split not in splits and len(inner) == 1 and tree.has_folders(f"{name}/{inner[0]}"):
        what = f"holds one folder, '{inner[0]}', and that holds folders"
        fix = f"type mv {quoted(str(tree.root / name / inner[0]))} {quoted(str(tree.root / split))}"
        raise DataError(tree.root / name, what, fix, 3)
    near = difflib.get_close_matches(name.lower(), SPLITS, 1) if splits else []
    meant = SYNONYMS.get(name.lower(), near[0] if near else None)
    if meant and meant not in splits and tree.has_folders(name):
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
            raise DataError(root, what, f"type {_rooted(root.parent)}", 72)


def _refuse_data_set(tree: Tree, below: str) -> None:
    """Raise DataError where a class folder holds splits: it is a data set, and no class."""
    inner = tree.folders(below)
    splits = {SYNONYMS.get(name.lower()) for name in inner}
    if len(splits - {None}) > 1 or (splits and None not in splits):
        what = f"its folder '{below}' is a data set, not a class: it holds {', '.join(inner[:3])}"
        raise DataError(tree.root, what, f"did you mean {_rooted(tree.root / below)}?", 71)


def _rooted(folder: Path) -> str:
    return quoted(override("data.root", str(folder)))


def _other_option(folder: Path) -> str:
    """What reads a folder of tar files or tables, or one with a list; empty for none of them."""
    kinds = {"*.tar": "shards", "*.parquet": "parquet", "*.arrow": "hf", "*.npy": "arrays"}
    for pattern, option in {"pack.json": "shards", **kinds}.items():
        if any(folder.glob(pattern)):
            return f"type data={option} to read its {pattern.lstrip('*.')} files"
    if lists := sorted(folder.glob("*.csv")):
        return f"type data=csv {quoted(override('data.file', str(lists[0])))} to read a list"
    return ""


def _rows(tree: Tree, split: str, top: str) -> Iterator[ImageRow]:
    labels, folder = tree.folders(top), tree.root / top
    if not labels:
        what = "; ".join(["holds no class folders", *tree.remarks()])
        fix = "sort the images into one folder per class, such as "
        fix += f"{folder / 'cats'} and {folder / 'dogs'}"
        raise DataError(folder, what, _other_option(folder) or _other_option(tree.root) or fix, 2)
    for label in labels:
        below = f"{top}/{label}" if top else label
        if not (names := tree.images(below)):
            raise _no_images(tree, below)
        yield from (ImageRow(name, label, split) for name in names)


def _no_images(tree: Tree, below: str) -> DataError:
    folder = tree.root / below
    what = "; ".join(["holds no images", *tree.remarks(f"{below}/" if below else "")])
    fix = _other_option(folder) or _set_in(tree.root, below) or "add images or remove the folder"
    if FOREIGN in what:
        fix = f"convert them, as with: magick mogrify -format png {quoted(str(folder))}/*"
    return DataError(folder, what, fix, 7)


def _set_in(root: Path, empty: str) -> str:
    """What reads the class folders in the one folder of ``root`` that is to train on or, where no
    other has images, that has any. None where what is ``empty`` is a split or lies in one."""
    if "/" in empty or empty.lower() in SYNONYMS:
        return ""
    classes = {name: Tree(root).classes_in(name) for name in Tree(root).folders("")}
    sets = [name for name, count in classes.items() if count > 1]
    training = [name for name in sets if split_in(name) == "train"]
    named = training if training or 1 in classes.values() else sets
    return f"type {_rooted(root / named[0])} to read its class folders" if len(named) == 1 else ""
