"""Adapters beside frozen weights, and the head, are what trains (LoRA)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xfer.core.errors import ConfigError
from xfer.core.regex import matches
from xfer.core.types import Plain
from xfer.freeze.policies import Count, Multiple, Policy, closest_match, with_multiple
from xfer.freeze.rows import Layout, ParameterRow, Phase
from xfer.models.adapters import Matrix

_TARGETS = "freeze.targets"
_SOLVED_HEAD = 0.2  # of the adapters' multiple, for a head that begins solved


@dataclass(frozen=True, kw_only=True)
class Lora(Policy):
    """The head trains, and beside frozen weights adapters of ``rank`` (LoRA, Hu et al. 2021);
    everything else is frozen.

    Without ``targets`` those weights are all of linear layers, convolutions and attention outside
    the head whose adapter is smaller than itself.
    """

    rank: Count = 8
    """rows of A and columns of B; at most the smaller size of the weight"""
    alpha: Multiple = 16.0
    """an adapted weight is W + ``alpha`` / ``rank`` · B A"""
    targets: str | None = None
    """which weights: the name of a stage, or a regular expression that must match a whole
    parameter name; ``null`` is every one whose adapter is smaller than itself"""
    lr: Multiple = 0.1
    """multiple of the adapters; the head's is 1, or a fifth of theirs where it begins solved.
    With ``optim=adamw`` and a rate that suits it, 1 is usual"""

    def __post_init__(self) -> None:
        if self.targets is not None:
            matches(self.targets, "", _TARGETS)

    def adapters(self, layout: Layout) -> Plain:
        """See :meth:`Policy.adapters`. Raises ConfigError where the pattern or the rank does not
        suit the network."""
        chosen = self._chosen(layout)
        for matrix in chosen:
            if self.rank > min(matrix.rows, matrix.columns):
                most = min(min(m.rows, m.columns) for m in chosen)
                what = f"is {self.rank}, but '{matrix.name}' is {matrix.rows} x {matrix.columns}"
                fix = f"type freeze.rank={most} or less, or leave it out of {_TARGETS}"
                raise ConfigError("freeze.rank", what, fix, 73)
        names = [matrix.name for matrix in chosen]
        return {"rank": self.rank, "scale": self.alpha / self.rank, "weights": names}

    def after_solved(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """See :meth:`Policy.after_solved`: the head is where it should be, and follows slowly."""
        (phase,) = phases
        head = {row.name for row in phase.rows if row.head}
        return (replace(phase, rows=with_multiple(phase.rows, head, _SOLVED_HEAD * self.lr)),)

    def planned(self, layout: Layout, epochs: int) -> list[Phase]:
        """One phase."""
        heads = ((name, layout.in_head(name)) for name in layout.names)
        rows = tuple(ParameterRow(name, head, 1.0 if head else 0.0) for name, head in heads)
        rows = with_multiple(rows, set(layout.adapters), float(self.lr))
        return [Phase(rows, 0, None, "phase 1")]

    def _chosen(self, layout: Layout) -> list[Matrix]:
        if self.targets is None:
            chosen = [matrix for matrix in layout.matrices if matrix.smaller(self.rank)]
            if not chosen:
                what = f"is {self.rank}: every adapter would be as large as its weight"
                raise ConfigError("freeze.rank", what, "lower it, or name freeze.targets", 73)
            return chosen
        names = [matrix.name for matrix in layout.matrices]
        stage = dict(layout.stages).get(self.targets)
        inside = stage or [n for n in names if matches(self.targets, n, _TARGETS)]
        chosen = [matrix for matrix in layout.matrices if matrix.name in set(inside)]
        if not chosen:
            hint = closest_match(self.targets, [*(name for name, _ in layout.stages), *names])
            what = (
                f"'{self.targets}' matches no weight of a linear layer, a convolution or attention "
                "outside the head"
            )
            raise ConfigError(_TARGETS, what, hint, 32)
        return chosen
