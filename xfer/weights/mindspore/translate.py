"""MindSpore's names in a file, recognised and translated by the maps of ``name_maps.json``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xfer.core.errors import ConfigError, WeightsError, closest
from xfer.core.types import Plain
from xfer.weights.content import Content
from xfer.weights.mindspore.name_maps import shipped, suits, to_torch

if TYPE_CHECKING:
    from xfer.core.types import StateDict


@dataclass(frozen=True)
class Translation:
    """``names`` gives for every entry of the file, by its name there, the name in torch;
    ``prefix`` is what stood before the names that ``dialect`` knows; ``compat`` what a network
    must be built with to compute the same function."""

    dialect: str
    names: Mapping[str, str]
    compat: Plain = field(default_factory=dict)
    prefix: str = ""


def translate(
    content: Content,
    library: str,
    architecture: str,
    dialect: str = "auto",
    where: object = "source.path",
) -> Translation:
    """The names of ``content`` as ``library`` has them in ``architecture``.

    Names that the dialect does not know stay as they are. ``where`` is the file, for errors.
    Raises WeightsError when the names are no dialect's, not those of the ``dialect`` asked for,
    or of a network that is not ``architecture``.
    """
    names = list(content.state)
    if dialect == "auto":
        dialect, prefix = _recognised(content.state, where)
    else:
        prefix = _asked(names, dialect, where)
    facts = shipped()["dialects"][dialect]
    _check_architecture(dialect, facts, library, architecture, where)
    own = _stripped(names, prefix, facts.get("head"))
    torch = to_torch(own.values(), dialect, library)
    new = {old: torch[name] for old, name in own.items()}
    _refuse_collisions(new, where)
    compat = {"dialect": dialect, **facts["compat"]} if facts["compat"] else {}
    return Translation(dialect, new, compat, prefix)


def _recognised(state: StateDict, where: object) -> tuple[str, str]:
    """The one dialect whose marks are all there, and the prefix before them. Networks without a
    map come first, since some have all names of one with a map and more."""
    names = list(state)
    for stranger in shipped()["strangers"]:
        prefix = _prefix(names, stranger["marks"])
        if prefix is not None and _unequal(state, prefix, stranger.get("unequal")):
            raise WeightsError(
                where,
                f"holds {stranger['about']}, for which there is no name map",
                "save one of: " + _about(),
                73,
            )
    known = shipped()["dialects"]
    found = {d: _prefix(names, f["marks"]) for d, f in known.items() if "marks" in f}
    fits = [(dialect, prefix) for dialect, prefix in found.items() if prefix is not None]
    if len(fits) > 1:
        several = ", ".join(dialect for dialect, _ in fits)
        raise WeightsError(
            where, f"its names fit several dialects ({several})", "name one: source.dialect=...", 79
        )
    if fits:
        return fits[0]
    for facts in known.values():
        _refuse_several(_prefixes(names, facts.get("marks", ())), where)
    raise WeightsError(
        where,
        f"its names are those of no known dialect ({_examples(names)})",
        "type source.dialect=plain where they are torch's but for gamma, beta and moving_*; "
        f"known: {_about()}",
        70,
    )


def _unequal(state: StateDict, prefix: str, patterns: Sequence[str] | None) -> bool:
    """Whether the two tensors of ``patterns`` are there with other first sizes; true without."""
    if patterns is None:
        return True
    found = [
        tensor.shape[0]
        for pattern in patterns
        for name, tensor in state.items()
        if re.fullmatch(re.escape(prefix) + pattern, name)
    ]
    return len(found) == 2 and found[0] != found[1]


def _about() -> str:
    return ", ".join(f"{d} ({f['about']})" for d, f in shipped()["dialects"].items())


def _asked(names: list[str], dialect: str, where: object) -> str:
    """The prefix before the names of ``dialect``."""
    known = shipped()["dialects"]
    if dialect not in known:
        raise ConfigError("source.dialect", f"'{dialect}' is none", closest(dialect, known), 64)
    if "marks" not in known[dialect]:
        return ""
    prefix = _prefix(names, known[dialect]["marks"])
    if prefix is None:
        raise WeightsError(
            where,
            f"its names ({_examples(names)}) are not those of {known[dialect]['about']}",
            "leave out source.dialect, or choose another",
            71,
        )
    return prefix


def _prefix(names: Sequence[str], marks: Sequence[str]) -> str | None:
    """What stands before the marks in more than half of all names; ``None`` where a mark is not
    there. MindSpore's own loader takes off one prefix too (``_load_dismatch_prefix_params``)."""
    for prefix in _prefixes(names, marks):
        if 2 * sum(name.startswith(prefix) for name in names) > len(names):
            return prefix
    return None


def _prefixes(names: Sequence[str], marks: Sequence[str]) -> list[str]:
    """All that stands before every mark somewhere, the shortest first."""
    shared: set[str] | None = None
    for mark in marks:
        pattern = re.compile(rf"((?:.+?\.)?){mark}")
        here = {found[1] for name in names if (found := pattern.fullmatch(name))}
        shared = here if shared is None else shared & here
    return sorted(shared or (), key=lambda prefix: (len(prefix), prefix))


def _refuse_several(prefixes: Sequence[str], where: object) -> None:
    if len(prefixes) > 1:
        raise WeightsError(
            where,
            f"holds several networks, below {', '.join(map(repr, prefixes[:5]))}",
            f"choose one: source.strip={prefixes[0]}",
            77,
        )


def _check_architecture(
    dialect: str, facts: Plain, library: str, architecture: str, where: object
) -> None:
    """Refuse an architecture of a known library that is another network. A library of the user's
    own is let through: the strict match of names and shapes decides."""
    if "suits" not in facts or library not in ("timm", "torchvision"):
        return
    if not suits(facts, library, architecture):
        raise WeightsError(
            where,
            f"holds {facts['about']} ({dialect}), which {library}'s {architecture} is not",
            facts["fix"],
            72,
        )


def _stripped(names: list[str], prefix: str, head: str | None) -> dict[str, str]:
    """Names without the prefix. A SequentialCell of the network, a pooling and one dense layer
    calls that layer ``2`` (MindSpore 2.x) or nothing at all (1.0): it gets the name ``head``."""
    own = {name: name.removeprefix(prefix) for name in names}
    if head is None or f"{head}.weight" in own.values():
        return own
    bare = {name: m for name in own.values() if (m := re.fullmatch(r"(\d*\.?)(weight|bias)", name))}
    if len({found[1] for found in bare.values()}) != 1:
        return own
    return {old: f"{head}.{bare[n][2]}" if n in bare else n for old, n in own.items()}


def _refuse_collisions(new: Mapping[str, str], where: object) -> None:
    twice = [name for name, count in Counter(new.values()).items() if count > 1]
    if twice:
        both = [old for old, name in new.items() if name == twice[0]]
        raise WeightsError(
            where,
            f"'{both[0]}' and '{both[1]}' both become '{twice[0]}'",
            "save the network without the one that it does not use",
            74,
        )


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
