"""What a policy decides: the multiples of every parameter, and when the next ones hold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from xfer.core.errors import ConfigError
from xfer.models.adapters import Matrix, factors


@dataclass(frozen=True)
class Row:
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

    rows: tuple[Row, ...]
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

        def grown(own: Sequence[str]) -> tuple[str, ...]:
            return (*own, *(f for name in own if name in weights for f in factors(name)))

        stages = tuple((stage, grown(own)) for stage, own in self.stages)
        found = tuple(name for weight in weights for name in factors(weight))
        return replace(self, names=tuple(names), stages=stages, adapters=found)

    def rows(self, head: float, stages: Sequence[float]) -> tuple[Row, ...]:
        """Rows with one multiple for the head and one a stage."""
        parts = zip(self.stages, stages, strict=True)
        found = {name: float(lr) for (_, names), lr in parts for name in names}
        return tuple(Row(n, self.in_head(n), found.get(n, float(head))) for n in self.names)


def ever(phases: Sequence[Phase]) -> dict[str, tuple[float, ...]]:
    """Every parameter's multiples over the phases; all 0 where it never trains."""
    columns = zip(*(phase.rows for phase in phases), strict=True)
    return {rows[0].name: tuple(row.lr for row in rows) for rows in columns}


def checked(phases: Sequence[Phase], epochs: int) -> tuple[Phase, ...]:
    """``phases``. Raises ConfigError where one trains nothing or can never begin."""
    for phase in phases:
        if all(row.frozen for row in phase.rows):
            told = f"leaves nothing to train in phase '{phase.name}'" if phases[1:] else ""
            what = told or "leaves nothing to train"
            raise ConfigError("freeze", what, "give the head or a stage an lr above 0", 34)
    for before, phase in pairwise(phases):
        _check_order(before, phase)
    last = max(phases, key=lambda phase: phase.start or 0)
    if (start := last.start or 0) >= epochs:
        raise ConfigError(
            "freeze",
            f"phase '{last.name}' would start at epoch {start}, counted from 0, of {epochs}",
            f"type trainer.max_epochs={start + 1} or more, or start it earlier",
            38,
        )
    return tuple(phases)


def _check_order(before: Phase, phase: Phase) -> None:
    if phase.start is None:
        return
    if before.start is None:
        raise ConfigError(
            "freeze",
            f"phase '{phase.name}' starts at an epoch, behind '{before.name}', which waits for "
            "the metric",
            "give it patience as well",
            37,
        )
    if phase.start <= before.start:
        raise ConfigError(
            "freeze",
            f"phase '{phase.name}' starts at epoch {phase.start}, not after '{before.name}', "
            f"which starts at {before.start}",
            "let the starts increase",
            37,
        )
