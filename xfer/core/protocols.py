"""What the parts of a run must be able to do: one protocol a config group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from xfer.core.types import Card, Network, Plain

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    import torch

    Array = npt.NDArray[Any]
    StateDict = Mapping[str, torch.Tensor]


Runner = Callable[["Array"], "Array"]
"""Runs one exported file: float32 (n, 3, h, w) in, float32 logits (n, classes) out. A file that
takes pictures: uint8 (n, 3, any, any) in, float32 probabilities (n, classes) out."""


class Writer(Protocol):
    """One export format: writes a file, and opens it again in its own runtime."""

    @property
    def file(self) -> str:
        """The file's final name below ``export/``; its suffix names the format."""
        ...

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Write ``net`` to ``path`` and return facts for ``parity.json``.

        ``images`` are real inputs, float32 (n, 3, h, w).
        """
        ...

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """Re-read ``path`` and return a function that runs it.

        Where a file holds tensors only, and no library builds their network, they are loaded
        into a copy of ``net``.
        """
        ...


@runtime_checkable
class ChecksCard(Protocol):
    """A writer that knows from the card alone what it cannot write."""

    def check(self, card: Card) -> None:
        """Raise ExportError for a network that no file of this format can hold."""
        ...


@runtime_checkable
class Undecided(Protocol):
    """An option that leaves its group to the plan."""

    def becomes(self, choice: str, epochs: int | None) -> Any:
        """The option that the plan chose by its name; ``epochs`` are known where steps train."""
        ...


class Backbone(Protocol):
    """An architecture. ``library`` says whose hub its pretrained weights come from."""

    @property
    def library(self) -> str:
        """``timm``, ``torchvision`` or a name of one's own."""
        ...

    @property
    def name(self) -> str:
        """The architecture's name in its library."""
        ...

    def build(self, classes: int | None = None) -> Network:
        """The network with random weights; ``classes`` outputs, or the library's default."""
        ...


class Head(Protocol):
    """What replaces the classifier layer."""

    def build(self, old: torch.nn.Module, classes: int) -> torch.nn.Module:
        """A layer that takes what ``old`` took and gives ``classes`` logits."""
        ...
