"""What the parts of a run must be able to do, for each group that takes custom parts.

The others are in :mod:`xfer.core.settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from xfer.core.types import Array, Card, Dataset, InputSpec, Network, Plain, Samples

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


Runner = Callable[[Array], Array]
"""Runs one exported file: float32 (n, 3, h, w) in, float32 logits (n, classes) out. A file that
takes pictures: uint8 (n, 3, any, any) in, float32 probabilities (n, classes) out."""


class Writer(Protocol):
    """One export format: writes a file, and opens it again in its own runtime."""

    @property
    def file(self) -> str:
        """The file's final name below ``export/``; its suffix names the format."""

    def write(self, net: torch.nn.Module, images: Array, card: Card, path: Path) -> Plain:
        """Write ``net`` to ``path`` and return facts for ``parity.json``.

        ``images`` are real inputs, float32 (n, 3, h, w).
        """

    def open(self, path: Path, net: torch.nn.Module) -> Runner:
        """Re-read ``path`` and return a function that runs it.

        Where a file holds tensors only, and no library builds their network, they are loaded
        into a copy of ``net``.
        """


@runtime_checkable
class WritesFolder(Protocol):
    """A writer of several files: ``file`` names a folder, ``write`` is given one that is empty, and
    ``open`` the one that it has filled."""

    @property
    def main(self) -> str:
        """The file in it that a runtime opens."""


@runtime_checkable
class Describes(Protocol):
    """A writer whose folder says what is known of the run, beside the network."""

    def describe(self, path: Path, card: Card, figures: Plain) -> None:
        """Add to the folder ``path``, once its answers are those of the network. ``figures`` are
        those of :class:`xfer.export.parity.Evidence`."""


@runtime_checkable
class ChecksCard(Protocol):
    """A writer that knows from the card alone what it cannot write."""

    def check(self, card: Card) -> None:
        """Raise ExportError for a network that no file of this format can hold."""


@runtime_checkable
class Certifies(Protocol):
    """A writer whose files also answer with prediction sets and p-values, where the card that it
    is given has a certificate."""

    def open_certified(self, path: Path) -> Callable[[Array], Sequence[Array]]:
        """Re-read ``path`` and return a function from its input to answers (n, classes), sets bool
        (n, classes) and, where the certificate has them, p-values (n,)."""


class Graphs(Protocol):
    """Bytes that were computed once and are read again by later runs, by their key."""

    def content(self, key: Plain, make: Callable[[], bytes]) -> tuple[bytes, bool]:
        """The bytes of ``key``, which ``make`` makes where there are none, and whether an earlier
        call had made them."""

    def known(self, key: Plain) -> bytes | None:
        """The bytes of ``key``, or ``None``."""

    def forget(self, key: Plain, reason: str) -> None:
        """Remove what is stored of ``key``, which is unsound for ``reason``; without a word where
        there is no reason."""


@runtime_checkable
class Traces(Protocol):
    """A writer that traces the network, which takes long, and can do with the graph of an earlier
    run."""

    def write_cached(
        self, net: torch.nn.Module, images: Array, card: Card, path: Path, graphs: Any
    ) -> Plain:
        """As :meth:`Writer.write`; ``graphs`` are a :class:`xfer.export.onnx_graph.GraphCache`."""


@runtime_checkable
class GivesLabels(Protocol):
    """A writer whose files also answer with the labels of each image, where the card that it is
    given has a task of several."""

    def open_labelled(self, path: Path) -> Callable[[Array], Sequence[Array]]:
        """Re-read ``path`` and return a function from its input to probabilities float32
        (n, classes) and labels bool (n, classes)."""


@runtime_checkable
class Undecided(Protocol):
    """An option that leaves its group to the plan."""

    def becomes(self, choice: str, epochs: int | None) -> Any:
        """The option that the plan chose by its name; ``epochs`` are known where steps train."""


class Backbone(Protocol):
    """An architecture. ``library`` says whose hub its pretrained weights come from."""

    @property
    def library(self) -> str:
        """``timm``, ``torchvision`` or the name of a custom part's library."""

    @property
    def name(self) -> str:
        """The architecture's name in its library."""

    def build(self, classes: int | None = None) -> Network:
        """The network with random weights; ``classes`` outputs, or the library's default."""


