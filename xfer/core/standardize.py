"""A layer on standardised input, and the same layer on raw input: one folds into the other.

The statistics go into weight and bias wherever a network is saved, so that no tensor, no name and
no exported file knows of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from xfer.core.types import Plain, StateDict


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each feature that enters a layer, float32 (d,)."""

    mean: Tensor
    std: Tensor


Standard = Mapping[str, Moments]
"""Moments by the dotted path of the layer."""


def to_plain(standard: Standard) -> Plain:
    """As a resume file holds them."""
    return {path: {"mean": own.mean, "std": own.std} for path, own in standard.items()}


def from_plain(facts: Plain | None) -> Standard:
    """The reverse of :func:`to_plain`; none for a file that has none."""
    return {path: Moments(own["mean"], own["std"]) for path, own in (facts or {}).items()}


def folded(state: StateDict, standard: Standard) -> StateDict:
    """``state`` whose layers take raw input, of one whose layers take standardised input."""
    found = dict(state)
    for path, own in standard.items():
        weight, bias = (state[f"{path}.{kind}"].double() for kind in ("weight", "bias"))
        mean, std = (t.to(weight.device).double() for t in (own.mean, own.std))
        flat = weight.flatten(1) / std
        found[f"{path}.weight"] = flat.view_as(weight).to(state[f"{path}.weight"].dtype)
        found[f"{path}.bias"] = (bias - flat @ mean).to(state[f"{path}.bias"].dtype)
    return found


def unfolded(state: StateDict, standard: Standard) -> StateDict:
    """The reverse of :func:`folded`."""
    found = dict(state)
    for path, own in standard.items():
        weight, bias = (state[f"{path}.{kind}"].double() for kind in ("weight", "bias"))
        mean, std = (t.to(weight.device).double() for t in (own.mean, own.std))
        flat = weight.flatten(1)
        found[f"{path}.weight"] = (flat * std).view_as(weight).to(state[f"{path}.weight"].dtype)
        found[f"{path}.bias"] = (bias + flat @ mean).to(state[f"{path}.bias"].dtype)
    return found
