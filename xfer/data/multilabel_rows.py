"""Images with several labels, or none: a CSV file or a JSON list, and what it says of each class.

A label is 1 where the image has it, 0 where it has not, and -1 where nobody has looked: unknown is
not absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from xfer.core.errors import DataError, closest, first_few, printable
from xfer.core.files import parsed, read_text
from xfer.core.read_back import checked
from xfer.core.types import class_name
from xfer.data.leakage import in_one_line

_CELLS = {"0": 0, "1": 1, "": -1}
_SHOWN = 5  # names in a remark
HARD = frozenset("/,[]{}:'\"\\$")
"""Signs in a name that are hard to type, for a shell and for Hydra."""


@dataclass(frozen=True)
class Labelled:
    """One image as its file lists it: ``where`` that is, its ``path`` and ``split`` as written, the
    labels that it ``has``, those that are ``unknown``, whether all ``others`` are; its group."""

    where: str
    path: str
    split: str
    has: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    others: bool = False
    group: str = ""

    def in_text(self, sign: str) -> str:
        """As :func:`in_cell` reads it, with this ``sign`` between labels."""
        unknown = [f"?{name}" for name in self.unknown]
        return sign.join([*self.has, *unknown, *["?"] * self.others])

    def row(self, classes: Sequence[str]) -> tuple[int, ...]:
        """1, 0 or -1 a class."""
        rest = -1 if self.others else 0
        known = dict.fromkeys(self.unknown, -1) | dict.fromkeys(self.has, 1)
        return tuple(known.get(name, rest) for name in classes)


def in_cell(where: str, path: str, split: str, cell: str, sign: str) -> Labelled:
    """The labels of a cell such as ``cat|?wet``: ``?wet`` is unknown, and a ``?`` alone says so of
    every label that is not named; an empty cell is an image without labels.

    Raises DataError for a label that is named twice.
    """
    names = [class_name(part.strip()) for part in cell.split(sign) if part.strip()]
    has = tuple(name for name in names if not name.startswith("?"))
    unknown = tuple(name[1:].strip() for name in names if name.startswith("?") and name != "?")
    _refuse_twice(where, (*has, *unknown))
    return Labelled(where, path, split, has, tuple(filter(None, unknown)), "?" in names)


def labelled_with(where: str, has: Sequence[str], unknown: Sequence[str]) -> Labelled:
    """An image that ``has`` these labels, while these are ``unknown``. Raises DataError for a label
    that is named twice."""
    mine, theirs = (tuple(class_name(name) for name in names) for names in (has, unknown))
    _refuse_twice(where, (*mine, *theirs))
    return Labelled(where, "", "", mine, theirs)


def in_columns(
    where: str, path: str, split: str, cells: Sequence[tuple[str, str]], grouped: bool
) -> Labelled:
    """The labels of (class, cell) pairs, each cell 1, 0 or, where it is unknown, empty.

    Raises DataError for any other cell; where images are not ``grouped`` by another column, that
    one may have been meant for it, and a column alone for a list of labels.
    """
    for name, cell in cells:
        if cell not in _CELLS:
            what = f"'{cell}' in the column '{name}' is neither 1 nor 0 nor empty"
            fix = "write 1 for an image that has the label, 0 for one that has it not, nothing "
            fix += "where it is unknown" + ("" if grouped else f"; {as_group(name)}")
            if len(cells) == 1:
                column = "COLUMN" if set(name) & HARD else name
                named = ",".join(["path", column, *(["split"] if split else [])])
                fix = f"if it lists labels, type 'data.columns=[{named}]'; else {fix}"
            raise DataError(where, what, fix, 88)
    has = tuple(class_name(name) for name, cell in cells if cell == "1")
    unknown = tuple(class_name(name) for name, cell in cells if cell == "")
    return Labelled(where, path, split, has, unknown)


def as_group(column: str) -> str:
    """What to type where ``column`` says which images belong together."""
    name = "COLUMN" if set(column) & HARD else column
    typed = f"'data.group={name}'" if " " in name else f"data.group={name}"
    return f"if it says which images belong together, add {typed}"


def unread_sign(images: Sequence[Labelled], signs: Iterable[str]) -> list[str]:
    """A remark where most images have a label with one of ``signs`` in its name, and where what
    such signs divide are labels of other images."""
    named = [[*image.has, *image.unknown] for image in images if image.has or image.unknown]
    labels = {name for names in named for name in names}
    for sign in signs:
        some = [name for names in named if (name := next((n for n in names if sign in n), ""))]
        parts = {part.strip() for name in some for part in name.split(sign)}
        if 2 * len(some) > len(named) or (parts and parts <= labels):
            what = f"{len(some):,} of {len(named):,} images have a label such as '{some[0]}'"
            return [f"{what}, which is one class; {as_labels(sign)}"]
    return []


def as_labels(sign: str) -> str:
    """What to type where ``sign`` is between the labels of an image."""
    return f"""if these are several labels, type 'data.separator="{sign}"'"""


def in_one_text(known: Sequence[int], classes: Sequence[str]) -> str:
    """All that is known of an image in one text: equal for equal labels alone."""
    pairs = zip(known, classes, strict=True)
    return "\x1f".join(f"{'?' * (value < 0)}{name}" for value, name in pairs if value)


def unnamed_words(names: Sequence[str]) -> str:
    """A remark on classes that a network knows and data with several labels has not named."""
    shown = first_few([f"'{name}'" for name in names], _SHOWN)
    which = f"{len(names)} of the network's classes" if len(names) > 1 else "a class of the network"
    return (
        f"the data does not name {which} ({shown}): of every image that is unknown, and counts "
        "neither in the loss nor in a score"
    )


def lost_labels(labels: npt.NDArray[np.int64], left: npt.NDArray[np.integer]) -> set[int]:
    """The classes that some images, labels int64 (n, classes), are known to have, or to lack, and
    none of those at ``left``."""
    lost = set[int]()
    for value in (0, 1):
        there = labels == value
        lost.update(np.flatnonzero(there.any(axis=0) & ~there[left].any(axis=0)).tolist())
    return lost


def label_odds(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """How often images with these labels, int64 (n, classes), count where they are balanced:
    float64 (n,) with the mean 1.

    In proportion to the largest inverse frequency among the labels of an image; those without one
    are one more class. The largest, as in repeat factor sampling (A. Gupta, P. Dollár and R.
    Girshick, LVIS, 2019): an image of a rare label is as rare as that, whatever else it has.
    """
    has = labels == 1
    odds = (has / np.maximum(has.sum(axis=0), 1)).max(axis=1)
    without = ~has.any(axis=1)
    odds[without] = 1 / max(int(without.sum()), 1)
    return np.asarray(odds * (len(odds) / odds.sum()))


def _refuse_twice(where: str, names: Sequence[str]) -> None:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        what = f"names the label '{twice[0]}' twice"
        raise DataError(where, what, "name each label once, with '?' in front or without", 89)


class _Named(TypedDict):
    path: Annotated[str, Field(min_length=1)]


@with_config(ConfigDict(extra="forbid"))
class _Entry(_Named):
    labels: list[Annotated[str, Field(min_length=1)]]
    unknown: NotRequired[list[Annotated[str, Field(min_length=1)]]]
    split: NotRequired[str]
    group: NotRequired[str]


def in_json(path: Path) -> Iterator[Labelled]:
    """The images of a JSON list, in its order: ``{"path": "a.jpg", "labels": ["cat"]}``, with
    ``unknown`` labels, a ``split`` and a ``group`` where there are some.

    Raises DataError for anything else.
    """
    fix = 'give a list of {"path": FILE, "labels": [NAMES]}, with "unknown" and "split" if you like'
    for where, entry in _entries(path, _Entry, "with labels", fix):
        has, unknown = (
            tuple(class_name(name) for name in entry.get(key, ())) for key in ("labels", "unknown")
        )
        _refuse_twice(where, (*has, *unknown))
        split, group = entry.get("split", ""), entry.get("group", "")
        yield Labelled(where, entry["path"], split, has, unknown, group=group)


def paths_in_json(path: Path) -> Iterator[tuple[str, str]]:
    """Of each entry of a JSON list where it is, and its ``path``, whatever else it says. Raises as
    :func:`in_json`."""
    for where, entry in _entries(path, _Named, "with a path", 'give a list of {"path": FILE}'):
        yield where, entry["path"]


def _entries(path: Path, kind: type, said: str, fix: str) -> Iterator[tuple[str, Any]]:
    try:
        entries: Any = parsed(read_text(path))
    except FileNotFoundError as error:
        what = "there is no such file"
        raise DataError(path, what, "give the path of a JSON file", 11) from error
    except (OSError, ValueError) as error:
        what = f"cannot be read as JSON ({getattr(error, 'strerror', None) or error})"
        raise DataError(path, what, fix, 89) from error
    if not isinstance(entries, list):
        raise DataError(path, "is no JSON list", fix, 89)
    for i, entry in enumerate(entries):
        where = f"{path}[{i}]"
        try:
            checked(kind, entry)
        except ValueError as error:
            raise DataError(where, f"is no image {said} ({error})", fix, 89) from error
        yield where, entry


def only_label(image: Labelled) -> str:
    """The class of an image that has one. Raises DataError where it has several labels or none."""
    if len(image.has) != 1 or image.unknown:
        what = "has several labels, an unknown one or none, and task=single asks for one"
        raise DataError(image.where, what, "type task=multilabel", 89)
    return image.has[0]


def classes_of(
    images: Sequence[Labelled], where: object, columns: Sequence[str], known: Sequence[str]
) -> tuple[str, ...]:
    """The classes: those of the network where it is ``known``, else those that are named in a cell
    or as one of the ``columns``, sorted.

    Raises DataError for a label that a known network has not, and where there are no labels.
    """
    named = {class_name(name) for name in columns}
    for image in images:
        named.update(image.has, image.unknown)
        strange = [name for name in (*image.has, *image.unknown) if known and name not in known]
        if strange:
            what = f"the network does not know the label '{strange[0]}'"
            raise DataError(image.where, what, closest(strange[0], known), 86)
    if not named and not known:
        raise DataError(where, "names no label at all", "give some images labels", 89)
    return tuple(known) or tuple(sorted(named))


def lines_on_labels(labels: Iterable[tuple[str, ...]]) -> list[str]:
    """Which labels the folders on the way to images are, and which of them lie at several depths;
    ``labels`` are those of each folder."""
    depths: dict[str, set[int]] = {}
    for names in labels:
        for depth, name in enumerate(names):
            depths.setdefault(name, set()).add(depth)
    lines = [f"labels are the folders on the way to an image: {in_one_line(sorted(depths))}"]
    if often := sorted(name for name, some in depths.items() if len(some) > 1):
        lines.append(f"folders of one name at several depths are one label: {in_one_line(often)}")
    return list(map(printable, lines))
