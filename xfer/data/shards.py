"""Images in plain tar files, as WebDataset and ``xfer pack`` write them, read at random."""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from annotated_types import MinLen

from xfer.config.verbs import quoted
from xfer.core.errors import DataError
from xfer.core.files import read_bytes
from xfer.core.types import Dataset, class_name
from xfer.data.dataset import of_files
from xfer.data.folder import SYNONYMS, called_splits, named_splits
from xfer.data.folds import BY_FOLDER, by_folder
from xfer.data.image_bytes import ImagePlace
from xfer.data.image_places import TarMembers
from xfer.data.image_rows import ImageRows
from xfer.data.multilabel_rows import Labelled, labelled_with
from xfer.data.multilabel_split import ImageSource, labelled_dataset
from xfer.data.options import SPLITS, ImageRow, Loading, place
from xfer.data.pack_index import ShardFacts, check_pack, index_file, index_name, read_index
from xfer.data.split import divide, shares
from xfer.data.tar_index import COMPRESSED, TarIndex, TarSample, index_of
from xfer.data.walk import Tree, note_lines

CLASSES = "classes.txt"
_WORDS = re.compile(r"[^a-z]+")


@dataclass(frozen=True)
class Shards(Loading):
    """``root/train/*.tar``, ``root/val/*.tar`` and optionally ``root/test/*.tar``, or folders that
    are called as :class:`xfer.data.folder.Folder` reads them.

    Without ``val/`` it is split off ``train/``; tar files directly below ``root`` are split too, as
    images in folders are. A tar file holds ``KEY.jpg`` and ``KEY.cls``, or ``KEY.json`` with a
    ``label``; with ``task=multilabel`` it has ``labels``, a list, and ``unknown``, those that
    nobody has looked for. A label is the name of a class, or where there is a
    ``root/classes.txt``, which has a class a line, also a position in it, from 0. Nothing is
    unpacked: an image is read at its offset, in any order. ``group`` is ``FOLDER``, or the column
    that grouped the images when ``xfer pack`` wrote the shards.
    """

    groups: ClassVar[str] = "COLUMN"

    root: Annotated[str, MinLen(1)]
    """the folder of the tar files, such as the ``OUT`` of ``xfer pack DIR OUT``"""

    def dataset(self, training: bool) -> Dataset:
        """See :meth:`Loading.dataset`."""
        root = place(self.root)
        found = self._listed(root, training)
        rows = by_folder(found.rows, root) if self.group == BY_FOLDER else found.rows
        divided = divide(rows, self, root, training)
        return of_files(divided, root, self, found.remarks, found.places)

    def labelled(self, training: bool, known: tuple[str, ...] = ()) -> Dataset:
        """The same where an image may have several labels: ``KEY.json`` has ``labels``, a list, and
        if it likes ``unknown``. See :class:`xfer.core.protocols.ReadsLabels`."""
        root = place(self.root)
        found = self._listed(root, training, several=True)
        rows = found.rows
        if self.group == BY_FOLDER:
            rows = by_folder(rows, root, in_classes=False)
        listed = list(zip(rows, found.labels, strict=True))
        source = ImageSource(root, root, _classes(root), found.remarks, found.places)
        return labelled_dataset(listed, self, source, training, known)

    def _listed(self, root: Path, training: bool, several: bool = False) -> _Listed:
        """The images of all tar files that are asked for."""
        tars, remarks = _tars(root)
        check_pack(root, tars)
        if not training and set(shares(self, tars)) == {"train"}:
            tars.pop("train", None)  # nothing is held out of it
        column = None if self.group == BY_FOLDER else self.group
        return _listed(root, tars, several, remarks, column)


class _Listed(NamedTuple):
    """The images of tar files: rows in the order of files and members, where each lies, its labels
    where it may have several, and remarks."""

    rows: ImageRows
    places: TarMembers
    labels: list[Labelled]
    remarks: list[str]


