"""What a match of weights to a network comes to: one row a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from xfer.core.types import StateDict
    from xfer.weights.content import Shape

Fate = Literal[
    "loaded", "renamed", "adapted", "dropped head", "left out",
    "unexpected", "missing", "wrong shape", "initialised",
]  # fmt: skip
USED = ("loaded", "renamed", "adapted")


@dataclass(frozen=True)
class Row:
    """What became of one tensor. ``name`` is the network's name, ``key`` the file's; either may
    be absent. ``shape`` is the file's, or the network's where the file has none."""

    name: str | None
    key: str | None
    fate: Fate
    shape: Shape = ()
    note: str = ""


@dataclass(frozen=True)
class Match:
    """One row a tensor of the file or of the network, and the ``state`` that goes into it.

    ``coverage`` is the share of the backbone that was loaded, parameters and buffers counted in
    numbers; ``tensor_coverage`` the same counted in tensors; ``prefix`` what stood before the
    network's names in the file.
    """

    rows: tuple[Row, ...] = ()
    state: StateDict = field(default_factory=dict)
    coverage: float = 0.0
    tensor_coverage: float = 0.0
    prefix: str = ""

    def of(self, *fates: str) -> tuple[str, ...]:
        """The network's names, else the file's, of the rows with one of ``fates``."""
        return tuple(row.name or row.key or "" for row in self.rows if row.fate in fates)

    @property
    def missing(self) -> tuple[str, ...]:
        """Network tensors that keep their initial values."""
        fates = ("missing", "wrong shape", "initialised", "dropped head")
        return tuple(row.name for row in self.rows if row.name and row.fate in fates)
