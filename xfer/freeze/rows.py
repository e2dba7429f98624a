"""What a policy decides: the multiples of every parameter, and when the next ones hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from xfer.core.errors import ConfigError
from xfer.models.adapters import Matrix, factors

BatchNorm = Literal["eval", "adapt", "train"]


@dataclass(frozen=True)
class ParameterRow:
    """One parameter: its name, whether it is the head's, and its learning-rate multiple."""

    name: str
    head: bool
    lr: float

    @property
    def frozen(self) -> bool:
        """Whether it never moves."""
        return self.lr == 0


@dataclass(frozen=True)
class Phase:
    """The rows that hold from its start on, one a parameter, in the order of the network.

    The first phase starts at epoch 0. A later one starts at epoch ``start``, counted from 0, or,
    when that is ``None``, after ``patience`` epochs without a new best of the monitored metric.
    """

    rows: tuple[ParameterRow, ...]
    start: int | None
    patience: int | None
    name: str


@dataclass(frozen=True)
class Layout:
    """What a policy knows of a network: parameter names in order, dotted paths of the classifier
    layers, stages from first to last without the head, and the parameters of normalisation
    layers, of BatchNorm among them. ``matrices`` are the weights outside the head that can have
    an adapter, ``adapters`` the names of the factors of those that have one."""

    names: tuple[str, ...]
    heads: tuple[str, ...]
    stages: tuple[tuple[str, tuple[str, ...]], ...]
    norms: tuple[str, ...]
    batch_norms: tuple[str, ...] = ()
    matrices: tuple[Matrix, ...] = ()
    adapters: tuple[str, ...] = ()

    def in_head(self, name: str) -> bool:
        """Whether a parameter is the head's."""
        return name.startswith(tuple(f"{head}." for head in self.heads))

    def adapted(self, weights: Collection[str], names: Sequence[str]) -> Layout:
        """The layout once ``weights`` have adapters, and the network's parameters are ``names``.
        The factors belong to the stage of their weight."""
        stages = tuple(
            (stage, (*members, *(f for n in members if n in weights for f in factors(n))))
            for stage, members in self.stages
        )
        adapters = tuple(name for weight in weights for name in factors(weight))
        return replace(self, names=tuple(names), stages=stages, adapters=adapters)

    def rows(self, head: float, stages: Sequence[float]) -> tuple[ParameterRow, ...]:
        """Rows with one multiple for the head and one a stage."""
        parts = zip(self.stages, stages, strict=True)
        multiples = {name: float(lr) for (_, names), lr in parts for name in names}
        return tuple(
            ParameterRow(n, self.in_head(n), multiples.get(n, float(head))) for n in self.names
        )


def ever(phases: Sequence[Phase]) -> dict[str, tuple[float, ...]]:
    """Every parameter's multiples over the phases; all 0 where it never trains."""
    columns = zip(*(phase.rows for phase in phases), strict=True)
    return {rows[0].name: tuple(row.lr for row in rows) for rows in columns}


def checked(phases: Sequence[Phase], epochs: int) -> tuple[Phase, ...]:
    """``phases``. Raises ConfigError where one trains nothing or can never begin."""
    for phase in phases:
        if all(row.frozen for row in phase.rows):
            which = f" in phase '{phase.name}'" if phases[1:] else ""
            what = f"leaves nothing to train{which}"
            raise ConfigError("freeze", what, "give the head or a stage an lr above 0", 34)
    for before, phase in pairwise(phases):
        if phase.start is None:
            continue
        if before.start is None:
            what = (
                f"phase '{phase.name}' starts at an epoch, but '{before.name}' before it waits for "
                "the metric"
            )
            raise ConfigError("freeze", what, "give it patience as well", 37)
        if phase.start <= before.start:
            what = (
                f"phase '{phase.name}' starts at epoch {phase.start}, not after '{before.name}', "
                f"which starts at {before.start}"
            )
            raise ConfigError("freeze", what, "let the starts increase", 37)
    last = max(phases, key=lambda phase: phase.start or 0)
    if (start := last.start or 0) >= epochs:
        what = f"phase '{last.name}' would start at epoch {start}, counted from 0, of {epochs}"
        fix = f"type trainer.max_epochs={start + 1} or more, or start it earlier"
        raise ConfigError("freeze", what, fix, 38)
    return tuple(phases)
