"""A folder tree as it is read: what is a class folder, what an image, and what is left out."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from xfer.core.errors import DataError, printable
from xfer.core.text_columns import Texts, in_order
from xfer.data.image import SUFFIXES

_ENDINGS = tuple(SUFFIXES)
_FOREIGN = tuple(".heic .heif .hif .jxl .jp2 .dng .cr2 .cr3 .nef .arw .raf .dcm .psd .svg".split())
_AGAIN = "linked folders that lead back or are already read"
_NOWHERE = "broken links"
NO_IMAGE, FOREIGN = "not an image suffix", "pictures in a format that is not read: convert to PNG"


class Tree:
    """The folders and images below ``root``, and a note of everything that is left out.

    Links are followed: also those that lead out of ``root``, with a remark, but none to a folder
    that lies in ``root`` or holds it. All names are relative to ``root`` and have forward slashes.
    Raises DataError for a root that is no folder and for a folder that cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._left_out: dict[str, str] = {}  # name: why
        self._outside: set[str] = set()
        try:
            if not root.is_dir():
                raise _no_folder(root)
        except OSError as error:
            raise _unreadable(error) from error

    def leave_out(self, name: str, why: str) -> None:
        """Note that an entry is not read."""
        self._left_out[name] = why

    def folders(self, below: str, outside: bool = True) -> list[str]:
        """The names of the folders directly in ``below``, sorted; with a note on images beside
        them where these are ``outside`` of the class folders."""
        with _listing(self.root / below) as entries:
            names = []
            for entry in entries:
                name = _joined(below, entry)
                if _leads_to_folder(entry):
                    names += [entry.name] if self._enters(name, entry) else []
                elif entry.name.lower().endswith(_ENDINGS) and not is_hidden(entry.name):
                    if outside:
                        self.leave_out(name, "images outside the class folders")
                elif _leads_nowhere(entry):
                    self.leave_out(name, _NOWHERE)
            return sorted(names)

    def _enters(self, name: str, entry: os.DirEntry[str]) -> bool:
        """Whether a folder is read; a note where it is not, and where it lies outside."""
        if is_hidden(entry.name):
            self.leave_out(name, "hidden")
        elif entry.is_symlink():
            goal, root = Path(entry.path).resolve(), self.root.resolve()
            if goal.is_relative_to(root) or root.is_relative_to(goal):
                self.leave_out(name, _AGAIN)
            else:
                self._outside.add(name)
        return name not in self._left_out

    def has_folders(self, below: str) -> bool:
        """Whether there are folders directly in ``below``."""
        with _listing(self.root / below) as entries:
            return any(_leads_to_folder(e) and not is_hidden(e.name) for e in entries)

    def classes_in(self, below: str) -> int:
        """How many folders in ``below`` have images: 1 where it has images and none of these has,
        0 where there are none at all."""
        inner = [Tree(self.root).images(f"{below}/{name}") for name in self.folders(below)]
        return sum(map(bool, inner)) or int(bool(Tree(self.root).images(below)))

    def folders_alone(self, below: str) -> list[str]:
        """The folders directly in ``below``, sorted; none where an image lies beside them."""
        found = []
        with _listing(self.root / below) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if _leads_to_folder(entry):
                    found.append(_joined(below, entry))
                elif entry.name.lower().endswith(_ENDINGS):
                    return []
        return sorted(found)

    def images(self, below: str) -> Texts:
        """The names of all files with an image's suffix in ``below`` and its folders, sorted.

        No folder is read twice, under whatever names it is linked: links can lead in a circle.
        """
        return in_order(self._found(below))

    def _found(self, below: str) -> Iterator[str]:
        read, ahead = set[tuple[int, int]](), [below]
        while ahead:
            folder = ahead.pop()
            with _listing(self.root / folder) as entries:
                facts = (self.root / folder).stat()
                if (facts.st_dev, facts.st_ino) in read:
                    self.leave_out(folder, _AGAIN)
                    continue
                read.add((facts.st_dev, facts.st_ino))
                inside: list[os.DirEntry[str]] = []
                for entry in entries:  # of a million, an entry is ten times its name
                    if _leads_to_folder(entry):
                        inside.append(entry)
                    elif self._takes(name := _joined(folder, entry), entry):
                        yield name
                for entry in sorted(inside, key=lambda entry: entry.name, reverse=True):
                    if self._enters(name := _joined(folder, entry), entry):
                        ahead.append(name)

    def _takes(self, path: str, entry: os.DirEntry[str]) -> bool:
        name = entry.name.lower()
        if is_hidden(name):
            self.leave_out(path, "hidden")
        elif not name.endswith(_ENDINGS):
            why = FOREIGN if name.endswith(_FOREIGN) else NO_IMAGE
            self.leave_out(path, _NOWHERE if _leads_nowhere(entry) else why)
        return path not in self._left_out

    def remarks(self, below: str = "") -> list[str]:
        """What was left out in ``below`` and what of it lies outside of the root: a line for every
        reason, with the number and the first name."""
        notes = dict.fromkeys(self._outside, "read through links to other folders")
        notes |= {n: f"left out ({why})" for n, why in self._left_out.items()}
        return note_lines({n: note for n, note in notes.items() if n.startswith(below)})


def note_lines(notes: Mapping[str, str]) -> list[str]:
    """``notes`` by name: a line for every note, with the number of names and the first."""
    lines = []
    for note in sorted(set(notes.values())):
        names = sorted(name for name, its in notes.items() if its == note)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(printable(f"{note}: '{names[0]}'{more}"))
    return lines


def _joined(folder: str, entry: os.DirEntry[str]) -> str:
    return f"{folder}/{entry.name}" if folder else entry.name


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not Path(entry.path).exists()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden, or what a Mac adds to archives."""
    return name.startswith(".") or name.upper() == "__MACOSX"


@contextmanager
def _listing(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> DataError:
    where, what = error.filename or "data", f"cannot be read ({error.strerror})"
    return DataError(where, what, "check the folder's permissions", 9)


def _no_folder(root: Path) -> DataError:
    if root.exists():
        return DataError(root, "is a file, not a folder", "unpack it, or give the folder's path", 1)
    fix = f"put one folder of images per class into {root}, or give another data.root"
    if root.parent.is_dir():
        siblings = [path.name for path in root.parent.iterdir() if path.is_dir()]
        near = difflib.get_close_matches(root.name, siblings, 1)
        fix = f"did you mean {root.parent / near[0]}? Otherwise {fix}" if near else fix
    return DataError(root, "there is no such folder", fix, 1)
