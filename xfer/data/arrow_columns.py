"""Columns of Arrow tables: which have images, labels, splits and groups, and what a cell says.

Parquet files and the files of the library ``datasets`` are both Arrow tables, with images as bytes,
as paths, or as what Hugging Face writes: a struct of ``bytes`` and ``path``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from xfer.config.help import DISTRIBUTION
from xfer.core.errors import ConfigError, DataError, closest

Kind = Literal["struct", "bytes", "text", "number", "list", "other"]
_DEFAULTS = ("image", "label", "split")
_SEVERAL = "labels"
_SAID = {
    **{"struct": "bytes and paths", "bytes": "bytes", "text": "text", "number": "numbers"},
    "list": "lists",
}
_IMAGES = ("struct", "bytes", "text")
OF_FEATURES = (
    "holds features that stages=[embed] has written, and no images",
    "type data.root=IMAGES, the folder or file of images that they are of",
)
"""What is wrong with a file of embeddings that is given as images, and what to do."""


class _Need(NamedTuple):
    """Of which kinds a column may be, what that is called, and what to do where it is of none."""

    kinds: tuple[Kind, ...]
    said: str
    fix: str = ""


_NEEDED = {
    "text": _Need(("text",), "text"),
    "number": _Need(("text", "number"), "text or whole numbers"),
    "list": _Need(("list",), "a list of them", "write labels as lists, or type task=single"),
}


class Columns(NamedTuple):
    """The columns that are read: of the images, their classes (empty where nobody asks) and, where
    there are any, their splits and groups; ``kinds`` are those of image, label and split,
    ``classes`` the names of classes where labels are positions among them, and ``names`` those of
    all columns."""

    image: str
    label: str
    split: str | None
    group: str | None
    kinds: tuple[Kind, ...]
    classes: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def bytes_path(self) -> str:
        """The column of the bytes alone; empty where there are only paths."""
        return {"struct": f"{self.image}.bytes", "bytes": self.image}.get(self.kinds[0], "")

    @property
    def others(self) -> list[str]:
        """The columns that are small: all but the bytes."""
        path = {"struct": f"{self.image}.path", "text": self.image}.get(self.kinds[0])
        return [name for name in (path, self.label, self.split, self.group) if name]


def require(package: str, option: str) -> None:
    """Raise ConfigError where ``package``, which ``option`` reads with, is not installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:  # a folder of that name is no package
        what = f"{option} is read by the package '{package}', which is not installed"
        raise ConfigError("data", what, f"pip install '{DISTRIBUTION}[{option}]'", 80)


def columns_of(
    schema: Any,
    asked: Sequence[str] | None,
    group: str | None,
    where: object,
    several: bool | None = False,
) -> Columns:
    """Which columns of an Arrow schema are read; ``asked`` are those of image, label and split.
    That of labels has lists of them where an image may have ``several``; for ``None`` that of the
    images is read alone.

    Raises DataError, naming ``where``, for columns that are not there or of another kind.
    """
    kinds = {field.name: kind_of(field.type) for field in schema}
    if several is None:
        image = _of_images(kinds, where)
        return Columns(image, "", None, None, (kinds[image],), (), tuple(kinds))
    usual = [_SEVERAL if several and _SEVERAL in kinds and n == "label" else n for n in _DEFAULTS]
    names = list(asked or [name for name in usual if name in kinds or name != "split"])
    if lost := [name for name in names if name not in kinds]:
        if "features" in kinds and b"xfer" in (schema.metadata or {}):
            what, fix = OF_FEATURES
            raise DataError(where, what, fix, 27)
        raise DataError(where, f"has no column '{lost[0]}'", _typed(kinds, several), 27)
    if group and group not in kinds:
        others = [name for name in kinds if name not in names] or list(kinds)
        raise DataError(where, f"has no column '{group}' to group by", closest(group, others), 92)
    image, label = names[:2]
    if kinds[image] not in _IMAGES:
        what = f"the column '{image}' has {schema.field(image).type}, neither bytes nor paths"
        raise DataError(where, what, _typed(kinds, several), 27)
    _refuse_kinds(schema, kinds, names, group, where, several)
    split = names[2] if len(names) > 2 else None
    of_names = tuple(kinds[name] for name in names)
    classes = _class_names(schema, label)
    return Columns(image, label, split, group, of_names, classes, tuple(kinds))


def _refuse_kinds(
    schema: Any,
    kinds: Mapping[str, Kind],
    names: Sequence[str],
    group: str | None,
    where: object,
    several: bool,
) -> None:
    """Raise DataError where the column of labels, splits or groups is of another kind."""
    label = names[1]
    needed = dict.fromkeys(names[2:], _NEEDED["text"])
    needed |= {name: _NEEDED["number"] for name in (label, group) if name}
    if several:
        needed[label] = _NEEDED["list"]
    for name, need in needed.items():
        if kinds[name] not in need.kinds:
            what = f"the column '{name}' has {schema.field(name).type}, and {need.said} is needed"
            fix = need.fix or _typed(kinds, several)
            fix = "type task=multilabel for lists of labels" if kinds[name] == "list" else fix
            raise DataError(where, what, fix, 27)


