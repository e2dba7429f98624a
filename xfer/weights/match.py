"""Strict matching of a state dict to a network: what becomes of every tensor, none in silence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from xfer.core.errors import ConfigError, closest
from xfer.core.regex import matches
from xfer.weights.match_by_order import COUNTER, by_order
from xfer.weights.match_errors import ambiguous, mismatch, unordered
from xfer.weights.match_table import USED, Fate, Match, Row
from xfer.weights.reshape import adapted

if TYPE_CHECKING:
    import torch

    from xfer.weights.content import Weights


def match(
    wanted: Mapping[str, torch.Tensor],
    weights: Weights,
    heads: Sequence[str],
    dropped: Sequence[str],
) -> Match:
    """Decide what becomes of every tensor. ``wanted`` is the network's own state, on any device;
    ``heads`` are the dotted paths that may differ (empty for ``head=keep``), ``dropped`` the
    prefixes of auxiliary heads.

    One prefix before all names (``module.``, ``model.``...) is taken off. Raises WeightsError
    with examples from both sides when anything but the heads does not fit.
    """
    if weights.state is None:
        return Match(tuple(Row(n, None, "initialised", tuple(t.shape)) for n, t in wanted.items()))
    excused = tuple(f"{path}." for path in (*heads, *dropped))
    weights = _ordered(wanted, weights, excused)
    backbone = [n for n in wanted if not n.startswith(excused) and not n.endswith(COUNTER)]
    prefix = _common_prefix(backbone, weights)
    rows, state = [], {}
    for name, target in wanted.items():
        if name.startswith(excused):
            row, tensor = _head(name, target, prefix, weights), None
        else:
            row, tensor = _fit(name, target, prefix, weights)
        rows.append(row)
        if tensor is not None:
            state[name] = tensor
    rows += _left(wanted, prefix, weights, excused)
    return _checked(_allowed(rows, weights), state, wanted, weights, excused, prefix)


def _ordered(
    wanted: Mapping[str, torch.Tensor], weights: Weights, excused: tuple[str, ...]
) -> Weights:
    """``weights`` under the network's names, where ``source.match=order`` asks for it."""
    if weights.match == "name":
        return weights
    state = weights.state or {}
    found = by_order(wanted, state, excused)
    if not found:
        raise unordered(wanted, weights, excused)
    renamed = {name: _key(key, weights) for name, key in found.items()}
    left = [_key(key, weights) for key in state.keys() - set(found.values())]
    return replace(
        weights,
        state={name: state[key] for name, key in found.items()},
        renamed={name: key for name, key in renamed.items() if name != key},
        asides={**weights.asides, **dict.fromkeys(left, "no tensor of the network for it")},
    )


def _head(name: str, target: torch.Tensor, prefix: str, weights: Weights) -> Row:
    source = _source(name, prefix, weights)
    found = (weights.state or {}).get(source)
    if found is None:
        return Row(name, None, "initialised", tuple(target.shape))
    return Row(name, _key(source, weights), "dropped head", tuple(found.shape))


def _fit(
    name: str, target: torch.Tensor, prefix: str, weights: Weights
) -> tuple[Row, torch.Tensor | None]:
    source, shape = _source(name, prefix, weights), tuple(target.shape)
    given = (weights.state or {}).get(source)
    if given is None:
        # Files older than batch normalisation's counter lack it; torch loads those strictly too.
        counter = name.endswith(COUNTER)
        return Row(name, None, "initialised" if counter else "missing", shape), None
    row = Row(name, _key(source, weights), "loaded", tuple(given.shape))
    if given.is_floating_point() != target.is_floating_point():
        note = f"{_dtype(given)} for {_dtype(target)}"
        return replace(row, fate="wrong shape", note=note), None
    if row.shape == shape:
        note = "" if given.dtype == target.dtype else f"{_dtype(given)} as {_dtype(target)}"
        return replace(row, fate="loaded" if row.key == name else "renamed", note=note), given
    other = adapted(name, given, shape, weights)
    if other is None:
        return replace(row, fate="wrong shape", note=f"{list(row.shape)} for {list(shape)}"), None
    return replace(row, fate="adapted", note=other[1]), other[0]


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _key(source: str, weights: Weights) -> str:
    return weights.renamed.get(source, source)


