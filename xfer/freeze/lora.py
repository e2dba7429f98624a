"""Low-rank adapters beside frozen weights (LoRA, Hu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge, Gt

from xfer.core.errors import ConfigError, closest
from xfer.core.regex import matches
from xfer.core.types import Plain
from xfer.freeze.policy import Policy
from xfer.freeze.rows import Layout, Phase, Row
from xfer.models.adapters import Matrix

_TARGETS = "freeze.targets"
_HEAD = 0.2  # of the adapters' multiple, for a head that begins solved


@dataclass(frozen=True, kw_only=True)
class Lora(Policy):
    """The head trains, and beside frozen weights adapters of ``rank``; everything else is frozen.

    An adapted weight is W + ``alpha`` / ``rank`` * B A. ``targets`` is the name of a stage or a
    regular expression that must match a whole parameter name; ``None`` takes every weight of a
    linear layer, a convolution or attention outside the head whose adapter is smaller than
    itself. ``lr``: multiple of the adapters; the head's is 1, or a fifth of theirs where it starts
    solved.
    """

    rank: Annotated[int, Ge(1)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    targets: str | None = None
    lr: Annotated[float, Gt(0)] = 0.1

    def __post_init__(self) -> None:
        if self.targets is not None:
            matches(self.targets, "", _TARGETS)

    def adapters(self, layout: Layout) -> Plain:
        """See :meth:`Policy.adapters`. Raises ConfigError where the pattern or the rank does not
        suit the network."""
        found = self._chosen(layout)
        for matrix in found:
            if self.rank > min(matrix.rows, matrix.columns):
                most = min(min(m.rows, m.columns) for m in found)
                what = f"is {self.rank}, but '{matrix.name}' is {matrix.rows} x {matrix.columns}"
                fix = f"type freeze.rank={most} or less, or leave it out of {_TARGETS}"
                raise ConfigError("freeze.rank", what, fix, 73)
        names = [matrix.name for matrix in found]
        return {"rank": self.rank, "scale": self.alpha / self.rank, "weights": names}

    def after_solved(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """See :meth:`Policy.after_solved`: the head is where it should be, and follows slowly."""
        (phase,) = phases
        rows = (replace(row, lr=_HEAD * self.lr) if row.head else row for row in phase.rows)
        return (replace(phase, rows=tuple(rows)),)

    def planned(self, layout: Layout, epochs: int) -> list[Phase]:
        """One phase."""
        multiples = dict.fromkeys(layout.adapters, float(self.lr))
        rows = (
            Row(name, head, 1.0 if head else multiples.get(name, 0.0))
            for name, head in ((name, layout.in_head(name)) for name in layout.names)
        )
        return [Phase(tuple(rows), 0, None, "phase 1")]

    def _chosen(self, layout: Layout) -> list[Matrix]:
        if self.targets is None:
            found = [matrix for matrix in layout.matrices if matrix.smaller(self.rank)]
            if not found:
                what = f"is {self.rank}: every adapter would be as large as its weight"
                raise ConfigError("freeze.rank", what, "lower it, or name freeze.targets", 73)
            return found
        inside = dict(layout.stages).get(self.targets)
        found = [
            matrix
            for matrix in layout.matrices
            if (matrix.name in inside if inside else matches(self.targets, matrix.name, _TARGETS))
        ]
        if not found:
            names = [name for name, _ in layout.stages] + [m.name for m in layout.matrices]
            hint = closest(self.targets.replace("\\", "").rstrip(".*"), names)
            what = (
                f"'{self.targets}' matches no weight of a linear layer, a convolution or attention "
                "outside the head"
            )
            raise ConfigError(_TARGETS, what, hint, 32)
        return found
