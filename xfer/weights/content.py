"""Weights on their way from a file into a network, and what became of each tensor there.

No torch at import time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from xfer.core.checksum import fingerprint
from xfer.core.types import InputSpec, Plain, StateDict

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
Fate = Literal[
    "loaded", "renamed", "adapted", "dropped head", "left out",
    "unexpected", "missing", "wrong shape", "initialised",
]  # fmt: skip
USED: tuple[Fate, ...] = ("loaded", "renamed", "adapted")


@dataclass(frozen=True)
class OptimizerBuffers:
    """An optimizer's memory by parameter name.

    ``algorithm`` is the optimizer's family (``sgd`` or ``adam``); ``buffers`` holds, a parameter,
    torch's own names: ``momentum_buffer``, or ``exp_avg``, ``exp_avg_sq`` and ``step``.
    """

    algorithm: str
    buffers: Mapping[str, Mapping[str, torch.Tensor]]


class OptimizerState(Protocol):
    """The optimizer state of a file, whichever way it names its parameters."""

    def named(self, parameters: Mapping[str, Shape]) -> OptimizerBuffers:
        """The state by the file's own names. ``parameters`` are the file's trainable tensors in
        the file's order. Raises WeightsError when the two do not fit each other."""
        ...


@dataclass(frozen=True)
class Content:
    """What a file of weights holds, by name.

    ``format`` says what kind of file it is, for people; ``state`` holds tensors on the CPU,
    ``renamed`` gives the file's name of each tensor that has another there;
    ``asides`` the entries that are no weights, with what they are; ``facts`` what else the
    reader learned (the nested entry that was taken, a verified checksum); ``input`` is the recipe
    of a file that xfer has exported.
    """

    format: str
    state: StateDict
    asides: Mapping[str, str] = field(default_factory=dict)
    optimizer: OptimizerState | None = None
    facts: Plain = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    input: InputSpec | None = None


@dataclass(frozen=True)
class Weights:
    """A state dict under the network's names, with its facts.

    ``origin`` and ``sha256`` say where it came from; ``classes`` and ``input`` what the file
    knows of its classes and input recipe, ``synonyms`` further names a class. ``renamed`` gives
    the file's name of each tensor that had another, ``asides`` the entries that are no weights
    or were dropped, with the reason. ``compat`` is what a network must be built with to compute
    the same function (see :mod:`xfer.models.mindspore_layers`), ``head`` the facts of its head
    where they are known. ``splits`` are the sha256 of the data that they were trained and chosen
    on, by split name, and ``task`` what the file says of several labels an image. ``match`` says
    whether names decide what goes where, or order and shape. ``allow_missing`` and
    ``min_coverage`` are what the user excused; ``pinned`` are source arguments that fetch these
    very weights again.
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
    task: Plain = field(default_factory=dict)
    match: Literal["name", "order"] = "name"
    allow_missing: tuple[str, ...] = ()
    min_coverage: float = 1.0
    resize_positions: bool = False
    pinned: Plain = field(default_factory=dict)
    facts: Plain = field(default_factory=dict)


@dataclass(frozen=True)
class TensorRow:
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

    rows: tuple[TensorRow, ...] = ()
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


def account(weights: Weights, match: Match, heads: Sequence[str]) -> Plain:
    """The facts of ``load_report.json``; JSON-like.

    ``rows`` has one entry a tensor of the file or of the network; ``coverage`` counts the
    backbone; ``fingerprint`` is the sha256 over the loaded backbone's names, types, shapes and
    bytes (:func:`xfer.core.checksum.fingerprint`). ``heads`` are the classifier's dotted paths.
    """
    prefixes = tuple(f"{head}." for head in heads)
    backbone = [(n, t) for n, t in match.state.items() if not n.startswith(prefixes)]
    return {
        "kind": weights.kind,
        "origin": weights.origin,
        "sha256": weights.sha256,
        "fingerprint": fingerprint(backbone) if backbone else None,
        "coverage": {"parameters": match.coverage, "tensors": match.tensor_coverage},
        "counts": dict(Counter(row.fate for row in match.rows)),
        **weights.facts,
        "prefix": match.prefix or weights.facts.get("prefix"),
        "rebuilt": dict(weights.compat),
        "rows": [
            {"name": row.name, "key": row.key, "fate": row.fate, "shape": list(row.shape)}
            | ({"note": row.note} if row.note else {})
            for row in match.rows
        ],
    }


def mark_continued(report: Plain, optimizer_state: OptimizerBuffers) -> None:
    """Mark the rows of ``report`` whose optimizer state the run continues."""
    keys = {row["key"] for row in report["rows"] if row["name"] in optimizer_state.buffers}
    for row in report["rows"]:
        # A MindSpore entry is named after its parameter, which follows the name of the state.
        if row.get("note") == "optimizer state" and row["key"].partition(".")[2] in keys:
            row["fate"] = "continued"
    report["counts"] = dict(Counter(row["fate"] for row in report["rows"]))
