"""What all policies share: the order of the work, and what a BatchNorm that is frozen does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from xfer.core.errors import ConfigError
from xfer.core.types import Plain
from xfer.freeze.rows import Layout, Phase, checked

BatchNorm = Literal["eval", "adapt", "train"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A way to choose what trains.

    ``batch_norm`` says what a BatchNorm layer inside the frozen part does. ``eval``: nothing, it
    is in inference mode. ``adapt``: its scale and shift stay, its running statistics follow the
    data. ``train``: its scale and shift train as well, at multiple 1, and its statistics move.
    """

    batch_norm: BatchNorm = "eval"

    def phases(self, layout: Layout, epochs: int) -> tuple[Phase, ...]:
        """The phases of a run of ``epochs`` epochs on a network. Raises ConfigError where a key
        does not suit the network or the run."""
        if self.batch_norm != "eval" and not layout.batch_norms:
            raise ConfigError(
                "freeze.batch_norm",
                f"'{self.batch_norm}' has nothing to act on: the network has no BatchNorm",
                "type freeze.batch_norm=eval",
                31,
            )
        phases = checked(self.planned(layout, epochs), epochs)
        if self.batch_norm != "train":
            return phases
        return tuple(_with_trained(phase, set(layout.batch_norms)) for phase in phases)

    def after_solved(self, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        """Those of ``phases`` that are left to train where the head begins solved: all."""
        return phases

    def adapters(self, layout: Layout) -> Plain:
        """What :func:`xfer.models.adapters.put` gives the network before the phases are asked for:
        nothing."""
        return {}

    def planned(self, layout: Layout, epochs: int) -> Sequence[Phase]:
        """The phases as the policy itself wants them."""
        raise NotImplementedError


def _with_trained(phase: Phase, names: set[str]) -> Phase:
    rows = (replace(r, lr=1.0) if r.frozen and r.name in names else r for r in phase.rows)
    return replace(phase, rows=tuple(rows))