def _of_images(kinds: Mapping[str, Kind], where: object) -> str:
    """The column ``image``, or the only one of images: of bytes, else of paths."""
    if kinds.get(_DEFAULTS[0]) in _IMAGES:
        return _DEFAULTS[0]
    stored = [name for name, kind in kinds.items() if kind in ("struct", "bytes")]
    others = (*_DEFAULTS, _SEVERAL)
    found = stored or [n for n, kind in kinds.items() if kind == "text" and n not in others]
    if len(found) != 1:
        which = "several columns" if found else "no column"
        what = f"has {which} that may be of images; it has {', '.join(list(kinds)[:8]) or 'none'}"
        raise DataError(where, what, "call that of the images 'image'", 26)
    return found[0]


def refuse_others(found: Columns, expected: Columns, where: object, first: str) -> None:
    """Raise DataError where a part of a data set has other columns than ``expected``, which are
    those of the part called ``first``."""
    fix = "write all of them with one schema, or give one of them"
    for name, one, other in zip(expected[:3], found.kinds, expected.kinds, strict=False):
        if one != other:
            what = f"its column '{name}' has {_SAID[one]}, and that of {first} has {_SAID[other]}"
            raise DataError(where, what, fix, 28)
    if found.classes != expected.classes:
        raise DataError(where, f"names other classes than {first}", fix, 28)


def kind_of(of: Any) -> Kind:
    """What cells of an Arrow type are to us."""
    from pyarrow import types

    of = of.value_type if types.is_dictionary(of) else of
    if types.is_list(of) or types.is_large_list(of):
        return "list" if kind_of(of.value_type) in ("text", "number") else "other"
    if types.is_struct(of):
        inner = {field.name: kind_of(field.type) for field in of}
        return "struct" if inner == {"bytes": "bytes", "path": "text"} else "other"
    if types.is_binary(of) or types.is_large_binary(of):
        return "bytes"
    if types.is_string(of) or types.is_large_string(of):
        return "text"
    return "number" if types.is_integer(of) else "other"


def _typed(kinds: Mapping[str, Kind], several: bool) -> str:
    """What to type for columns that are there, or what to write into the file."""
    need, known = _NEEDED["list" if several else "number"], ("label", _SEVERAL)
    free = {name: kind for name, kind in kinds.items() if name != "split"}
    images = [name for name, kind in free.items() if kind in ("struct", "bytes")]
    images = images or [n for n, kind in free.items() if kind == "text" and n not in known]
    labels = [n for n, kind in free.items() if kind in need.kinds and n not in images[:1]]
    labels.sort(key=lambda name: name not in known)
    if not images or not labels:
        there = ", ".join(list(kinds)[:8]) or "none"
        lists = "lists of " * several
        return f"write a column of images and one of {lists}labels; it has {there}"
    return f"type 'data.columns=[{images[0]},{labels[0]}]', or those that you mean"


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The names of classes that Hugging Face has written into the schema; nothing without them."""
    try:
        facts = json.loads((schema.metadata or {})[b"huggingface"])
        feature = facts["info"]["features"][label]
        if isinstance(feature, list):  # as its earlier versions write a list
            feature = feature[0]
        names = feature.get("feature", feature)["names"]
        return tuple(names) if all(isinstance(name, str) for name in names) else ()
    except (KeyError, ValueError, TypeError, IndexError, AttributeError):
        return ()


def labels_in(
    values: Sequence[Any], classes: Sequence[str], column: str, where: object
) -> Iterator[str]:
    """The class of every row in words, empty where there is none (null, or -1 among ``classes``).

    Raises DataError for a number that is no position in ``classes``.
    """
    for row, value in enumerate(values):
        if value is None or (classes and value == -1):
            yield ""
        elif classes and not isinstance(value, str):
            if not 0 <= value < len(classes):
                what = f"the {column} {value} of row {row} is no class, 0 to {len(classes) - 1}"
                fix = "correct it, or the names of the classes"
                raise DataError(where, what, fix, 29)
            yield classes[value]
        else:
            yield str(value)


def lists_in(
    values: Sequence[Any], classes: Sequence[str], column: str, where: object
) -> Iterator[str]:
    """The labels of every row with :data:`BETWEEN` between them: each in
    words, a ``?`` alone for null, which says that nobody has looked.

    Raises DataError for a number that is no position in ``classes``, and for null in a list.
    """
    for row, value in enumerate(values):
        if value is None:
            yield "?"
            continue
        names = list(labels_in(value, classes, f"{column} of row {row}, entry", where))
        if "" in names:
            what = f"the {column} of row {row} have an empty one among them"
            raise DataError(where, what, "leave it out of the list", 29)
        yield BETWEEN.join(names)


BETWEEN = "\x1f"
"""What is between labels that come as a list."""