class Head(Protocol):
    """What replaces the classifier layer."""

    def build(self, old: torch.nn.Module, classes: int) -> torch.nn.Module:
        """A layer that takes what ``old`` took and gives ``classes`` logits."""


class Data(Protocol):
    """The images of a run, and how they are loaded."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def batch_size(self) -> int:
        """Training images a step."""

    @property
    def eval_batch_size(self) -> int:
        """Images that are evaluated together."""

    @property
    def workers(self) -> int:
        """Processes that decode images."""

    @property
    def decoded_gb(self) -> float | Literal["auto"]:
        """Memory for decoded images; ``auto`` until the plan has decided it."""

    @property
    def sampler(self) -> str:
        """How often an epoch trains on an image."""

    def dataset(self, training: bool) -> Dataset:
        """The classes and splits, every file checked; ``train`` only for ``training``."""

    def balance(self, labels: npt.NDArray[np.int64]) -> list[int] | npt.NDArray[np.int64] | None:
        """The training ``labels``, (n,) or (n, classes), to balance by; ``None`` where every image
        comes once."""


@runtime_checkable
class ReadsLabels(Protocol):
    """Images that may have several labels, or none."""

    def labelled(self, training: bool, known: tuple[str, ...]) -> Dataset:
        """As :meth:`Data.dataset`, with labels int64 (n, classes) of 1, 0 and -1 for unknown; the
        classes are ``known`` where a network has learned them."""


class Augment(Protocol):
    """What training images go through."""

    @property
    def random(self) -> bool:
        """Whether an image looks different each time."""

    @property
    def seed(self) -> int:
        """Of its random numbers, beside that of the run."""

    def transform(self, spec: InputSpec) -> Callable[[Any], npt.NDArray[np.float32]]:
        """A function of an RGB image that gives float32 (3, h, w)."""

    def mix(self, classes: int) -> Callable[[Any, Any], tuple[Any, Any]] | None:
        """A function of a batch and its labels that mixes both; ``None`` where none are mixed."""


class Source(Protocol):
    """Where initial weights come from."""

    def load(self, backbone: Backbone) -> Any:
        """The :class:`xfer.weights.content.Weights` for ``backbone``; raises WeightsError."""


class Freeze(Protocol):
    """What trains, phase by phase."""

    @property
    def batch_norm(self) -> Literal["eval", "adapt", "train"]:
        """What a BatchNorm layer in the frozen part does."""

    def phases(self, layout: Any, epochs: int) -> tuple[Any, ...]:
        """The :class:`xfer.freeze.Phase` of a run of ``epochs`` on a network of ``layout``."""

    def after_solved(self, phases: Any) -> tuple[Any, ...]:
        """Those of ``phases`` that are left to train where the head begins solved."""

    def adapters(self, layout: Any) -> Plain:
        """What low-rank adapters the network is given; nothing for none."""


class Loss(Protocol):
    """What training minimises."""

    def weights(self, counts: Sequence[int]) -> list[float] | None:
        """One weight a class from the training images ``counts`` a class."""

    def guessing(self, counts: Sequence[int]) -> float:
        """The loss of equal probabilities for every class."""

    def build(self, counts: Sequence[int]) -> torch.nn.Module:
        """Takes logits (n, classes) and labels (n,) or probabilities (n, classes)."""


@runtime_checkable
class HasTeacher(Protocol):
    """A loss in which the answers of another network are a part of every target."""

    @property
    def teacher(self) -> str:
        """The run or the ONNX file whose answers they are."""

    @property
    def temperature(self) -> float:
        """What the logits of both networks are divided by in that part."""

    @property
    def weight(self) -> float:
        """The share of that part in the loss."""


@runtime_checkable
class LossOfLabels(Protocol):
    """What training minimises where an image has several labels, or none. ``has`` and ``lacks``
    are the training images a class that are known to have the label, and not to."""

    def positive_weights(self, has: Sequence[int], lacks: Sequence[int]) -> list[float]:
        """What an image that has the label weighs beside one that has not, a class."""

    def guessing_labels(self, has: Sequence[int], lacks: Sequence[int]) -> float:
        """The loss of the probability 0.5 for every label."""

    def of_labels(self, has: Sequence[int], lacks: Sequence[int]) -> torch.nn.Module:
        """Takes logits (n, classes) and labels (n, classes) of 1, 0 and -1 for unknown."""


class LabelTask(Protocol):
    """What an image's labels are, and whatever follows from that; see
    :mod:`xfer.evaluation.task`."""

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, or none."""

    @property
    def chooses(self) -> bool:
        """Whether a fit by steps chooses something on val, beside the best epoch."""

    def read(self, data: Data, training: bool, known: tuple[str, ...] = ()) -> Dataset:
        """The classes and splits of ``data``."""

    def rows(self, parts: Mapping[str, CustomMetric]) -> tuple[Any, ...]:
        """Every :class:`xfer.evaluation.metrics.Metric`, those of the user last."""

    def values(
        self, logits: Any, labels: Any, parts: Mapping[str, CustomMetric]
    ) -> dict[str, float]:
        """Every metric by name."""

    def counts(self, labels: Array, classes: int) -> list[int]:
        """Images a class."""

    def more_counts(self, labels: Array) -> Plain:
        """What ``plan.json`` says of a split beside the images a class."""

    def loss(self, spec: Loss, labels: Array, classes: int) -> torch.nn.Module:
        """What training on images with these ``labels`` minimises."""

    def guessing(self, spec: Loss, labels: Array, classes: int) -> tuple[int, float]:
        """Of how many answers guessing chooses, and the training loss of that."""

    def title(self, label: Any, classes: Sequence[str]) -> str:
        """The label of one image in words."""

    def card(self, logits: Any, labels: Any, chosen_on: str) -> Plain:
        """What a card says of the task, as it follows from answers."""

    def pooled(self, samples: Samples, logits: Any, classes: tuple[str, ...]) -> Any:
        """The answers of a cross-validation, float32 (repeats, n, classes), as they are scored."""


