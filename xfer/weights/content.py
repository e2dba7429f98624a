"""Weights on their way from a file into a network. No torch at import time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from xfer.core.types import InputSpec, Plain

if TYPE_CHECKING:
    import torch

    from xfer.core.protocols import Backbone
    from xfer.core.types import StateDict

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Momenta:
    """An optimizer's memory by parameter name.

    ``algorithm`` is the optimizer's family (``sgd`` or ``adam``); ``buffers`` holds, a parameter,
    torch's own names: ``momentum_buffer``, or ``exp_avg``, ``exp_avg_sq`` and ``step``.
    """

    algorithm: str
    buffers: Mapping[str, Mapping[str, torch.Tensor]]


class OptimizerState(Protocol):
    """The optimizer state of a file, whichever way it names its parameters."""

    def named(self, parameters: Mapping[str, Shape]) -> Momenta:
        """The state by the file's own names. ``parameters`` are the file's trainable tensors in
        the file's order. Raises WeightsError when the two do not fit each other."""
        ...


@dataclass(frozen=True)
class Content:
    """What a file of weights holds, under the file's own names.

    ``format`` says what kind of file it is, for people; ``state`` holds tensors on the CPU;
    ``asides`` the entries that are no weights, with what they are; ``facts`` what else the
    reader learned (the nested entry that was taken, a verified checksum).
    """

    format: str
    state: StateDict
    asides: Mapping[str, str] = field(default_factory=dict)
    optimizer: OptimizerState | None = None
    facts: Plain = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """A state dict under the network's names, with its facts.

    ``origin`` and ``sha256`` say where it came from; ``classes`` and ``input`` what the file
    knows of its classes and input recipe, ``synonyms`` further names a class. ``renamed`` gives
    the file's name of each tensor that had another, ``asides`` the entries that are no weights
    or were dropped, with the reason. ``compat`` is what a network must be built with to compute
    the same function (see :mod:`xfer.models.mindspore_layers`), ``head`` the facts of its head
    where they are known. ``splits`` are the sha256 of the data that they were trained and chosen
    on, by split name, where the file says so. ``match`` says whether names decide what goes where,
    or order and shape. ``allow_missing`` and ``min_coverage`` are what the user excused; ``pinned``
    are source arguments that fetch these very weights again.
    """

    kind: str
    state: StateDict | None
    origin: str | None = None
    sha256: str | None = None
    classes: tuple[str, ...] | None = None
    input: InputSpec | None = None
    synonyms: tuple[tuple[str, ...], ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    asides: Mapping[str, str] = field(default_factory=dict)
    optimizer: OptimizerState | None = None
    compat: Plain = field(default_factory=dict)
    head: Plain | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    match: Literal["name", "order"] = "name"
    allow_missing: tuple[str, ...] = ()
    min_coverage: float = 1.0
    resize_positions: bool = False
    pinned: Plain = field(default_factory=dict)
    facts: Plain = field(default_factory=dict)


class Source(Protocol):
    """Where initial weights come from."""

    def load(self, backbone: Backbone) -> Weights:
        """Read the weights for ``backbone``; raises WeightsError when they cannot be had."""
        ...