def _left(
    wanted: Mapping[str, torch.Tensor], prefix: str, weights: Weights, excused: tuple[str, ...]
) -> list[Row]:
    """The file's entries that no tensor of the network asks for."""
    rows = []
    for source, tensor in (weights.state or {}).items():
        inner = source.removeprefix(prefix)
        if inner not in wanted or _source(inner, prefix, weights) != source:
            fate: Fate = "dropped head" if inner.startswith(excused) else "unexpected"
            rows.append(Row(None, _key(source, weights), fate, tuple(tensor.shape)))
    rows += [Row(None, key, "left out", note=why) for key, why in weights.asides.items()]
    return rows


def _common_prefix(backbone: Sequence[str], weights: Weights) -> str:
    """What stands before the names of ``backbone`` in the file: mostly nothing, or one wrapper's
    name. Several complete copies of the network are never chosen from.

    All names are asked, since any of them may be missing or have another name in the file.
    """
    state = weights.state or {}
    # A name that a rule gave says nothing of what stands before the others.
    if any(name in state and name not in weights.renamed for name in backbone):
        return ""
    names, hits, below = {n for n in backbone if n not in state}, Counter[str](), Counter[str]()
    for key in state:
        for start in _starts(key):
            below[start] += 1
            hits[start] += key.removeprefix(start) in names
    # Below a block, too, are layers with usual names; but little that is there is the network's.
    found = {
        start: n
        for start, n in hits.items()
        if n and (below[start] == len(state) or 2 * n > min(below[start], len(names)))
    }
    best = sorted(start for start, n in found.items() if n == max(found.values()))
    if len(best) > 1:
        raise ambiguous(best, weights)
    return best[0] if best else ""


def _starts(key: str) -> list[str]:
    return [key[: dot.end()] for dot in re.finditer(r"\.", key)]


def _source(name: str, prefix: str, weights: Weights) -> str:
    """The entry for ``name``: behind the prefix, or where a rule has put it without one."""
    state = weights.state or {}
    bare = prefix + name not in state and name in state and name in weights.renamed
    return name if bare else prefix + name


def _allowed(rows: list[Row], weights: Weights) -> list[Row]:
    """Excuse what ``allow_missing`` names. Raises ConfigError for a pattern that excuses none."""
    lacking = [row.name for row in rows if row.name and row.fate in ("missing", "wrong shape")]
    excused: set[str] = set()
    for i, pattern in enumerate(weights.allow_missing):
        key = f"source.allow_missing[{i}]"
        found = {name for name in lacking if matches(pattern, name, key)}
        if not found:
            raise ConfigError(
                key,
                f"'{pattern}' matches no tensor that is missing",
                closest(pattern.replace("\\", ""), lacking) if lacking else "drop it",
                53,
            )
        excused |= found
    return [
        replace(row, note=f"{row.note} (allowed)".strip()) if row.name in excused else row
        for row in rows
    ]


def _checked(
    rows: list[Row],
    state: dict[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    weights: Weights,
    excused: tuple[str, ...],
    prefix: str,
) -> Match:
    asked = [
        row
        for row in rows
        if row.name and row.fate != "initialised" and not row.name.startswith(excused)
    ]
    used = [row for row in asked if row.fate in USED]
    numbers = sum(wanted[row.name or ""].numel() for row in asked)
    found = Match(
        tuple(rows),
        state,
        coverage=sum(wanted[row.name or ""].numel() for row in used) / max(1, numbers),
        tensor_coverage=len(used) / max(1, len(asked)),
        prefix=prefix,
    )
    lacking = [row for row in asked if row.fate not in USED and "(allowed)" not in row.note]
    short = lacking and not found.coverage >= weights.min_coverage < 1
    if not used or short or found.of("unexpected"):
        raise mismatch(found.rows, weights, wanted, excused)
    return found
