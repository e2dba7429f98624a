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
    return {path: {"mean": layer.mean, "std": layer.std} for path, layer in standard.items()}


def from_plain(facts: Plain | None) -> Standard:
    """The reverse of :func:`to_plain`; none for a file that has none."""
    return {path: Moments(layer["mean"], layer["std"]) for path, layer in (facts or {}).items()}


def folded(state: StateDict, standard: Standard) -> StateDict:
    """``state`` whose layers take raw input, of one whose layers take standardised input."""
    return _rescaled(state, standard, raw=True)


def unfolded(state: StateDict, standard: Standard) -> StateDict:
    """The reverse of :func:`folded`."""
    return _rescaled(state, standard, raw=False)


def _rescaled(state: StateDict, standard: Standard, raw: bool) -> StateDict:
    result = dict(state)
    for path, layer in standard.items():
        names = f"{path}.weight", f"{path}.bias"
        weight, bias = (state[name].double() for name in names)
        mean, std = (t.to(weight.device).double() for t in (layer.mean, layer.std))
        flat = weight.flatten(1)
        new = flat / std if raw else flat * std
        shift = -(new @ mean) if raw else flat @ mean
        result[names[0]] = new.view_as(weight).to(state[names[0]].dtype)
        result[names[1]] = (bias + shift).to(state[names[1]].dtype)
    return result
