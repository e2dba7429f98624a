"""Strict matching of a state dict to a network: only the head is excused, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xfer.errors import WeightsError
from xfer.weights import Weights

if TYPE_CHECKING:
    from xfer.types import StateDict

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """``loaded`` and ``dropped`` are checkpoint names, ``missing`` network names that stay as
    initialised. ``coverage`` is the share of the backbone's parameters and buffers, counted in
    numbers, that were loaded; 1.0 unless there was nothing to load."""

    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    coverage: float


def match(
    wanted: Mapping[str, Shape], weights: Weights, heads: Sequence[str], dropped: Sequence[str]
) -> Match:
    """Decide what becomes of every tensor. ``heads`` are the dotted paths that may differ (empty
    for ``head=keep``), ``dropped`` the prefixes of auxiliary heads.

    Raises WeightsError with examples from both sides when anything else does not fit.
    """
    if weights.state is None:
        return Match((), (), tuple(wanted), 0.0)
    excused = tuple(f"{path}." for path in (*heads, *dropped))
    state = weights.state
    backbone = {
        name: shape
        for name, shape in wanted.items()
        # Files older than batch normalisation's counter lack it; torch loads those strictly too.
        if not name.startswith(excused)
        and (name in state or not name.endswith(".num_batches_tracked"))
    }
    given = {n: tuple(t.shape) for n, t in state.items() if not n.startswith(excused)}
    if backbone != given:
        raise _mismatch(backbone, given, weights)
    return Match(
        loaded=tuple(given),
        dropped=tuple(n for n in state if n not in given),
        missing=tuple(n for n in wanted if n not in backbone),
        coverage=1.0,
    )


def loaded_state(weights: Weights, found: Match) -> StateDict:
    """The tensors of ``weights`` that go into the network."""
    return {name: (weights.state or {})[name] for name in found.loaded}


def _mismatch(wanted: dict[str, Shape], given: dict[str, Shape], weights: Weights) -> WeightsError:
    missing = [n for n in wanted if n not in given]
    unexpected = [n for n in given if n not in wanted]
    wrong = [
        f"{n} {list(given[n])} for {list(s)}" for n, s in wanted.items() if given.get(n, s) != s
    ]
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", wrong),
        )
        if names
    ]
    return WeightsError(
        weights.origin or "source",
        "does not fit the network: " + "; ".join(parts),
        _remedy(wanted, given, len(wrong), len(missing)),
        30,
    )


def _remedy(wanted: dict[str, Shape], given: dict[str, Shape], wrong: int, missing: int) -> str:
    for name in given:
        for target in wanted:
            if name != target and name.endswith("." + target):
                prefix = name.removesuffix(target)
                return f"the names carry the prefix '{prefix}': save the inner network's state_dict"
        break
    if wrong and not missing:
        return "the sizes differ: check backbone.name, backbone.args and the number of classes"
    return "these are weights of another architecture: check backbone.name"
