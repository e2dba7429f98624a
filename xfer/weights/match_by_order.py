"""Tensors of the right architecture under other names, paired by order and shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

COUNTER = "num_batches_tracked"
"""Batch normalisation's counter, which files of torch before 0.4.1 lack."""

# What other libraries call the tensors of a layer; two that differ here are never a pair.
_ROLES = {
    **{"weight": "weight", "gamma": "weight", "kernel": "weight"},
    **{"bias": "bias", "beta": "bias"},
    **{"running_mean": "mean", "moving_mean": "mean"},
    **{"running_var": "variance", "moving_variance": "variance"},
}
_ATTENTION = re.compile(r"(q|k|v)(uery|ey|alue)?(_?(proj|lin|linear|layer))?")


def by_order(
    wanted: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    heads: tuple[str, ...],
) -> dict[str, str]:
    """The name in ``given`` for each name in ``wanted``, where order and shape leave no doubt.

    Tensors below one of ``heads`` may have another number of classes, or be in neither. What the
    file has behind the last of the network's may be another head, in a module of its own. Empty
    where the shapes do not follow each other in the same order, where a weight would become a
    bias, or where names of both sides say that two tensors of one shape changed places.
    """
    keys = [key for key in given if not key.endswith(COUNTER)]
    all_names = [name for name in wanted if not name.endswith(COUNTER)]
    for names in (all_names, [name for name in all_names if not name.startswith(heads)]):
        pairs = list(zip(names, keys, strict=False))
        tops = {key.partition(".")[0] for _, key in pairs}
        more = {key.partition(".")[0] for key in keys[len(names) :]}
        if not names or len(pairs) < len(names) or tops & more:
            continue
        fit = all(_fits(n, wanted[n], k, given[k], n.startswith(heads)) for n, k in pairs)
        if fit and not _crossed(pairs, wanted):
            # The counters go where the other tensors of their layer go.
            layers = {name.rpartition(".")[0]: key.rpartition(".")[0] for name, key in pairs}
            counters = {f"{name}.{COUNTER}": f"{key}.{COUNTER}" for name, key in layers.items()}
            both = {name: key for name, key in counters.items() if name in wanted and key in given}
            return {**dict(pairs), **both}
    return {}


def _fits(name: str, target: torch.Tensor, key: str, other: torch.Tensor, of_head: bool) -> bool:
    # The first number of a head's shape is that of its classes.
    start = 1 if of_head else 0
    shapes = target.shape[start:] == other.shape[start:] and target.ndim == other.ndim
    roles = {_ROLES.get(text.rpartition(".")[2], "") for text in (name, key)} - {""}
    same_kind = target.is_floating_point() == other.is_floating_point()
    return shapes and len(roles) <= 1 and same_kind


def _crossed(pairs: Sequence[tuple[str, str]], wanted: Mapping[str, torch.Tensor]) -> bool:
    """Whether names that both sides know come in another order among tensors of one shape, as
    where one library has query before key and the other key before query."""
    families: dict[object, list[tuple[str, str]]] = {}
    for name, key in pairs:
        (block, layer, role), (other_block, other_layer, _) = _split(name), _split(key)
        shape = tuple(wanted[name].shape)
        families.setdefault((block, other_block, role, shape), []).append((layer, other_layer))
        # Whole names, for files of which some tensors have the network's names.
        whole = (f"{block}.{layer}", f"{other_block}.{other_layer}")
        families.setdefault((role, shape), []).append(whole)
    for family in families.values():
        place = {name: i for i, (name, _) in enumerate(family)}
        places = [place[other] for _, other in family if other in place]
        if places != sorted(places):
            return True
    return False


def _split(name: str) -> tuple[str, str, str]:
    """What holds the layer, the layer and the role of its tensor, without trifles of spelling."""
    layer, _, last = name.rpartition(".")
    parts = [part.strip("_").lower() for part in layer.split(".")]
    attention = _ATTENTION.fullmatch(parts[-1])
    return ".".join(parts[:-1]), attention[1] if attention else parts[-1], _ROLES.get(last, last)
