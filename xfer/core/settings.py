"""What is read of groups whose options are values alone and whose specs lie higher: no custom part
replaces them."""

from __future__ import annotations

from typing import Protocol

from xfer.core.protocols import Graphs


class Features(Protocol):
    """Whether the output of a frozen prefix is kept."""

    @property
    def use(self) -> str:
        """``never``, ``auto`` or ``require``."""

    def views_of(self, augments: bool, epochs: int) -> int | None:
        """Augmented views an image; ``None`` for the evaluation view alone."""

    def store(self) -> Graphs | None:
        """Where else may be cached what takes long to compute; ``None`` for nowhere."""


class Gate(Protocol):
    """How strictly exported files are compared with the network."""

    @property
    def tolerance(self) -> float:
        """See :func:`xfer.export.parity.allowed`."""

    @property
    def images(self) -> int:
        """How many images are compared."""

    @property
    def max_drop(self) -> float:
        """Of accuracy, where numbers are approximate."""
