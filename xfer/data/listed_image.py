"""Where an image lies that a list names: below which folder, and with which suffix."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from xfer.config.verbs import override, quoted
from xfer.core.errors import DataError, closest, printable
from xfer.data.folder import SYNONYMS
from xfer.data.image import SUFFIXES
from xfer.data.multilabel_rows import Labelled
from xfer.data.options import SPLITS, ImageRow

_ENDINGS = sorted({*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)})


def row_of(where: str, facts: dict[str, str], root: Path, asked: bool) -> ImageRow:
    """An image below ``root``, which was ``asked`` for or is the folder of the CSV file."""
    for name in ("path", "label"):
        if not facts[name]:
            raise DataError(where, f"the {name} is empty", "fill it in or remove the line", 14)
    split = facts.get("split", "")
    if "split" in facts and split.lower() not in SYNONYMS:
        raise DataError(where, f"unknown split '{split}'", closest(split, SPLITS), 15)
    path = Path(os.path.normpath(root / facts["path"]))
    if len(found := _files(path)) != 1:
        near = (str(top) for top in sorted(root.glob("*/")) if _files(top / facts["path"]))
        other = f"type {quoted(override('data.root', next(near, 'DIR')))} for another"
        fix = f"paths start at {root if asked else 'the folder of the CSV file'}; {other}"
        if found:
            fix = f"write the suffix too: there are {found[0].name} and {found[1].name}"
        raise DataError(where, f"there is no file '{path}'", fix, 17)
    (path,) = found
    # The path below the folder if it is there, else as it is, so that every file has one name.
    path = path.relative_to(root) if path.is_relative_to(root) else path
    return ImageRow(path.as_posix(), facts["label"], SYNONYMS.get(split.lower(), ""))


def _files(path: Path) -> list[Path]:
    """The file at ``path``, or else those that have its name and an image's suffix."""
    if _is_there(path):
        return [path]
    return [full for end in _ENDINGS if _is_there(full := path.with_name(path.name + end))]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long, a folder that may not be entered
        return False


def suffix_lines(images: Iterable[tuple[str, str]]) -> list[str]:
    """A line on images whose names have a suffix that their paths in the list lack."""
    without = [name for path, name in images if PurePath(name).name != PurePath(path).name]
    if not without:
        return []
    what = "paths without a suffix are those of the files that have one"
    return [printable(f"{what}: {len(without)}, such as '{without[0]}'")]


def located(image: Labelled, root: Path, asked: bool) -> ImageRow:
    """The row of an image below ``root``; its labels come later."""
    facts = {"path": image.path, "label": "-"}
    if image.split:
        facts["split"] = image.split
    return row_of(image.where, facts, root, asked)._replace(group=image.group)
