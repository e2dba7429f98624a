"""Policies by stages of the backbone: cut once, a multiple a stage, or a stage at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from xfer.core.errors import ConfigError, closest
from xfer.freeze.policy import Policy
from xfer.freeze.rows import Layout, Phase
from xfer.freeze.rules import one_of

Multiple = Annotated[float, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class LayerDecay(Policy):
    """Everything trains; the multiple is ``decay`` to the power of the stage's distance from the
    head, whose own is 1 (ELECTRA, Clark et al. 2020; BEiT, Bao et al. 2022)."""

    decay: Share = 0.75

    def planned(self, layout: Layout, epochs: int) -> list[Phase]:
        """One phase."""
        count = len(layout.stages)
        stages = [self.decay ** (count - i) for i in range(count)]
        return [Phase(layout.rows(1, stages), 0, None, "phase 1")]


@dataclass(frozen=True, kw_only=True)
class Discriminative(Policy):
    """Everything trains; the multiples rise by one factor from stage to stage, from ``lowest`` at
    the first to 1 at the head (the sliced learning rates of fastai)."""

    lowest: Share = 0.01

    def planned(self, layout: Layout, epochs: int) -> list[Phase]:
        """One phase."""
        count = len(layout.stages)
        stages = [self.lowest ** ((count - i) / count) for i in range(count)]
        return [Phase(layout.rows(1, stages), 0, None, "phase 1")]


@dataclass(frozen=True, kw_only=True)
class Gradual(Policy):
    """The head trains first, then one stage more from the last to the first, every ``every``
    epochs; ``lr`` is the stages' multiple, the head's is 1 (ULMFiT, Howard and Ruder 2018)."""

    every: Annotated[int, Ge(1)] = 1
    lr: Multiple = 0.01

    def planned(self, layout: Layout, epochs: int) -> list[Phase]:
        """One phase for the head, and one a stage."""
        names = [name for name, _ in reversed(layout.stages)]
        count = len(names)
        found = []
        for i, name in enumerate(["head alone", *names]):
            stages = [0.0] * (count - i) + [self.lr] * i
            found.append(Phase(layout.rows(1, stages), i * self.every, None, name))
        return found


@dataclass(frozen=True, kw_only=True)
class LpFt(Policy):
    """Linear probe, then fine-tune from it (Kumar et al. 2022).

    The head trains alone for ``probe_epochs`` epochs, or until the monitored metric had no new
    best for ``patience`` epochs; with neither, for half of the run, or not at all where the head
    starts solved. Then everything trains, the last stage of the backbone at the multiple
    ``backbone_lr``, each one before it slower by the factor ``decay``, and the head at
    ``head_lr``. ``norms``: whether BatchNorm trains as well, or stays as it came: statistics of a
    few small batches are worse than those of the pretraining.
    """

    probe_epochs: Annotated[int, Ge(1)] | None = None
    patience: Annotated[int, Ge(1)] | None = None
    backbone_lr: Multiple = 0.01
    head_lr: Multiple = 0.01
    decay: Share = 1.0
    norms: Literal["train", "freeze"] = "train"

    def __post_init__(self) -> None:
        if self.probe_epochs is not None and self.patience is not None:
            raise one_of("freeze", "probe_epochs", "patience")

    def after_solved(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """See :meth:`Policy.after_solved`: the probe is done, unless it was given a length."""
        if self.probe_epochs is not None or self.patience is not None:
            return phases
        return (replace(phases[1], start=0),)

    def planned(self, layout: Layout, epochs: int) -> list[Phase]:
        """Two phases."""
        count = len(layout.stages)
        start = None
        if self.patience is None:
            start = self.probe_epochs or max(1, epochs // 2)
        slower = [self.backbone_lr * self.decay ** (count - 1 - i) for i in range(count)]
        tuned = layout.rows(self.head_lr, slower)
        if self.norms == "freeze":
            still = set(layout.batch_norms)
            tuned = tuple(replace(row, lr=0.0) if row.name in still else row for row in tuned)
        return [
            Phase(layout.rows(1, [0.0] * count), 0, None, "linear probe"),
            Phase(tuned, start, self.patience, "fine-tune"),
        ]


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
