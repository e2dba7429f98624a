"""What is chosen from, in how many minutes, and how the choice is judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen

from xfer.core.errors import CombinationError

HeadName = Literal["linear", "mlp", "knn", "prototype"]
"""Heads that a choice knows how to judge; ``knn`` and ``prototype`` are baselines that train
nothing."""
FreezeName = Literal["head_only", "last_stage", "lp_ft", "none"]


@dataclass(frozen=True)
class NoChoice:
    """Nothing is chosen: the run is the one that is configured."""

    chooses: ClassVar[bool] = False


@dataclass(frozen=True)
class Choice:
    """Backbone, head and freeze policy are chosen within ``minutes``, and the choosing itself is
    cross-validated."""

    chooses: ClassVar[bool] = True

    minutes: Annotated[float, Gt(0)] = 10.0
    """wall time of all of it, the finished model included; never exceeded"""
    backbones: Annotated[tuple[str, ...], MinLen(1)] | Literal["cached"] = "cached"
    """names of timm's or torchvision's models; ``cached`` is every model of theirs whose weights
    lie in the local cache of the hub or of torch"""
    sources: dict[str, str] = field(default_factory=dict)
    """further backbones with a file of weights each, ``{squeezenet1_0: FILE}``"""
    heads: Annotated[tuple[HeadName, ...], MinLen(1)] = ("linear", "mlp", "knn", "prototype")
    """which heads are candidates"""
    freezes: Annotated[tuple[FreezeName, ...], MinLen(1)] = ("head_only", "lp_ft", "none")
    """which freeze policies are candidates; each decides where the network is cut. Those that
    train more than the head are tried with a linear head, and only if their price fits"""
    by: Literal["loss", "acc", "map"] = "loss"
    """what candidates are compared by on held-out images: log loss, or accuracy, which with several
    labels an image is mAP; the other decides ties"""
    folds: Annotated[int, Ge(2), Le(20)] = 5
    """folds that judge the choosing, and inside each of them as many that choose"""
    repeats: Annotated[int, Gt(0)] = 10
    """how often the outer folds are drawn anew, at most; it ends earlier when the time does"""
    rungs: Annotated[int, Gt(0), Le(6)] = 3
    """rounds of successive halving: each has twice the images of the one before"""


def refuse_choice(chooses: bool) -> None:
    """Raise CombinationError where a sweep's job is to choose."""
    if chooses:
        what = "-m starts several runs, and choose is one that tries several models itself"
        raise CombinationError("choose", what, "drop -m, or type choose=none", 43)