class Optim(Protocol):
    """An optimizer, or the exact solution in its place."""

    @property
    def solves(self) -> bool:
        """Whether the head is solved and nothing is trained step by step."""

    @property
    def lr(self) -> float | Literal["auto"]:
        """The base learning rate; ``auto`` until the plan has decided it."""

    @property
    def rate(self) -> float:
        """The base learning rate, once the plan has decided it."""

    @property
    def rate_scale(self) -> float:
        """Of the rate that the plan decides, which is that of an adaptive optimizer."""

    @property
    def weight_decay(self) -> float:
        """The share of a weight that a step takes away, in units of the rate."""

    @property
    def decay(self) -> str:
        """Which tensors ``weight_decay`` is for."""

    def groups(
        self, net: torch.nn.Module, multiples: Mapping[str, tuple[float, ...]]
    ) -> list[dict[str, Any]]:
        """Optimizer groups of all that ever trains, by the ``multiples`` of each parameter."""

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer over ``groups``."""


class Schedule(Protocol):
    """The learning rate over time."""

    def factor(self, step: int, steps_per_epoch: int, total: int) -> float:
        """The factor of optimizer step ``step`` (from 0) of ``total``."""


class CustomMetric(Protocol):
    """A score of a whole split, named in ``trainer.metrics``."""

    @property
    def better(self) -> Literal["max", "min"]:
        """The end at which it is best."""

    def compute(self, logits: Array, labels: Array) -> float:
        """The score of float64 logits (n, classes) against int64 labels (n,), with several labels
        an image (n, classes) of 1, 0 and -1 for unknown; NaN where it is not defined. Both are
        read-only."""


class Logger(Protocol):
    """Where metrics go besides ``metrics.csv``."""

    def build(self, folder: Path, experiment: str) -> Any:
        """A logger of Lightning, or ``None``."""


@runtime_checkable
class TakesFiles(Protocol):
    """A logger that takes files besides numbers."""

    def attach(self, logger: Any, files: Mapping[str, Path], step: int) -> None:
        """Hand ``files`` of a run, by their names in its folder, to the ``logger`` that was built
        for it; ``step`` is that of the best epoch. It is the last that the logger is asked for."""
