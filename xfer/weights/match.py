"""Strict matching of a state dict to a network: what becomes of every tensor, none in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from xfer.core.errors import ConfigError, closest
from xfer.core.regex import matches
from xfer.weights.content import USED, Fate, Match, TensorRow, Weights
from xfer.weights.match_by_order import COUNTER, by_order
from xfer.weights.match_errors import ambiguous, mismatch, modules_of, unordered
from xfer.weights.reshape import adapted, with_registers

if TYPE_CHECKING:
    import torch


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
        fresh = [TensorRow(n, None, "initialised", tuple(t.shape)) for n, t in wanted.items()]
        return Match(tuple(fresh))
    excused = tuple(f"{path}." for path in (*heads, *dropped))
    weights = with_registers(wanted, weights)
    if weights.match == "order":
        weights = _in_order(wanted, weights, excused)
    backbone = [n for n in wanted if not n.startswith(excused) and not n.endswith(COUNTER)]
    prefix = _common_prefix(backbone, weights)
    rows, state = [], {}
    for name, target in wanted.items():
        row, tensor = _placed(name, target, _entry(name, prefix, weights), weights, excused)
        rows.append(row)
        if tensor is not None:
            state[name] = tensor
    for entry, tensor in (weights.state or {}).items():
        inner = entry.removeprefix(prefix)
        if inner not in wanted or _entry(inner, prefix, weights) != entry:
            fate: Fate = "dropped head" if inner.startswith(excused) else "unexpected"
            key = weights.renamed.get(entry, entry)
            rows.append(TensorRow(None, key, fate, tuple(tensor.shape)))
    rows += [TensorRow(None, key, "left out", note=why) for key, why in weights.asides.items()]
    return _checked(_allowed(rows, weights), state, wanted, weights, excused, prefix)


def _in_order(
    wanted: Mapping[str, torch.Tensor], weights: Weights, excused: tuple[str, ...]
) -> Weights:
    """``weights`` under the network's names, paired by order and shape."""
    state = weights.state or {}
    pairs = by_order(wanted, state, excused)
    if not pairs:
        raise unordered(weights)
    renamed = {name: weights.renamed.get(key, key) for name, key in pairs.items()}
    left = [weights.renamed.get(key, key) for key in state.keys() - set(pairs.values())]
    return replace(
        weights,
        state={name: state[key] for name, key in pairs.items()},
        renamed={name: key for name, key in renamed.items() if name != key},
        asides={**weights.asides, **dict.fromkeys(left, "the network has no tensor for it")},
    )


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
        for module in modules_of(key):
            below[module] += 1
            hits[module] += key.removeprefix(module) in names
    # Below a block, too, are layers with usual names; but little that is there is the network's.
    counts = {
        module: n
        for module, n in hits.items()
        if n and (below[module] == len(state) or 2 * n > min(below[module], len(names)))
    }
    best = sorted(module for module, n in counts.items() if n == max(counts.values()))
    if len(best) > 1:
        raise ambiguous(best, weights)
    return best[0] if best else ""


def _entry(name: str, prefix: str, weights: Weights) -> str:
    """The entry for ``name``: after the prefix, or where a rule has put it without one."""
    state = weights.state or {}
    bare = prefix + name not in state and name in state and name in weights.renamed
    return name if bare else prefix + name


def _placed(
    name: str, target: torch.Tensor, entry: str, weights: Weights, excused: tuple[str, ...]
) -> tuple[TensorRow, torch.Tensor | None]:
    """What becomes of the network's tensor ``name``, and what goes into it."""
    given, shape = (weights.state or {}).get(entry), tuple(target.shape)
    in_head = name.startswith(excused)
    if given is None:
        # Files older than batch normalisation's counter lack it; torch loads those strictly too.
        optional = in_head or name.endswith(COUNTER)
        return TensorRow(name, None, "initialised" if optional else "missing", shape), None
    row = TensorRow(name, weights.renamed.get(entry, entry), "loaded", tuple(given.shape))
    if in_head:
        return replace(row, fate="dropped head"), None
    types = [str(tensor.dtype).removeprefix("torch.") for tensor in (given, target)]
    if given.is_floating_point() != target.is_floating_point():
        return replace(row, fate="wrong shape", note=" for ".join(types)), None
    if row.shape == shape:
        note = "" if given.dtype == target.dtype else " as ".join(types)
        return replace(row, fate="loaded" if row.key == name else "renamed", note=note), given
    other = adapted(name, given, shape, weights)
    if other is None:
        return replace(row, fate="wrong shape", note=f"{list(row.shape)} for {list(shape)}"), None
    return replace(row, fate="adapted", note=other[1]), other[0]


def _allowed(rows: list[TensorRow], weights: Weights) -> list[TensorRow]:
    """Excuse what ``allow_missing`` names. Raises ConfigError for a pattern that excuses none."""
    lacking = [row.name for row in rows if row.name and row.fate in ("missing", "wrong shape")]
    excused: set[str] = set()
    for i, pattern in enumerate(weights.allow_missing):
        key = f"source.allow_missing[{i}]"
        names = {name for name in lacking if matches(pattern, name, key)}
        if not names:
            what = f"'{pattern}' matches no tensor that is missing"
            fix = closest(pattern.replace("\\", ""), lacking) if lacking else "drop it"
            raise ConfigError(key, what, fix, 53)
        excused |= names
    return [
        replace(row, note=f"{row.note} (allowed)".strip()) if row.name in excused else row
        for row in rows
    ]


def _checked(
    rows: list[TensorRow],
    state: dict[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    weights: Weights,
    excused: tuple[str, ...],
    prefix: str,
) -> Match:
    sizes = {
        row: wanted[row.name].numel()
        for row in rows
        if row.name and row.fate != "initialised" and not row.name.startswith(excused)
    }
    used = [row for row in sizes if row.fate in USED]
    result = Match(
        tuple(rows),
        state,
        coverage=sum(sizes[row] for row in used) / max(1, sum(sizes.values())),
        tensor_coverage=len(used) / max(1, len(sizes)),
        prefix=prefix,
    )
    lacking = [row for row in sizes if row.fate not in USED and "(allowed)" not in row.note]
    short = lacking and not result.coverage >= weights.min_coverage < 1
    if not used or short or result.of("unexpected"):
        raise mismatch(result.rows, weights, wanted, excused)
    return result
