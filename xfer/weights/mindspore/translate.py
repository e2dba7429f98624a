"""MindSpore's names for layers of networks that timm and torchvision have too, and torch's.

``name_maps.json`` holds, in ``suffixes``, what every dialect calls the tensors of a norm;
in ``dialects``, by name: ``marks``, patterns of names that only this dialect has, all of which must
be there; ``suits``, the architectures that have these layers, by library; ``head``, its classifier;
``rename``, rules in order from MindSpore's names to torch's, then those of ``rename_in`` for one
library; ``back`` and ``back_in``, the same the other way; ``compat``, what makes the function equal
(:mod:`xfer.models.mindspore_layers`). ``strangers``: names that are known and have no map;
``unequal``, two tensors whose first sizes differ there, where the names alone are those of a
dialect.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from xfer.core.errors import ConfigError, WeightsError, closest, first_few
from xfer.core.types import Plain, StateDict
from xfer.weights.content import Content

DialectName = Literal[
    "auto",
    "zoo_resnet_basic",
    "zoo_resnet_bottleneck",
    "zoo_googlenet",
    "mindcv_resnet",
    "mindcv_seresnet",
    "mindcv_squeezenet1_0",
    "mindcv_squeezenet1_1",
    "mindcv_vit",
    "plain",
]
"""What may be asked for: a dialect of the file, or to find it out, or torch's own names."""

_FILE = Path(__file__).with_name("name_maps.json")


@cache
def shipped() -> Plain:
    """All of it, as it is in the file. Not to be changed."""
    facts: Plain = json.loads(_FILE.read_text(encoding="utf-8"))
    return facts


def suits(facts: Plain, library: str, architecture: str) -> bool:
    """Whether ``architecture`` of ``library`` has the layers of the dialect of these ``facts``."""
    known: str = facts.get("suits", {}).get(library, "(?!)")
    return re.fullmatch(known, architecture.split(".")[0]) is not None


def to_torch(names: Collection[str], dialect: str, library: str) -> dict[str, str]:
    """The name that ``library`` has for each of ``names``, which are ``dialect``'s. A name that
    the dialect does not know stays as it is."""
    facts = shipped()["dialects"][dialect]
    rules = [*facts["rename"], *facts.get("rename_in", {}).get(library, ())]
    norms = {name.removesuffix("gamma") for name in names if name.endswith(".gamma")}
    norms &= {name.removesuffix("beta") for name in names if name.endswith(".beta")}
    translated = {}
    for name in names:
        layer, dot, last = name.rpartition(".")
        # A gamma without a beta beside it is a layer scale, which torch calls gamma too.
        if last not in ("gamma", "beta") or layer + dot in norms:
            last = shipped()["suffixes"].get(last, last)
        translated[name] = renamed(layer + dot + last, rules)
    return translated


def renamed(name: str, rules: Iterable[Sequence[str]]) -> str:
    """``name`` after all ``rules``, pairs of a pattern and what stands in its place."""
    for pattern, to in rules:
        name = re.sub(pattern, to, name)
    return name


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
        prefix = _prefix_of_dialect(names, dialect, where)
    facts = shipped()["dialects"][dialect]
    # A library of the user's own is let through: the strict match of names and shapes decides.
    known = "suits" in facts and library in ("timm", "torchvision")
    if known and not suits(facts, library, architecture):
        what = f"holds {facts['about']} ({dialect}), which {library}'s {architecture} is not"
        raise WeightsError(where, what, facts["fix"], 72)
    stripped = _stripped(names, prefix, facts.get("head"))
    torch = to_torch(stripped.values(), dialect, library)
    new = {old: torch[name] for old, name in stripped.items()}
    twice = [name for name, count in Counter(new.values()).items() if count > 1]
    if twice:
        both = [old for old, name in new.items() if name == twice[0]]
        what = f"'{both[0]}' and '{both[1]}' both become '{twice[0]}'"
        raise WeightsError(where, what, "save the network without the one that it does not use", 74)
    compat = {"dialect": dialect, **facts["compat"]} if facts["compat"] else {}
    return Translation(dialect, new, compat, prefix)


def _recognised(state: StateDict, where: object) -> tuple[str, str]:
    """The one dialect whose marks are all there, and the prefix before them. Networks without a
    map come first, since some have all names of one with a map and more."""
    names, known = list(state), shipped()["dialects"]
    about = ", ".join(f"{dialect} ({facts['about']})" for dialect, facts in known.items())
    for stranger in shipped()["strangers"]:
        prefix = _prefix(names, stranger["marks"])
        if prefix is not None and _unequal(state, prefix, stranger.get("unequal")):
            what = f"holds {stranger['about']}, for which there is no name map"
            raise WeightsError(where, what, f"save one of: {about}", 73)
    prefixes = {d: _prefix(names, f["marks"]) for d, f in known.items() if "marks" in f}
    fits = [(dialect, prefix) for dialect, prefix in prefixes.items() if prefix is not None]
    if len(fits) > 1:
        what = f"its names fit several dialects ({', '.join(dialect for dialect, _ in fits)})"
        raise WeightsError(where, what, "name one: source.dialect=...", 79)
    if fits:
        return fits[0]
    for facts in known.values():
        several = _prefixes(names, facts.get("marks", ()))
        if len(several) > 1:
            what = f"holds several networks, below {', '.join(map(repr, several[:5]))}"
            raise WeightsError(where, what, f"choose one: source.strip={several[0]}", 77)
    raise WeightsError(
        where,
        f"its names are those of no known dialect ({first_few(names, 3)})",
        "type source.dialect=plain where they are torch's but for gamma, beta and moving_*; "
        f"known: {about}",
        70,
    )


def _unequal(state: StateDict, prefix: str, patterns: Sequence[str] | None) -> bool:
    """Whether the two tensors of ``patterns`` are there with other first sizes; true without."""
    if patterns is None:
        return True
    sizes = [
        tensor.shape[0]
        for pattern in patterns
        for name, tensor in state.items()
        if re.fullmatch(re.escape(prefix) + pattern, name)
    ]
    return len(sizes) == 2 and sizes[0] != sizes[1]


def _prefix_of_dialect(names: list[str], dialect: str, where: object) -> str:
    known = shipped()["dialects"]
    if dialect not in known:
        what = f"'{dialect}' is not a known dialect"
        raise ConfigError("source.dialect", what, closest(dialect, known), 64)
    if "marks" not in known[dialect]:
        return ""
    prefix = _prefix(names, known[dialect]["marks"])
    if prefix is None:
        what = f"its names ({first_few(names, 3)}) are not those of {known[dialect]['about']}"
        raise WeightsError(where, what, "leave out source.dialect, or choose another", 71)
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
        here = {match[1] for name in names if (match := pattern.fullmatch(name))}
        shared = here if shared is None else shared & here
    return sorted(shared or (), key=lambda prefix: (len(prefix), prefix))


def _stripped(names: list[str], prefix: str, head: str | None) -> dict[str, str]:
    """Names without the prefix. A SequentialCell of the network, a pooling and one dense layer
    calls that layer ``2`` (MindSpore 2.x) or nothing at all (1.0): it gets the name ``head``."""
    inner = {name: name.removeprefix(prefix) for name in names}
    if head is None or f"{head}.weight" in inner.values():
        return inner
    bare = {
        name: m for name in inner.values() if (m := re.fullmatch(r"(\d*\.?)(weight|bias)", name))
    }
    if len({match[1] for match in bare.values()}) != 1:
        return inner
    return {old: f"{head}.{bare[n][2]}" if n in bare else n for old, n in inner.items()}
