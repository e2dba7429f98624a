"""What a user may say of any source: other names, what to leave out, what to excuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from xfer.core.card_schema import read_recipe
from xfer.core.errors import ConfigError, WeightsError, closest
from xfer.core.files import parsed, read_text
from xfer.core.regex import compiled, matches, substituted
from xfer.core.types import class_name
from xfer.weights.content import Content, Weights


@dataclass(frozen=True)
class Rename:
    """``match``: a regular expression, searched in a name; ``to`` takes the place of each match
    and may use its groups (``\\1``)."""

    match: str
    to: str


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The part that all sources share: which tensor of the file becomes which of the network.

    Patterns of ``drop`` and ``allow_missing`` must match a whole name. ``classes`` are a list, a
    text or JSON file of them, or ``imagenet``.
    """

    strip: str | None = None
    """take only the file's names that begin so, without that beginning"""
    rename: tuple[Rename, ...] = ()
    """regular expressions, replaced in every name, in this order; with ``mindspore`` after its
    dialect"""
    drop: tuple[str, ...] = ()
    """the file's own names (with ``mindspore`` those that the dialect made of them) to leave
    out; a pattern must match a whole name"""
    match: Literal["name", "order"] = "name"
    """``order`` pairs the tensors by order and shape, where the file has other names for the
    same architecture"""
    allow_missing: tuple[str, ...] = ()
    """network tensors that may stay as initialised"""
    min_coverage: Annotated[float, Ge(0), Le(1)] = 1.0
    """below 1: tensors may be missing as long as this share of the backbone's numbers is loaded"""
    resize_positions: bool = False
    """resample the position embedding of a vision transformer to another image size"""
    classes: str | tuple[str, ...] | None = None
    """the names of the file's classes in order, for ``head=keep`` and ``head=remap``; ``hub``
    and ``run`` know their own"""
    recipe: str | None = None
    """a ``preprocess.json``: the size, crop, mean and standard deviation that these weights were
    trained on; ``null`` is what a file that xfer exported says itself, else what the library has
    for ``backbone.name``, or publishes with them"""
    optimizer: Literal["ignore", "resume"] = "ignore"
    """``resume`` continues with the optimizer state that the file holds"""

    def __post_init__(self) -> None:
        patterns = {f"source.rename[{i}].match": r.match for i, r in enumerate(self.rename)}
        patterns |= {f"source.drop[{i}]": p for i, p in enumerate(self.drop)}
        patterns |= {f"source.allow_missing[{i}]": p for i, p in enumerate(self.allow_missing)}
        for key, pattern in patterns.items():
            compiled(pattern, key)

    def weights(self, kind: str, content: Content, origin: str, sha256: str | None) -> Weights:
        """``content`` under the names that the rules give, with what they excuse.

        Raises ConfigError for a rule that nothing in the file obeys.
        """
        asides = self._left_out(list(content.state))
        old = [name for name in content.state if name not in asides]
        names: dict[str, str] = {}
        for before, new in zip(old, self._renamed(old), strict=True):
            if new in names:
                what = f"'{names[new]}' and '{before}' both become '{new}'"
                raise ConfigError("source.rename", what, "make the patterns narrower", 43)
            names[new] = before
        classes, synonyms = self.class_names()
        if self.optimizer == "resume" and content.optimizer is None:
            what = "holds no optimizer state"
            raise WeightsError(origin, what, "drop source.optimizer=resume", 33)
        # The report speaks of the file, and so by the file's names.
        entries = {new: content.renamed.get(before, before) for new, before in names.items()}
        asides = {content.renamed.get(name, name): reason for name, reason in asides.items()}
        return Weights(
            kind,
            {new: content.state[before] for new, before in names.items()},
            origin=origin,
            sha256=sha256,
            classes=classes,
            input=read_recipe("source.recipe", self.recipe)
            if self.recipe is not None
            else content.input,
            synonyms=synonyms,
            renamed={new: entry for new, entry in entries.items() if new != entry},
            asides={**content.asides, **asides},
            optimizer=content.optimizer if self.optimizer == "resume" else None,
            match=self.match,
            allow_missing=self.allow_missing,
            min_coverage=self.min_coverage,
            resize_positions=self.resize_positions,
            facts={"format": content.format, **content.facts},
        )

    def _left_out(self, names: list[str]) -> dict[str, str]:
        left: dict[str, str] = {}
        for i, pattern in enumerate(self.drop):
            dropped = [name for name in names if matches(pattern, name, f"source.drop[{i}]")]
            if not dropped:
                raise _idle(f"source.drop[{i}]", pattern, names)
            left |= dict.fromkeys(dropped, "dropped by source.drop")
        return left | self.outside(names)

    def outside(self, names: Sequence[str]) -> dict[str, str]:
        """Those of ``names`` that ``strip`` leaves out, with the reason. Raises ConfigError when
        it leaves nothing."""
        start = self.strip or ""
        others = [name for name in names if not name.startswith(start)]
        if names and len(others) == len(names):
            raise _idle("source.strip", start, names)
        return dict.fromkeys(others, f"not below '{start}'")

    def _renamed(self, names: Sequence[str]) -> list[str]:
        """``names`` after ``strip`` and ``rename``. Raises ConfigError for a rule that no name
        obeys."""
        names = [name.removeprefix(self.strip or "") for name in names]
        for i, rule in enumerate(self.rename):
            key = f"source.rename[{i}]"
            after = [substituted(rule.match, rule.to, name, key) for name in names]
            if after == names:
                raise _idle(key, rule.match, names)
            names = after
        return names

    def class_names(self) -> tuple[tuple[str, ...] | None, tuple[tuple[str, ...], ...]]:
        """The names of the file's classes in order, or ``None``, and their synonyms."""
        if self.classes == "imagenet":
            from xfer.weights.hub import imagenet

            return imagenet.classes(), imagenet.synonyms()
        if isinstance(self.classes, str):
            return _listed(Path(self.classes).expanduser()), ()
        return self.classes and _distinct("the list", self.classes), ()


def _idle(key: str, pattern: str, names: Sequence[str]) -> ConfigError:
    stages = dict.fromkeys(".".join(name.split(".")[:k]) for name in names for k in (1, 2))
    plain = pattern.replace("\\", "").rstrip(".*")
    return ConfigError(key, f"'{pattern}' matches no name in the file", closest(plain, stages), 66)


def _listed(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one a line, or from a JSON list or ``{index: name}``."""
    try:
        text = read_text(path)
        names = parsed(text) if text.lstrip()[:1] in ("[", "{") else text.splitlines()
        if isinstance(names, dict):
            names = [names[str(i)] for i in range(len(names))]
    except (OSError, ValueError, KeyError) as error:
        what = f"'{path}' cannot be read ({error})"
        raise ConfigError("source.classes", what, "give a list of names", 51) from error
    return _distinct(f"'{path}'", names)


def _distinct(where: str, given: Sequence[object]) -> tuple[str, ...]:
    names = tuple(class_name(name) for name in given if isinstance(name, str) and name.strip())
    if not names or len(names) != len(given) or len(set(names)) != len(names):
        what = f"{where} must hold distinct names"
        raise ConfigError("source.classes", what, "write one name per line", 52)
    return names
