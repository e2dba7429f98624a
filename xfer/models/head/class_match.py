"""Which class of the source is meant: by name, by a synonym, or by the user's alias table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from xfer.core.errors import ConfigError, DataError, closest
from xfer.core.types import Dataset, class_name
from xfer.data.multilabel_rows import unnamed_words

if TYPE_CHECKING:
    import numpy.typing as npt

_Alias = TypeVar("_Alias", str, tuple[str, ...])


@dataclass(frozen=True)
class Naming:
    """The source's ``classes`` in order, with further ``synonyms`` a class (or none at all).

    A name that is written alike comes first; else case does not count, and space, ``_`` and
    ``-`` are one.
    """

    classes: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...] = ()

    def index(self, name: str) -> int | None:
        """The class called ``name``: by its own name first, else by a synonym that only one
        class has; ``None`` when there is none. Raises ConfigError for a synonym of several."""
        if class_name(name) in self.classes:
            return self.classes.index(class_name(name))
        for names in (tuple((c,) for c in self.classes), self.synonyms):
            matching = [i for i, some in enumerate(names) if _plain(name) in map(_plain, some)]
            if len(matching) == 1:
                return matching[0]
            if matching:
                what = f"'{name}' may be {', '.join(repr(self.classes[i]) for i in matching)}"
                raise ConfigError("head.aliases", what, f"say which: {{{name}: NAME}}", 24)
        return None


def _plain(name: str) -> str:
    return class_name(name).casefold().replace("_", " ").replace("-", " ").strip()


def rows(
    classes: Sequence[str], naming: Naming, aliases: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[int, ...], ...]:
    """For every class the source's classes that it is made of; an empty tuple where it is new.

    Raises ConfigError for an alias that names no class of either side, and when no class is
    known to the source at all.
    """
    aliases = _checked(aliases, classes)
    table = []
    for name in classes:
        known = [(alias, naming.index(alias)) for alias in aliases.get(name, (name,))]
        unknown = [alias for alias, index in known if index is None]
        if unknown and name in aliases:
            key, what = f"head.aliases.{name}", f"the source has no class '{unknown[0]}'"
            raise ConfigError(key, what, closest(unknown[0], naming.classes), 25)
        table.append(tuple(index for _, index in known if index is not None))
    if not any(table):
        what = f"the source knows none of the classes {list(classes)[:5]}"
        fix = "give head.aliases='{CLASS: [NAME]}', or use head=linear"
        raise ConfigError("head", what, fix, 26)
    return tuple(table)


def _checked(aliases: Mapping[str, _Alias], classes: Sequence[str]) -> dict[str, _Alias]:
    """The aliases by the classes' own spelling of their names."""
    spelling = {class_name(name): name for name in classes}
    for name in aliases:
        if class_name(name) not in spelling:
            what = f"the data has no class '{name}'"
            raise ConfigError("head.aliases", what, closest(name, classes), 27)
    return {spelling[class_name(name)]: alias for name, alias in aliases.items()}


# Hydra's grammar takes no other names in front of a colon.
_TYPED = re.compile(r"(?!null\Z)[A-Za-z_][\w ./+-]*|0|[1-9]\d*", re.ASCII)


def _alias(folder: str) -> str:
    """What to write for a folder whose class is called otherwise."""
    if _TYPED.fullmatch(folder):
        return f"type head.aliases='{{{folder}: NAME}}'"
    name = json.dumps(folder, ensure_ascii=False)
    return f"write head: {{aliases: {{{name}: NAME}}}} in an experiment of your own"


def adopt(dataset: Dataset, naming: Naming, aliases: Mapping[str, str]) -> Dataset:
    """``dataset`` with the source's classes: every folder is the class that it names, and of
    several labels an image every column; one that the data does not name is unknown.

    Raises DataError for a folder that names no class, ConfigError for a wrong alias.
    """
    import numpy as np

    aliases = _checked(aliases, dataset.classes)
    numbers: list[int] = []
    for folder in dataset.classes:
        name = aliases.get(folder, folder)
        index = naming.index(name)
        if index is None:
            what = f"'{name}' is none of the source's {len(naming.classes)} classes"
            fix = f"{closest(folder, naming.classes)} or {_alias(folder)}"
            raise DataError(folder, what, fix, 41)
        if index in numbers:
            other = dataset.classes[numbers.index(index)]
            what = f"names the class '{naming.classes[index]}', as folder '{other}' does"
            fix = "merge the two folders, or type head.aliases='{FOLDER: NAME}'"
            raise DataError(folder, what, fix, 45)
        numbers.append(index)
    table = np.asarray(numbers, np.int64)

    def adopted(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if labels.ndim == 1:
            return table[labels]
        every = np.full((len(labels), len(naming.classes)), -1, np.int64)
        every[:, table] = labels
        return every

    splits = {n: replace(s, labels=adopted(s.labels)) for n, s in dataset.splits.items()}
    same = tuple(numbers) == tuple(range(len(naming.classes)))
    remark = () if same else (f"folders are matched to {len(naming.classes)} classes by name",)
    unnamed = [name for i, name in enumerate(naming.classes) if i not in numbers]
    if unnamed and any(s.labels.ndim == 2 for s in dataset.splits.values()):
        remark = (unnamed_words(unnamed),)
    remarks = (*dataset.remarks, *remark)
    return replace(dataset, classes=naming.classes, splits=splits, remarks=remarks)
