"""The stages of a network, by the names that its architecture gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from xfer.freeze.apply import batch_norms
from xfer.freeze.rows import Layout
from xfer.models.adapters import matrices
from xfer.models.norms import norm_parameters

if TYPE_CHECKING:
    from torch import nn

Stages = tuple[tuple[str, tuple[str, ...]], ...]

# A child with this share of the parameter tensors is no stage but holds them.
_MOST = 0.8


def layout(module: nn.Module, heads: Iterable[str]) -> Layout:
    """What a policy knows of ``module``, whose classifier layers are at the paths ``heads``."""
    heads = tuple(heads)
    names = tuple(name for name, _ in module.named_parameters())
    norms = norm_parameters(module)
    of_batch = {path for path, _ in batch_norms(module)}
    known = Layout(
        names,
        heads,
        stages(module, heads),
        tuple(name for name in names if name in norms),
        tuple(name for name in names if name.rpartition(".")[0] in of_batch),
    )
    outside = (matrix for matrix in matrices(module) if not known.in_head(matrix.name))
    return replace(known, matrices=tuple(outside))


def stages(module: nn.Module, heads: Iterable[str]) -> Stages:
    """Stages from the first to the last with the names of their parameters; each parameter
    outside the head is in exactly one.

    For a network of timm they are its own (``group_matcher``, coarse), else the children of the
    module; one that holds most of the network, or the head, is opened. Normalisation layers that
    would be a stage alone belong to the stage before them, as timm has it for its ViT.
    """
    heads = tuple(heads)
    starts = tuple(f"{head}." for head in heads)
    names = [name for name, _ in module.named_parameters() if not name.startswith(starts)]
    groups = _of_timm(module, names) if hasattr(module, "group_matcher") else []
    return _joined(groups or list(_of_tree(module, "", names, starts)), norm_parameters(module))


def _of_timm(module: nn.Module, names: Sequence[str]) -> list[tuple[str, list[str]]]:
    from timm.models import group_parameters

    try:
        matcher = module.group_matcher(coarse=True)  # type: ignore[operator]
    except (AssertionError, NotImplementedError):  # some know fine groups only
        return []
    wanted = set(names)
    groups = [
        members
        for group in group_parameters(module, matcher).values()
        if (members := [n for n in group if n in wanted])
    ]
    return list(zip(_named(module, groups), groups, strict=True))


def _named(module: nn.Module, groups: Sequence[Sequence[str]]) -> Iterator[str]:
    """A group's name is the shortest dotted path that no other group has a part in, by most of
    its tensors; the first group is the stem where it has several."""
    group_of = {name: i for i, group in enumerate(groups) for name in group}
    owners: dict[str, set[int]] = {}
    for name, _ in module.named_parameters():
        for path in _paths(name):
            owners.setdefault(path, set()).add(group_of.get(name, -1))
    for i, group in enumerate(groups):
        paths = Counter(next(p for p in _paths(name) if len(owners[p]) == 1) for name in group)
        is_stem = i == 0 and len(paths) > 1 and "stem" not in owners
        yield "stem" if is_stem else paths.most_common()[0][0]


def _paths(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def _of_tree(
    module: nn.Module, path: str, names: Sequence[str], heads: tuple[str, ...]
) -> Iterator[tuple[str, list[str]]]:
    """Pairs of a child's path and its parameters below ``names``; the path is empty for
    parameters that ``module`` itself owns."""
    if direct := [n for n in names if n.rpartition(".")[0] == path]:
        yield "", direct
    below = {
        start: (child, [n for n in names if n.startswith(start)])
        for name, child in module.named_children()
        if (start := f"{path}.{name}." if path else f"{name}.") not in heads
    }
    headless = [len(inner) for start, (_, inner) in below.items() if not _holds(start, heads)]
    for start, (child, inner) in below.items():
        parts = [c for c in child.children() if any(True for _ in c.parameters())]
        most = len(inner) >= _MOST * sum(headless) and len(parts) > 1
        if _holds(start, heads) or (inner and most):
            yield from _of_tree(child, start[:-1], inner, heads)
        elif inner:
            yield start[:-1], inner


def _holds(start: str, heads: Iterable[str]) -> bool:
    return any(head.startswith(start) for head in heads)


def _joined(groups: Iterable[tuple[str, list[str]]], norms: set[str]) -> Stages:
    """Parameters without a module of their own, and normalisation layers alone, go with the stage
    before them; at the very beginning with the one after."""
    joined: list[tuple[str, list[str]]] = []
    waiting: list[str] = []
    for name, names in groups:
        if joined and (not name or norms.issuperset(names)):
            joined[-1][1].extend(names)
        elif not name:
            waiting += names
        else:
            joined.append((name, [*waiting, *names]))
            waiting = []
    if waiting:
        joined.append(("stem", waiting))
    return tuple((name, tuple(names)) for name, names in joined)
