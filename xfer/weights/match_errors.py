"""The error for weights that do not fit: examples of each side, the likely cause, and a remedy
that was tried on the tensors at hand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from xfer.core.errors import WeightsError
from xfer.weights.match_by_order import by_order

if TYPE_CHECKING:
    import torch

    from xfer.weights.content import Weights
    from xfer.weights.match_table import Row

MISFIT = 430
"""The number of the error for weights that do not fit."""
_EXAMPLES = 3
_PATTERNS = 5
"""How many patterns a remedy may have before it is easier to look for another cause."""


def mismatch(
    rows: Sequence[Row],
    weights: Weights,
    wanted: Mapping[str, torch.Tensor],
    excused: tuple[str, ...],
) -> WeightsError:
    """Three names of each kind of mistake. ``excused`` is how the names of the heads begin that
    need not fit, none when the head was to fit as well."""
    kinds = {
        fate: [row for row in rows if row.fate == fate and "(allowed)" not in row.note]
        for fate in ("missing", "unexpected", "wrong shape")
    }
    parts = [f"{len(found)} {fate} ({_examples(found)})" for fate, found in kinds.items() if found]
    what = "does not fit the network: " + ("; ".join(parts) or "no tensor of it is used")
    origin = weights.origin or "source"
    if suspect := weights.facts.get("suspect"):
        return WeightsError(origin, what, str(suspect), 30)
    pairs = _proposed(wanted, weights, excused) if kinds["missing"] else {}
    if pairs:
        renames = [f"{key} -> {name}" for name, key in pairs.items() if name != key]
        what = (
            f"has other names than the network, and the same {len(pairs)} shapes in the same "
            f"order: {', '.join(renames[:_EXAMPLES])} and so on"
        )
        fix = "type source.match=order to take these renames; with stages=[] it only shows the plan"
        return WeightsError(origin, what, fix, 35)
    if not any(row.fate in ("loaded", "renamed", "adapted") for row in rows):
        return WeightsError(origin, what, _strange(wanted, weights, excused), 30)
    return WeightsError(origin, what, _remedy(kinds, rows, not excused), 30)


def ambiguous(prefixes: Sequence[str], weights: Weights) -> WeightsError:
    """The error for a file with several networks of the wanted kind."""
    return WeightsError(
        weights.origin or "source",
        f"holds several such networks, below {', '.join(map(repr, prefixes))}",
        f"choose one: source.strip={prefixes[0]}",
        32,
    )


def unordered(
    wanted: Mapping[str, torch.Tensor], weights: Weights, excused: tuple[str, ...]
) -> WeightsError:
    """The error for ``source.match=order`` where order and shape leave a doubt."""
    return WeightsError(
        weights.origin or "source",
        "does not have the network's shapes in the network's order",
        "drop source.match, which shows what fits by name",
        36,
    )


def _proposed(
    wanted: Mapping[str, torch.Tensor], weights: Weights, excused: tuple[str, ...]
) -> dict[str, str]:
    # safetensors sorts its entries by type and name: their order says nothing of the network.
    if weights.facts.get("format") == "safetensors":
        return {}
    return by_order(wanted, weights.state or {}, excused)


def _examples(rows: Sequence[Row]) -> str:
    texts = [
        f"{row.name or row.key}" + (f" {row.note}" if row.fate == "wrong shape" else "")
        for row in rows[:_EXAMPLES]
    ]
    return ", ".join(texts) + (", ..." if len(rows) > _EXAMPLES else "")


def _strange(wanted: Mapping[str, torch.Tensor], weights: Weights, excused: tuple[str, ...]) -> str:
    """What to do where no name fits, by how many of the shapes are there all the same."""
    own = Counter(tuple(t.shape) for n, t in wanted.items() if not n.startswith(excused))
    given = Counter(tuple(t.shape) for t in (weights.state or {}).values())
    shared = (own & given).total()
    if 10 * shared < 9 * own.total():
        return (
            f"these are weights of another architecture ({shared} of the network's {own.total()} "
            "shapes are in the file): type backbone.name=NAME of the one that they are of"
        )
    return (
        f"{shared} of the network's {own.total()} shapes are there under other names, in another "
        "order: give source.rename=[{match: PATTERN, to: NAME}]"
    )


def _remedy(kinds: dict[str, list[Row]], rows: Sequence[Row], whole: bool) -> str:
    missing, unexpected, wrong = kinds.values()
    if whole and wrong and not missing and len(wrong) <= 2:
        return "the number of classes differs: use head=linear for a new head, or check the data"
    if wrong and not missing:
        return "the sizes differ: check backbone.name, backbone.args and the number of classes"
    used = [row for row in rows if row.fate in ("loaded", "renamed", "adapted")]
    if missing and not wrong:
        names, known = [r.name or "" for r in missing], [r.name or "" for r in used]
        told = _unlike(names, known, "shallower network, without", "" if unexpected else "missing")
    elif unexpected and not missing and not wrong:
        names, known = [r.key or "" for r in unexpected], [r.key or "" for r in used]
        told = _unlike(names, known, "deeper network, with", "unexpected")
    else:
        told = ""
    return told or "check backbone.name, or give source.rename, source.strip or source.drop"


def _unlike(names: Sequence[str], known: Sequence[str], depth: str, fate: str) -> str:
    """The remedy for ``names`` that one side alone has; ``known`` are those of both."""
    if block := _beyond(names, known):
        return f"the file is of a {depth} {block}: type backbone.name=NAME of that network"
    patterns = _patterns(names, known)
    if fate == "missing" and patterns:
        return f"the file lacks these; to leave them random: {_typed('allow_missing', patterns)}"
    if fate == "unexpected" and patterns:
        return f"if they are no part of this network: {_typed('drop', patterns)}"
    return ""


def _typed(key: str, patterns: Iterable[str]) -> str:
    """An override as a shell takes it."""
    return f'"source.{key}=[{", ".join(map(repr, patterns))}]"'


def _beyond(names: Iterable[str], known: Collection[str]) -> str:
    """The first numbered block among ``names`` that goes on where the blocks of ``known`` end."""
    below = {start for name in known for start in _starts(name)}
    for name in names:
        for start in _starts(name):
            head, _, last = start.rstrip(".").rpartition(".")
            before = f"{head}.{int(last) - 1}." if last.isdecimal() and int(last) else ""
            if start not in below and before.lstrip(".") in below:
                return start.rstrip(".")
    return ""


def _patterns(names: Sequence[str], known: Collection[str]) -> list[str]:
    """Patterns that match all of ``names`` and none of ``known``; none where that takes many."""
    below = {start for name in known for start in _starts(name)}
    tops = dict.fromkeys(
        next((start for start in _starts(name) if start not in below), name) for name in names
    )
    found = list(dict.fromkeys(_pattern(top) for top in tops))
    if len(found) > _PATTERNS:  # the same layer of many blocks
        found = list(dict.fromkeys(re.sub(r"\d+", r"\\d+", pattern) for pattern in found))
    caught = any(re.fullmatch(pattern, name) for pattern in found for name in known)
    return [] if caught or len(found) > _PATTERNS else found


def _pattern(top: str) -> str:
    exact = re.sub(r"([^\w])", r"[\1]", top)
    return f"{exact}.*" if top.endswith(".") else exact


def _starts(name: str) -> list[str]:
    return [name[: dot.end()] for dot in re.finditer(r"\.", name)]
