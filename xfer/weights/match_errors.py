"""The error for weights that do not fit: examples of each side, the likely cause, and a remedy
that was tried on the tensors at hand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from xfer.core.errors import WeightsError, first_few
from xfer.weights.content import USED, TensorRow, Weights
from xfer.weights.match_by_order import by_order
from xfer.weights.reshape import grid_of

if TYPE_CHECKING:
    import torch

MISFIT = 430
"""The number of the error for weights that do not fit."""
_EXAMPLES = 3
_PATTERNS = 5
"""How many patterns a remedy may have before it is easier to look for another cause."""


def mismatch(
    rows: Sequence[TensorRow],
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
    parts = [f"{len(kind)} {fate} ({_examples(kind)})" for fate, kind in kinds.items() if kind]
    what = "does not fit the network: " + ("; ".join(parts) or "no tensor of it is used")
    origin = weights.origin or "source"
    if suspect := weights.facts.get("suspect"):
        return WeightsError(origin, what, str(suspect), 30)
    # safetensors sorts its entries by type and name: their order says nothing of the network.
    ordered = kinds["missing"] and weights.facts.get("format") != "safetensors"
    pairs = by_order(wanted, weights.state or {}, excused) if ordered else {}
    if pairs:
        renames = [f"{key} -> {name}" for name, key in pairs.items() if name != key]
        what = (
            f"has other names than the network, and the same {len(pairs)} shapes in the same "
            f"order: {', '.join(renames[:_EXAMPLES])} and so on"
        )
        fix = "type source.match=order to take these renames; 'stages=[]' shows the plan alone"
        return WeightsError(origin, what, fix, 35)
    if not any(row.fate in USED for row in rows):
        return WeightsError(origin, what, _of_strangers(wanted, weights, excused), 30)
    return WeightsError(origin, what, _remedy(kinds, rows, wanted, not excused), 30)


def ambiguous(prefixes: Sequence[str], weights: Weights) -> WeightsError:
    """The error for a file with several networks of the wanted kind."""
    what = f"holds several such networks, below {', '.join(map(repr, prefixes))}"
    # Of MoCo's two encoders the one of the queries is transferred (He et al., 2020).
    first = next((p for p in prefixes if p.endswith("encoder_q.")), prefixes[0])
    fix = f"choose one: source.strip={first}"
    return WeightsError(weights.origin or "source", what, fix, 32)


def unordered(weights: Weights) -> WeightsError:
    """The error for ``source.match=order`` where order and shape leave a doubt."""
    what = "does not have the network's shapes in the network's order"
    fix = "drop source.match, which shows what fits by name"
    return WeightsError(weights.origin or "source", what, fix, 36)


def modules_of(name: str) -> list[str]:
    """What a dotted name may begin with: ``a.``, ``a.b.`` and so on."""
    return [name[: dot.end()] for dot in re.finditer(r"\.", name)]


def _examples(rows: Sequence[TensorRow]) -> str:
    texts = [
        f"{row.name or row.key}" + (f" {row.note}" if row.fate == "wrong shape" else "")
        for row in rows
    ]
    return first_few(texts, _EXAMPLES)


def _of_strangers(
    wanted: Mapping[str, torch.Tensor], weights: Weights, excused: tuple[str, ...]
) -> str:
    """What to do where no name fits, by how many of the shapes are there all the same."""
    shapes = Counter(tuple(t.shape) for n, t in wanted.items() if not n.startswith(excused))
    given = Counter(tuple(t.shape) for t in (weights.state or {}).values())
    shared = (shapes & given).total()
    if apart := _apart(shapes - given, given - shapes):
        return (
            "the file has query, key and value apart, as the library transformers saves, which "
            f"the network has in one tensor ({apart} times): type source=hub without source.path "
            "for the file that the backbone's own library publishes, or join them under the "
            "network's names"
        )
    if 10 * shared < 9 * shapes.total():
        return (
            f"these are weights of another architecture ({shared} of the network's "
            f"{shapes.total()} shapes are in the file): type backbone=LIBRARY backbone.name=NAME "
            "of the one that they are of; LIBRARY is timm or torchvision"
        )
    there = f"{shared} of the network's {shapes.total()} shapes are there under other names"
    rename = "give source.rename=[{match: PATTERN, to: NAME}]"
    if 10 * (more := given.total() - shared) > given.total():
        return (
            f"{there}, in another order, and {more} tensors more: if these are weights of a larger "
            f"network of its family, type backbone.name=NAME of that one, else {rename}"
        )
    return f"{there}, in another order: {rename}"


def _apart(lacking: Counter[tuple[int, ...]], left: Counter[tuple[int, ...]]) -> int:
    """How many matrices are ``lacking`` of which three of a third of the size are ``left``, where
    there is no other one that is lacking."""
    lacking = Counter({shape: n for shape, n in lacking.items() if len(shape) > 1})
    thirds = {shape: (shape[0] // 3, *shape[1:]) for shape in lacking if not shape[0] % 3}
    joined = [n for shape, n in lacking.items() if left[thirds.get(shape, ())] >= 3 * n]
    return sum(joined) if len(joined) == len(lacking) else 0


def _remedy(
    kinds: dict[str, list[TensorRow]],
    rows: Sequence[TensorRow],
    wanted: Mapping[str, torch.Tensor],
    whole: bool,
) -> str:
    missing, unexpected, wrong = kinds.values()
    shapes = [(r.name or "", r.shape, tuple(wanted[r.name or ""].shape)) for r in wrong]
    if wrong and not missing and all(grid_of(*shape) for shape in shapes):
        rest = {**kinds, "wrong shape": []}
        also = f"; {_remedy(rest, rows, wanted, whole)}" if unexpected else ""
        typed = "type source.resize_positions=true, or backbone.image_size=PIXELS of the file"
        return f"the file is of another image size: {typed}{also}"
    if whole and wrong and not missing and len(wrong) <= 2:
        return "the number of classes differs: use head=linear for a new head, or check the data"
    if wrong and not missing:
        return "the sizes differ: check backbone.name, backbone.args and the number of classes"
    used, fix = [row for row in rows if row.fate in USED], ""
    if missing and not wrong:
        names, known = [r.name or "" for r in missing], [r.name or "" for r in used]
        fix = _of_one_side(names, known, "shallower network, without", not unexpected, False)
    elif unexpected and not missing and not wrong:
        names, known = [r.key or "" for r in unexpected], [r.key or "" for r in used]
        fix = _of_one_side(names, known, "deeper network, with", False, True)
    return fix or "check backbone.name, or give source.rename, source.strip or source.drop"


def _of_one_side(
    names: Sequence[str], known: Sequence[str], depth: str, allow: bool, drop: bool
) -> str:
    """The remedy for ``names`` that one side alone has; ``known`` are those of both."""
    if block := _next_block(names, known):
        return f"the file is of a {depth} {block}: type backbone.name=NAME of that network"
    patterns = ", ".join(map(repr, _patterns(names, known)))
    if patterns and allow:
        return f'the file lacks these; to leave them random: "source.allow_missing=[{patterns}]"'
    if patterns and drop:
        return f'if they are no part of this network: "source.drop=[{patterns}]"'
    return ""


def _next_block(names: Sequence[str], known: Sequence[str]) -> str:
    """The first numbered block among ``names`` that follows the last of ``known``."""
    below = {module for name in known for module in modules_of(name)}
    for module in [module for name in names for module in modules_of(name)]:
        head, _, last = module.rstrip(".").rpartition(".")
        before = f"{head}.{int(last) - 1}." if last.isdecimal() and int(last) else ""
        if module not in below and before.lstrip(".") in below:
            return module.rstrip(".")
    return ""


def _patterns(names: Sequence[str], known: Collection[str]) -> list[str]:
    """Patterns that match all of ``names`` and none of ``known``; none where that takes many."""
    below = {module for name in known for module in modules_of(name)}
    tops = [next((m for m in modules_of(name) if m not in below), name) for name in names]
    exact = [(re.sub(r"([^\w])", r"[\1]", top), top.endswith(".")) for top in tops]
    patterns = list(dict.fromkeys(f"{text}.*" if whole else text for text, whole in exact))
    if len(patterns) > _PATTERNS:  # the same layer of many blocks
        patterns = list(dict.fromkeys(re.sub(r"\d+", r"\\d+", pattern) for pattern in patterns))
    if len(patterns) > _PATTERNS:  # decoder_embed, decoder_blocks, decoder_norm
        patterns = list(dict.fromkeys(re.sub(r"(?<=[^\W_])_.*", "_.*", each) for each in patterns))
    caught = any(re.fullmatch(pattern, name) for pattern in patterns for name in known)
    return [] if caught or len(patterns) > _PATTERNS else patterns
