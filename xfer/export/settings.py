"""How strictly exported files are compared with the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True)
class Gate:
    """``tolerance``: the largest logit difference, see :func:`xfer.export.compare.allowed`.
    ``images``: how many real validation images every file is compared on. ``max_drop``: the
    accuracy that an approximate file (int8) may lose on the validation split."""

    tolerance: Annotated[float, Gt(0)] = 1e-4
    images: Annotated[int, Ge(2)] = 64
    max_drop: Annotated[float, Ge(0), Le(1)] = 0.01
