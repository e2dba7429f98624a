"""A folder tree as it is read: what is a class folder, what an image, and what is left out."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xfer.errors import DataError, printable
from xfer.images import SUFFIXES

_ENDINGS = tuple(SUFFIXES)
_FOREIGN = tuple(".heic .heif .hif .jxl .jp2 .dng .cr2 .cr3 .nef .arw .raf .dcm .psd .svg".split())
NO_IMAGE, FOREIGN = "no image's suffix", "pictures in a format that is not read: convert to PNG"


class Tree:
    """The folders and images below ``root``, and a note of everything that is left out.

    All names are relative to ``root`` and have forward slashes. Raises DataError for a root that
    is no folder and for a folder that cannot be read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._left_out: dict[str, str] = {}  # name: why
        try:
            if not root.is_dir():
                raise _no_folder(root)
        except OSError as error:
            _unreadable(error)

    def leave_out(self, name: str, why: str) -> None:
        """Note that an entry is not read."""
        self._left_out[name] = why

    def folders(self, below: str) -> list[str]:
        """The names of the folders directly in ``below``, sorted."""
        with _listing(self.root / below) as entries:
            return sorted(entry.name for entry in entries if self._is_folder(entry, below))

    def _is_folder(self, entry: os.DirEntry[str], below: str) -> bool:
        name = f"{below}/{entry.name}" if below else entry.name
        if not entry.is_dir():
            if entry.name.lower().endswith(_ENDINGS) and not is_hidden(entry.name):
                self.leave_out(name, "images outside the class folders")
            return False
        if is_hidden(entry.name):
            self.leave_out(name, "hidden")
        elif entry.is_symlink() and self._leads_back(entry.path):
            self.leave_out(name, "linked folders")
        return name not in self._left_out

    def _leads_back(self, link: str) -> bool:
        goal, root = Path(link).resolve(), self.root.resolve()
        return goal.is_relative_to(root) or root.is_relative_to(goal)

    def has_folders(self, below: str) -> bool:
        """Whether there are folders directly in ``below``."""
        with _listing(self.root / below) as entries:
            return any(entry.is_dir() and not is_hidden(entry.name) for entry in entries)

    def images(self, below: str) -> list[str]:
        """The names of all files with an image's suffix in ``below`` and its folders, sorted.

        Linked folders are not entered: they can lead in a circle.
        """
        found: list[str] = []
        for folder, inner, files in os.walk(self.root / below, onerror=_unreadable):
            parts = Path(folder).relative_to(self.root).parts
            names = {name: "/".join((*parts, name)) for name in (*inner, *files)}
            inner[:] = [name for name in inner if self._enters(names[name], name)]
            found += [names[name] for name in files if self._takes(names[name], name)]
        return sorted(found)

    def _enters(self, path: str, name: str) -> bool:
        if is_hidden(name):
            self.leave_out(path, "hidden")
        elif (self.root / path).is_symlink():
            self.leave_out(path, "linked folders")
        return path not in self._left_out

    def _takes(self, path: str, name: str) -> bool:
        if is_hidden(name):
            self.leave_out(path, "hidden")
        elif not name.lower().endswith(_ENDINGS):
            self.leave_out(path, FOREIGN if name.lower().endswith(_FOREIGN) else NO_IMAGE)
        return path not in self._left_out

    def remarks(self, below: str = "") -> list[str]:
        """What was left out in ``below``: a line for every reason, with the number and the first
        name."""
        kept = {n: why for n, why in self._left_out.items() if not below or n.startswith(below)}
        return [self._remark(reason, kept) for reason in sorted(set(kept.values()))]

    def _remark(self, reason: str, left_out: dict[str, str]) -> str:
        names = sorted(name for name, why in left_out.items() if why == reason)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return printable(f"left out ({reason}): '{names[0]}'{more}")


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: hidden, or what a Mac adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


@contextmanager
def _listing(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        _unreadable(error)


def _unreadable(error: OSError) -> None:
    where = error.filename or "data"
    raise DataError(
        where, f"cannot be read ({error.strerror})", "check the folder's permissions", 9
    ) from error


def _no_folder(root: Path) -> DataError:
    if root.exists():
        return DataError(root, "is a file, not a folder", "unpack it, or give the folder's path", 1)
    fix = f"put one folder of images per class into {root}, or give another data.root"
    if root.parent.is_dir():
        siblings = [path.name for path in root.parent.iterdir() if path.is_dir()]
        near = difflib.get_close_matches(root.name, siblings, 1)
        fix = f"did you mean {root.parent / near[0]}? Otherwise {fix}" if near else fix
    return DataError(root, "there is no such folder", fix, 1)
