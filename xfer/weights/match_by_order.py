"""Tensors of the right architecture under other names, paired by order and shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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

    Tensors below one of ``heads`` may have another number of classes, or be in neither. Empty
    where the shapes do not follow each other in the same order, where a weight would become a
    bias, or where names of both sides say that two tensors of one shape changed places.
    """
    keys = [key for key in given if not key.endswith(COUNTER)]
    own = [name for name in wanted if not name.endswith(COUNTER)]
    for names in (own, [name for name in own if not name.startswith(heads)]):
        if len(names) != len(keys) or not names:
            continue
        pairs = list(zip(names, keys, strict=True))
        fit = all(_fits(n, wanted[n], k, given[k], n.startswith(heads)) for n, k in pairs)
        if fit and not _crossed(pairs, wanted):
            return {**dict(pairs), **_counters(pairs, wanted, given)}
    return {}


def _fits(name: str, own: torch.Tensor, key: str, other: torch.Tensor, of_head: bool) -> bool:
    # The first number of a head's shape is that of its classes.
    start = 1 if of_head else 0
    shapes = own.shape[start:] == other.shape[start:] and own.ndim == other.ndim
    roles = {_ROLES.get(text.rpartition(".")[2], "") for text in (name, key)} - {""}
    return shapes and len(roles) <= 1 and own.is_floating_point() == other.is_floating_point()


def _counters(
    pairs: Iterable[tuple[str, str]],
    wanted: Mapping[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
) -> dict[str, str]:
    """The counters, which go where the other tensors of their layer go."""
    layers = {name.rpartition(".")[0]: key.rpartition(".")[0] for name, key in pairs}
    found = {f"{name}.{COUNTER}": f"{key}.{COUNTER}" for name, key in layers.items()}
    return {name: key for name, key in found.items() if name in wanted and key in given}


def _crossed(pairs: Sequence[tuple[str, str]], wanted: Mapping[str, torch.Tensor]) -> bool:
    """Whether names that both sides know come in another order among tensors of one shape, as
    where one library has query before key and the other key before query."""
    families: dict[object, list[tuple[str, str]]] = {}
    for name, key in pairs:
        own, other = _split(name), _split(key)
        shape = tuple(wanted[name].shape)
        families.setdefault((own[0], other[0], own[2], shape), []).append((own[1], other[1]))
        # Whole names, for files of which some tensors have the network's names.
        families.setdefault((own[2], shape), []).append((".".join(own[:2]), ".".join(other[:2])))
    return any(_changed_places(family) for family in families.values())


def _changed_places(family: Sequence[tuple[str, str]]) -> bool:
    place = {own: i for i, (own, _) in enumerate(family)}
    places = [place[other] for _, other in family if other in place]
    return places != sorted(places)


def _split(name: str) -> tuple[str, str, str]:
    """What holds the layer, the layer and the role of its tensor, without trifles of spelling."""
    layer, _, last = name.rpartition(".")
    parts = [part.strip("_").lower() for part in layer.split(".")]
    found = _ATTENTION.fullmatch(parts[-1])
    return ".".join(parts[:-1]), found[1] if found else parts[-1], _ROLES.get(last, last)
