"""Policies that cut the backbone once: what is behind the cut trains, what is before is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from xfer.errors import ConfigError, closest
from xfer.freeze.policy import Policy
from xfer.freeze.table import Layout, Phase

Multiple = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True)
class _Split(Policy):
    """``lr``: learning-rate multiple of the stages that train; the head's is 1."""

    lr: Multiple = 0.01

    def planned(self, layout: Layout, epochs: int) -> list[Phase]:
        """One phase."""
        cut = self.cut(layout)
        stages = [self.lr if i >= cut else 0.0 for i in range(len(layout.stages))]
        return [Phase(layout.rows(1, stages), 0, None, "phase 1")]

    def cut(self, layout: Layout) -> int:
        """How many stages are frozen."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class LastStage(_Split):
    """The head and the last ``stages`` stages train."""

    stages: Annotated[int, Ge(1)] = 1

    def cut(self, layout: Layout) -> int:
        """Raises ConfigError when there are not so many."""
        return len(layout.stages) - _at_most(self.stages, layout, "freeze.stages")


@dataclass(frozen=True, kw_only=True)
class FirstN(_Split):
    """The first ``n`` stages are frozen."""

    n: Annotated[int, Ge(1)]

    def cut(self, layout: Layout) -> int:
        """Raises ConfigError when there are not so many."""
        return _at_most(self.n, layout, "freeze.n")


@dataclass(frozen=True, kw_only=True)
class UpTo(_Split):
    """Every stage up to ``stage``, and ``stage`` itself, is frozen."""

    stage: str

    def cut(self, layout: Layout) -> int:
        """Raises ConfigError when there is no such stage."""
        names = [name for name, _ in layout.stages]
        if self.stage not in names:
            what = f"the network has no stage '{self.stage}'"
            raise ConfigError("freeze.stage", what, closest(self.stage, names), 39)
        return names.index(self.stage) + 1


def _at_most(count: int, layout: Layout, where: str) -> int:
    names = [name for name, _ in layout.stages]
    if count > len(names):
        what = f"is {count}, but the network has {len(names)} stages: {', '.join(names)}"
        raise ConfigError(where, what, f"type {where}={len(names)} or less", 39)
    return count
