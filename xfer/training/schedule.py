"""The learning rate over time: a factor of the base rate, a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

Factor = Annotated[float, Ge(0), Le(1)]
Epochs = Annotated[float, Ge(0)]
_WARMUP = 0.1  # of the epochs, where the plan decides


@dataclass(frozen=True)
class Constant:
    """The base rate throughout."""

    def factor(self, step: int, steps_per_epoch: int, total: int) -> float:
        """The factor of optimizer step ``step`` (from 0) of ``total``."""
        return 1.0


@dataclass(frozen=True)
class AutoSchedule:
    """A tenth of the run for the rate to rise, then half a cosine down to 0; a head that is solved
    exactly has no rate. The plan says which."""

    def factor(self, step: int, steps_per_epoch: int, total: int) -> float:
        """Never asked: the plan puts what it decides in this place."""
        raise ValueError("schedule is still to be decided by the plan")

    def becomes(self, choice: str, epochs: int | None) -> Constant | Cosine:
        """What the plan chose: ``constant``, or ``cosine`` over ``epochs``."""
        if choice == "constant" or epochs is None:
            return Constant()
        return Cosine(warmup_epochs=_WARMUP * epochs)


@dataclass(frozen=True)
class Step:
    """Times ``gamma`` after every ``every`` epochs."""

    every: Annotated[int, Gt(0)] = 10
    """epochs between two drops"""
    gamma: Annotated[float, Gt(0), Le(1)] = 0.1
    """factor of each drop"""

    def factor(self, step: int, steps_per_epoch: int, total: int) -> float:
        """The factor of optimizer step ``step`` (from 0) of ``total``."""
        return float(self.gamma ** (step // steps_per_epoch // self.every))


@dataclass(frozen=True)
class Cosine:
    """Linear from 0 over ``warmup_epochs``, then a half cosine to ``final`` times the base rate
    (Loshchilov and Hutter, 2017)."""

    warmup_epochs: Epochs = 0
    """length of the linear start"""
    final: Factor = 0.0
    """factor at the last step"""

    def factor(self, step: int, steps_per_epoch: int, total: int) -> float:
        """The factor of optimizer step ``step`` (from 0) of ``total``."""
        share, rising = _position(step, self.warmup_epochs * steps_per_epoch, total)
        if rising:
            return share
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class WarmupDecay:
    """Linear from 0 over ``warmup_epochs``, then linear down to ``final`` times the base rate."""

    warmup_epochs: Epochs = 5
    """length of the linear start"""
    final: Factor = 0.02
    """factor at the last step; the way there is linear"""

    def factor(self, step: int, steps_per_epoch: int, total: int) -> float:
        """The factor of optimizer step ``step`` (from 0) of ``total``."""
        share, rising = _position(step, self.warmup_epochs * steps_per_epoch, total)
        return share if rising else 1 - (1 - self.final) * share


def _position(step: int, warmup: float, total: int) -> tuple[float, bool]:
    """How far the warm-up (True) or what follows it (False) has come, 0 to 1.

    The last step of each part reaches its end; the first one of a warm-up is already above zero,
    so that no step is wasted.
    """
    if step + 1 < warmup:
        return (step + 1) / warmup, True
    rest = total - 1 - math.ceil(max(warmup - 1, 0))
    return min(1.0, (step - max(warmup - 1, 0)) / rest if rest > 0 else 1.0), False