def _tars(root: Path, divided: bool = True) -> tuple[dict[str, list[Path]], list[str]]:
    """The tar files of each split, of one with an empty name where there are no folders of splits;
    and remarks. Unless they are ``divided``, those in one folder may be of several splits."""
    tree = Tree(root)
    beside, folders, notes = _tars_in(root), tree.folders(""), {}

    def held(name: str) -> list[str]:
        return ["tar"] if any((root / name).glob("*.tar")) else []

    splits = named_splits(root, folders, held)
    for name in (n for n in folders if n not in splits.values() and held(n)):
        if meant := SYNONYMS.get(name.lower()):
            what = f"is not the name of a split; did you mean '{meant}'?"
            fix = f"type mv {quoted(str(root / name))} {quoted(str(root / meant))}"
            raise DataError(root / name, what, fix, 85)
        notes[name] = "left out (no folder of a split)"
    by_split = {split: _tars_in(root / name) for split, name in splits.items()}
    if any(by_split.values()):
        for split in (split for split, tars in by_split.items() if not tars):
            what, fix = "holds no tar files", "add them, or remove the folder"
            raise DataError(root / splits[split], what, fix, 77)
        notes |= {path.name: "left out (beside the splits)" for path in beside}
    else:
        if divided:
            _refuse_mixed(root, beside)
        by_split = {"": beside}
    if not any(by_split.values()):
        check_pack(root, by_split)
        what = "holds no tar files, nor does train, val or test in it"
        fix = "give the folder of the *.tar files, or type data=folder for images in folders"
        raise DataError(root, what, fix, 77)
    return by_split, [*called_splits(splits), *note_lines(notes)]


def _tars_in(folder: Path) -> list[Path]:
    """The tar files directly in ``folder``, by name. Raises DataError for compressed ones."""
    found = []
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        what, fix = f"cannot be read ({error.strerror})", "check the folder's permissions"
        raise DataError(folder, what, fix, 77) from error
    for name in (name for name in names if not name.startswith(".")):
        for ending, command in COMPRESSED.items():
            if name.lower().endswith(ending):
                what = "is compressed, and an image in the middle of it cannot be read alone"
                fix = f"type {command} {quoted(str(folder / name))}"
                raise DataError(folder / name, what, fix, 78)
        if name.endswith(".tar"):
            found.append(folder / name)
    return found


def _refuse_mixed(root: Path, tars: Sequence[Path]) -> None:
    """Raise DataError where the names of tar files say that they are several splits."""
    meant = {p: {SYNONYMS.get(w) for w in _WORDS.split(p.stem.lower())} - {None} for p in tars}
    splits = {split for some in meant.values() for split in some}
    if len(splits) > 1:
        odd = next(path for path, some in meant.items() if some - {"train"})
        what = f"its tar files are of several splits by their names, such as '{odd.name}'"
        folders = " and ".join(str(root / str(split)) for split in SPLITS if split in splits)
        raise DataError(root, what, f"put the tar files of each into {folders}", 85)


def members_of(root: Path) -> dict[str, ImagePlace]:
    """Where the images in the shards below ``root`` lie, by name; nothing where there are none that
    can be read. No link is followed that leads out of ``root``."""
    whole = root.resolve()
    try:
        tars = _tars(root)[0].items()
        inside = {s: [t for t in some if t.resolve().is_relative_to(whole)] for s, some in tars}
        found = _listed(root, inside, None)
        return dict(zip(found.rows.names, found.places, strict=True))
    except DataError:
        return {}


def unlabelled(root: Path) -> tuple[Sequence[str], Sequence[ImagePlace], list[str]]:
    """What the images in a tar file, or in those below a folder, are called, where they lie, and
    remarks; whatever is said of their labels. Raises DataError as :meth:`Shards.dataset` does."""
    if root.is_file():
        found = _listed(root.parent, {"": [root]}, None)
    else:
        tars, remarks = _tars(root, divided=False)
        check_pack(root, tars)
        found = _listed(root, tars, None, remarks)
    return found.rows.names, found.places, found.remarks


def _listed(
    root: Path,
    tars: Mapping[str, Sequence[Path]],
    several: bool | None,
    remarks: Sequence[str] = (),
    column: str | None = None,
) -> _Listed:
    """The images of all tar files; each may have ``several`` labels, or has one, or ``None``:
    nobody asks. They are grouped by what was that ``column`` when they were packed."""
    listing = _Listing(_classes(root), several, column)
    rows = ImageRows.of(
        row for split, some in tars.items() for path in some for row in listing.rows(split, path)
    )
    members = listing.members(rows.names)
    _refuse_twice(rows.names, members)
    classes = () if several is not False else listing.classes
    lines = [*remarks, *_lines(listing.left_out, classes, rows)]
    return _Listed(rows, members, listing.labels, lines)


