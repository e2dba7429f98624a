"""The error for weights that do not fit: examples of each side, and the likely cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xfer.errors import WeightsError

if TYPE_CHECKING:
    from xfer.source.match import Row
    from xfer.weights import Weights

_EXAMPLES = 3


def mismatch(rows: Sequence[Row], weights: Weights, whole: bool) -> WeightsError:
    """Three names of each kind of mistake; ``whole`` when the head was to fit as well."""
    kinds = {
        fate: [row for row in rows if row.fate == fate and "(allowed)" not in row.note]
        for fate in ("missing", "unexpected", "wrong shape")
    }
    parts = [f"{len(found)} {fate} ({_examples(found)})" for fate, found in kinds.items() if found]
    return WeightsError(
        weights.origin or "source",
        "does not fit the network: " + ("; ".join(parts) or "no tensor of it is used"),
        _remedy(kinds, rows, weights, whole),
        30,
    )


def ambiguous(prefixes: Sequence[str], weights: Weights) -> WeightsError:
    """The error for a file with several networks of the wanted kind."""
    return WeightsError(
        weights.origin or "source",
        f"holds several such networks, below {', '.join(map(repr, prefixes))}",
        f"choose one: source.strip={prefixes[0]}",
        32,
    )


def _examples(rows: Sequence[Row]) -> str:
    texts = [
        f"{row.name or row.key}" + (f" {row.note}" if row.fate == "wrong shape" else "")
        for row in rows[:_EXAMPLES]
    ]
    return ", ".join(texts) + (", ..." if len(rows) > _EXAMPLES else "")


def _remedy(kinds: dict[str, list[Any]], rows: Sequence[Row], weights: Weights, whole: bool) -> str:
    if suspect := weights.facts.get("suspect"):
        return str(suspect)
    missing, unexpected, wrong = kinds.values()
    used = [row for row in rows if row.fate in ("loaded", "renamed", "adapted")]
    if not used:
        return "these are weights of another architecture: check backbone.name"
    if whole and wrong and not missing and len(wrong) <= 2:
        return "the number of classes differs: use head=linear for a new head, or check the data"
    if wrong and not missing:
        return "the sizes differ: check backbone.name, backbone.args and the number of classes"
    if unexpected and not missing and not wrong:
        top = unexpected[0].key.split(".")[0]
        return f"if they are no part of this network: source.drop=['{top}\\..*']"
    if missing and not unexpected and not wrong:
        return "the file is incomplete; to accept that: source.allow_missing=[PATTERN]"
    return "check backbone.name, or give source.rename, source.strip or source.drop"