class _Listing:
    """The tar files that have been read so far, and where the images in them are."""

    def __init__(self, classes: tuple[str, ...], several: bool | None, column: str | None) -> None:
        self.classes, self.several, self.column = classes, several, column
        self.labels: list[Labelled] = []
        self.left_out: dict[str, tuple[int, str]] = {}
        self._files: list[Path] = []
        self._folders: list[str] = []
        self._ends: list[int] = []
        # Of each image: where it starts in its file, and its bytes.
        self._starts, self._sizes = array("I"), array("i")
        self._others: dict[int, str] = {}
        self._hashes = bytearray()  # empty until a pack has written one

    def rows(self, split: str, path: Path) -> Iterator[ImageRow]:
        """The images of a tar file."""
        index = index_of(path, self.several is not None)
        if not index.samples:
            what, fix = "holds no image", "remove it, or write it again"
            raise DataError(path, what, fix, 81)
        # That of the split may be called otherwise, as validation is.
        top = path.parent.name if split else ""
        folder = f"{top}/" if top else ""
        facts = _indexed(path, index)
        digests = [row[3] for row in facts.images] if facts else repeat("")
        groups = repeat("") if self.column is None else _groups(path, facts, self.column)
        for sample, digest, group in zip(index.samples, digests, groups, strict=False):
            name = name_of(top, sample.key, sample.suffix)
            if self.several:
                self.labels.append(_labels(path, sample, self.classes))
            label = "" if self.several is not False else _single(path, sample, self.classes)
            if folder + sample.name != name:
                self._others[len(self._sizes)] = sample.name
            if digest and not self._hashes:
                self._hashes += bytes(32 * len(self._sizes))
            self._starts.append(sample.start // BLOCKSIZE)  # where an image begins in any tar file
            self._sizes.append(sample.size)
            if self._hashes or digest:
                self._hashes += bytes.fromhex(digest) or bytes(32)
            yield ImageRow(name, label, split, group)
        self._files.append(path)
        self._folders.append(folder)
        self._ends.append(len(self._sizes))
        for why, (count, first) in index.left_out.items():
            before, shown = self.left_out.get(why, (0, f"{path.name}/{first}"))
            self.left_out[why] = before + count, shown

    def members(self, names: Sequence[str]) -> TarMembers:
        """Where all of them are, by the ``names`` of their rows."""
        digests = np.frombuffer(self._hashes, np.uint8).reshape(-1, 32) if self._hashes else None
        return TarMembers(
            files=self._files,
            folders=self._folders,
            names=names,
            ends=self._ends,
            starts=np.frombuffer(self._starts, np.uint32),
            sizes=np.frombuffer(self._sizes, np.int32),
            others=self._others,
            digests=digests,
        )


def _single(path: Path, sample: TarSample, classes: Sequence[str]) -> str:
    """The class of an image. Raises DataError for one that has labels alone."""
    if not sample.label:
        what = f"'{sample.key}.json' has labels, and no label"
        raise DataError(path, what, "type task=multilabel", 81)
    return _class(path, sample.name, sample.label, classes)


def _labels(path: Path, sample: TarSample, classes: Sequence[str]) -> Labelled:
    """The labels of an image. Raises DataError for one that has a label alone."""
    if not sample.several:
        what = f"'{sample.name}' has one label, and no list of labels in '{sample.key}.json'"
        fix = 'write {"labels": [...]} into KEY.json beside every KEY.jpg, or type task=single'
        raise DataError(path, what, fix, 81)
    given: list[list[str]] = json.loads(sample.several)
    has, unknown = (tuple(_class(path, sample.name, n, classes) for n in some) for some in given)
    return labelled_with(f"{path}: {sample.name}", has, unknown)


def _refuse_twice(names: Sequence[str], members: TarMembers) -> None:
    """Raise DataError where two images have one name."""
    keys = np.fromiter(map(hash, names), np.int64, len(names))
    keys.sort()
    often = {int(key) for key in keys[1:][keys[1:] == keys[:-1]]}
    first: dict[str, int] = {}
    for i, name in enumerate(names) if often else ():
        if hash(name) in often and (before := first.setdefault(name, i)) != i:
            shards = [members.files[members.file_of(at)] for at in (before, i)]
            what = f"the image '{name}' is in {shards[0]} too"
            fix = "give every image of a split a key of its own, or remove one of the files"
            raise DataError(shards[1], what, fix, 81)


def _lines(
    left_out: Mapping[str, tuple[int, str]], classes: Sequence[str], rows: ImageRows
) -> Iterator[str]:
    for why, (count, first) in sorted(left_out.items()):
        more = f" and {count - 1} more" if count > 1 else ""
        yield f"left out ({why}): '{first}'{more}"
    seen = rows.counts()
    if empty := [name for name in classes if name not in seen]:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        yield f"{CLASSES} names classes without an image: '{empty[0]}'{more}"


def _classes(root: Path) -> tuple[str, ...]:
    """The lines of ``classes.txt``; nothing where there is none."""
    path = root / CLASSES
    try:
        text = read_bytes(path).decode("utf-8-sig", "surrogateescape")
    except FileNotFoundError:
        return ()
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise DataError(path, what, "give a text file of a class a line", 82) from error
    names = tuple(class_name(line.removesuffix("\r")) for line in text.split("\n"))
    names = names[:-1] if names[-1] == "" else names
    odd = [name for i, name in enumerate(names) if not name.strip() or name in names[:i]]
    if odd or not names:
        what = f"the class '{odd[0]}' stands there twice" if odd and odd[0] else "has an empty line"
        raise DataError(path, what, "give every class one line", 82)
    return names


def _class(path: Path, member: str, label: str, classes: Sequence[str]) -> str:
    """The name of the class that a label means."""
    if not classes:
        return label
    if label.isdecimal() and label.isascii() and int(label) < len(classes):
        return classes[int(label)]
    if class_name(label) in classes and not label.isdecimal():
        return label
    what = f"the label '{label[:80]}' of '{member}' is no class of {CLASSES}, 0 to"
    fix = f"correct {CLASSES}, or remove it where the labels are the names of classes"
    raise DataError(path, f"{what} {len(classes) - 1}", fix, 82)


def _indexed(path: Path, index: TarIndex) -> ShardFacts | None:
    """What ``xfer pack`` wrote beside a tar file. Raises DataError where that is of another."""
    facts = read_index(path)
    if facts is None:
        return None
    given = [tuple(row[:3]) for row in facts.images]
    if given != [(index_name(s.name), s.start, s.size) for s in index.samples]:
        what = f"does not describe {path.name}, which has other images or at other bytes"
        fix = f"pack the images again, or remove it: rm {quoted(str(index_file(path)))}"
        raise DataError(index_file(path), what, fix, 83)
    return facts


def _groups(path: Path, facts: ShardFacts | None, column: str) -> tuple[str, ...]:
    """The group of every image as its index has it. Raises DataError where it was not packed with
    that ``column``."""
    if facts is None or facts.group != column or len(facts.groups) != len(facts.images):
        what = f"was packed without groups by '{column}'"
        fix = f"type xfer pack SOURCE NEW data.group={column}; for folders data.group={BY_FOLDER}"
        if facts and facts.group not in ("", column):
            what, fix = f"{what}: it has '{facts.group}'", f"type data.group={facts.group}"
        raise DataError(path, what, fix, 92)
    return facts.groups


def name_of(top: str, key: str, suffix: str) -> str:
    """The name of an image, which is its path below the folder that was packed; ``top`` is the
    folder of its split."""
    folder, slash, stem = key.rpartition("/")
    stem = re.sub(r"%7E[^%/]*\Z", "", stem)
    stem = re.sub(r"%(2E|25)", lambda found: {"2E": ".", "25": "%"}[found[1]], stem)
    return f"{top}/{folder}{slash}{stem}.{suffix}".removeprefix("/")


def key_of(name: str, shared: bool) -> str:
    """The key of an image that is called ``name`` below its split: without dots in its last part.

    A dot is ``%2E`` there and a percent sign ``%25``; where another image has the same name but for
    the suffix (``shared``), ``%7E`` and the suffix follow. :func:`name_of` is the reverse.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.rpartition(".")
    stem = stem.replace("%", "%25").replace(".", "%2E") + (f"%7E{suffix}" if shared else "")
    return f"{folder}{slash}{stem}"
