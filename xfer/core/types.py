"""Frozen values that the packages of xfer hand to each other. No torch at import time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias
from unicodedata import normalize

from xfer.core.errors import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from PIL.Image import Image

    from xfer.core.certificate import Certificate

# Texts, so that whoever names them needs neither numpy nor torch.
Array: TypeAlias = "npt.NDArray[Any]"
StateDict: TypeAlias = "Mapping[str, torch.Tensor]"
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Tta = Literal["none", "flip", "five_crop", "ten_crop"]
"""The views of an image over which answers are averaged; see :mod:`xfer.data.tta`."""
Calibrating = Literal["auto", "none", "temperature", "vector"]
"""How logits are scaled after a fit; see :mod:`xfer.evaluation.calibration`."""
PixelRange = tuple[float, float]
"""The numbers that become black and white, in image files of more than 8 bits."""
Plain = dict[str, Any]
"""JSON-like facts: str, int, float, bool, None, list and dict only."""
BLOCK = 256
"""Images of which many answers are worked on at a time."""


def class_name(text: str) -> str:
    """The name of a class in the one form of Unicode that names are compared in (NFC): a Mac and
    Linux spell an accent in two ways."""
    return normalize("NFC", text)


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes the network's input; one for validation, prediction, export, report.

    ``size`` is (height, width) in pixels; ``resize`` the short side before the centre crop, or
    ``None`` to squash straight to ``size``; ``mean`` and ``std`` are per RGB channel on 0..1.
    ``range`` are the numbers that become 0 and 255 in files of more than 8 bits, where the
    network was trained on such; ``None`` is the full range of 16 bits.
    """

    size: tuple[int, int]
    resize: int | None
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    range: PixelRange | None = None

    def scaled(self, size: int) -> InputSpec:
        """The same recipe at ``size`` x ``size`` pixels, the share of the crop kept."""
        resize = None if self.resize is None else round(self.resize * size / min(self.size))
        return replace(self, size=(size, size), resize=resize)

    def to_plain(self) -> Plain:
        """As JSON-like facts, for plan, checkpoint and ``preprocess.json``."""
        facts = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.range is None:
            del facts["range"]
        return facts

    @classmethod
    def from_plain(cls, facts: Plain) -> InputSpec:
        """The reverse of :meth:`to_plain`."""
        values: Plain = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
        return cls(**values)


class Images(Protocol):
    """A sequence of RGB pictures, decoded when asked for."""

    def __getitem__(self, index: int, /) -> Image: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Samples:
    """One split: ``names`` (unique, the path below the root), ``labels`` int64 of shape (n,), or
    with several labels an image (n, classes) of 1, 0 and -1 for unknown, the ``images`` themselves
    and ``sha256`` over names, labels and file contents.

    In cross-validation ``folds``, int64 (repeats, n), says which fold an image is in; ``groups``
    are the names of what must be on one side, an entry an image, empty where nothing is grouped.
    """

    names: Sequence[str]
    labels: npt.NDArray[np.int64]
    images: Images
    sha256: str
    folds: npt.NDArray[np.int64] | None = None
    groups: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Dataset:
    """Classes in their fixed order, the splits by name, and remarks for the plan; ``leaks`` are
    (held-out image, training image, kind) that are the same or look alike; ``range`` is that of
    the pixels, where there are files of more than 8 bits."""

    classes: tuple[str, ...]
    splits: Mapping[str, Samples]
    remarks: tuple[str, ...] = ()
    leaks: Sequence[tuple[str, ...]] = ()
    range: PixelRange | None = None


@dataclass(frozen=True)
class Card:
    """What travels with trained weights, so that a file explains itself.

    ``backbone`` and ``head`` are spec facts (``_target_`` and plain arguments); ``splits`` the
    sha256 of the data it was trained and chosen on, by split name; ``compat`` what the layers
    need to compute as the source's own library does (see :mod:`xfer.models.mindspore_layers`).
    ``adapters`` are the low-rank adapters beside the weights of a fit at work (see
    :mod:`xfer.models.adapters`), ``calibration`` what the weights of the last layer have been
    scaled by (see :mod:`xfer.evaluation.calibration`), ``certificate`` what the weights promise of
    their answers, where that was asked for. ``task`` is empty where an image has one label; with
    several it has the ``kind`` multilabel, the ``thresholds`` a class from which probabilities on
    an image is said to have the label, and what they were ``chosen_on``: ``cv``, ``val`` or
    ``given``.
    """

    backbone: Plain
    head: Plain
    classes: tuple[str, ...]
    input: InputSpec
    source: Plain = field(default_factory=dict)
    experiment: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    compat: Plain = field(default_factory=dict)
    adapters: Plain = field(default_factory=dict)
    calibration: Plain = field(default_factory=dict)
    certificate: Certificate | None = field(default=None, compare=False)
    task: Plain = field(default_factory=dict)

    def merged(self) -> Card:
        """The card of the same weights, with their adapters added to them."""
        return replace(self, adapters={})

    def to_plain(self) -> Plain:
        """As JSON-like facts."""
        facts = {k: dict(v) if isinstance(v, Mapping) else v for k, v in vars(self).items()}
        facts |= {"classes": list(self.classes), "input": self.input.to_plain()}
        del facts["certificate"]
        for key in ("adapters", "calibration", "task"):
            if not facts[key]:
                del facts[key]
        if self.certificate is not None:
            facts["certificate"] = self.certificate.to_plain()
        return facts

    @classmethod
    def from_plain(cls, facts: Plain) -> Card:
        """The reverse of :meth:`to_plain`, but for the certificate, which is arrays as well."""
        parts = {
            "classes": tuple(facts["classes"]),
            "input": InputSpec.from_plain(facts["input"]),
            "certificate": None,
        }
        return cls(**{**facts, **parts})


@dataclass(frozen=True)
class Predictions:
    """A network's answers on one split, in the order of its files.

    ``logits`` float32 (n, classes); ``labels`` int64 (n,) or ``None`` when unknown. Where several
    ``views`` of each image were answered, the logits are the logarithms of mean probabilities.
    With a certificate, ``sets`` bool (n, classes) are prediction sets and ``p_unlike`` float64 (n,)
    the p-values of being unlike all training images. With several labels an image ``labels`` are
    int64 (n, classes) of 1, 0 and -1 for unknown, and ``task`` is that of the network's card;
    ``saying`` bool (n, classes) is what an image is said to have where that is no matter of one
    threshold a class: in a cross-validation each fold has its own.
    """

    names: Sequence[str]
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64] | None
    classes: tuple[str, ...]
    views: int = 1
    sets: npt.NDArray[np.bool_] | None = None
    p_unlike: npt.NDArray[np.float64] | None = None
    task: Plain = field(default_factory=dict)
    saying: npt.NDArray[np.bool_] | None = None

    @property
    def thresholds(self) -> npt.NDArray[np.float64] | None:
        """The probability a class from which on an image is said to have the label, (classes,);
        ``None`` where an image has one label, or where each fold has its own."""
        import numpy as np

        cuts = self.task.get("thresholds")
        return None if cuts is None else np.array(cuts, np.float64)

    @property
    def said(self) -> npt.NDArray[np.bool_]:
        """With several labels an image: which it is said to have, (n, classes)."""
        import numpy as np

        if self.saying is not None:
            return self.saying
        return np.asarray(self.probabilities >= np.asarray(self.thresholds))

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Softmax of the logits in float64, shape (n, classes); with several labels an image the
        sigmoid of each."""
        import numpy as np

        from xfer.core.probabilities import sigmoid, softmax

        z = self.logits.astype(np.float64)
        return sigmoid(z) if self.task else softmax(z)

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """The largest probability of each image, shape (n,), without a copy of all of them."""
        import numpy as np

        return np.concatenate([np.empty(0), *(b.probabilities.max(axis=1) for b in self.blocks())])

    def blocks(self) -> Iterator[Predictions]:
        """The same answers, :data:`BLOCK` images at a time."""
        for start in range(0, len(self.names), BLOCK):
            yield self.at(range(start, min(start + BLOCK, len(self.names))))

    def at(self, positions: Sequence[int]) -> Predictions:
        """The same answers to the images at ``positions`` alone, in that order."""
        part = list(positions)
        labels = None if self.labels is None else self.labels[part]
        sets = None if self.sets is None else self.sets[part]
        unlike = None if self.p_unlike is None else self.p_unlike[part]
        saying = None if self.saying is None else self.saying[part]
        names = [self.names[i] for i in part]
        block = replace(self, names=names, logits=self.logits[part], labels=labels)
        return replace(block, sets=sets, p_unlike=unlike, saying=saying)


@dataclass(frozen=True)
class Score:
    """The scores of one split. ``acc_ci95`` is Wilson's interval of the accuracy; ``confusion``
    counts rows = true class, columns = predicted class, and is ``None`` above 100 classes;
    ``auroc`` is ``None`` above 1,000; ``per_class`` holds, a class, ``n``, ``precision``,
    ``recall`` and ``f1``; ``others`` every metric without a field, by name."""

    n: int
    acc: float
    acc_ci95: tuple[float, float]
    loss: float
    macro_f1: float
    auroc: float | None
    ece: float
    top5: float | None
    confusion: list[list[int]] | None
    per_class: dict[str, dict[str, float]]
    used_for_selection: bool
    others: dict[str, float | None] = field(default_factory=dict)

    title: ClassVar[str] = "accuracy"
    """What :meth:`in_words` is of."""

    def in_words(self) -> str:
        """The accuracy with what it is worth: ``0.9218 (165 of 179; 95 % interval ...)``."""
        low, high, right = *self.acc_ci95, round(self.acc * self.n)
        reach = f"95 % interval {low:.4f} to {high:.4f}{no_better(self.acc, self.per_class)}"
        return f"{self.acc:.4f} ({right} of {self.n}; {reach})"

    def to_plain(self) -> Plain:
        """As JSON-like facts, as ``result.json`` holds them."""
        facts = asdict(self) | {"acc_ci95": list(self.acc_ci95)}
        others: Plain = facts.pop("others")
        return facts | others


def no_better(acc: float, per_class: Mapping[str, Mapping[str, float]]) -> str:
    """What is to be said of an accuracy that the name of the largest class for every image would
    have as well; nothing of a larger one, and where the images are of one class. ``per_class`` has
    the number of images ``n`` of each."""
    counts = {name: row["n"] for name, row in per_class.items()}
    most, n = max(counts.values(), default=0), sum(counts.values())
    if acc * n >= most + 0.5 or most == n:
        return ""
    largest = printable(max(counts, key=lambda name: counts[name]))
    return f"; no better than '{largest}' for every image"


@dataclass(frozen=True)
class LabelScore:
    """The scores of one split with several labels an image, of the known ones alone. ``map`` is the
    mean over the classes of the average precision, ``acc`` the share of images with every known
    label right (``acc_ci95`` is Wilson's interval), ``hamming`` the share of wrong labels, ``loss``
    the mean binary cross-entropy of ``labels_known`` labels. ``ece`` is the mean over the classes
    of the calibration error, ``hit1`` and ``hit5`` (above 5 classes) the share of the images with a
    label of which one is among their 1 or 5 most probable. ``thresholds`` by class, chosen on
    ``cv`` (training images, each answered by a fit that had not seen it), ``val`` or ``given``;
    ``per_class`` holds, a class, ``n``, ``known``, ``threshold``, ``ap``, ``precision``,
    ``recall``, ``f1`` and ``ece``; ``others`` the user's metrics, by name. ``None``
    is what is not defined on these labels."""

    n: int
    acc: float
    acc_ci95: tuple[float, float]
    loss: float
    map: float | None
    macro_f1: float | None
    micro_f1: float | None
    hamming: float | None
    ece: float | None
    hit1: float | None
    hit5: float | None
    labels_known: int
    thresholds: dict[str, float]
    thresholds_chosen_on: str
    per_class: dict[str, dict[str, float | None]]
    used_for_selection: bool
    others: dict[str, float | None] = field(default_factory=dict)

    title: ClassVar[str] = "mAP"
    """What :meth:`in_words` begins with."""

    def in_words(self) -> str:
        """The mean average precision, F1 and exact matches, as far as they are defined."""
        low, high, right = *self.acc_ci95, round(self.acc * self.n)
        first = "undefined" if self.map is None else f"{self.map:.4f}"
        f1 = "" if self.macro_f1 is None else f"macro F1 {self.macro_f1:.4f}, "
        match = f"every label right on {right} of {self.n}"
        return f"{first} ({f1}{match}; 95 % interval {low:.4f} to {high:.4f})"

    def to_plain(self) -> Plain:
        """As JSON-like facts, as ``result.json`` holds them."""
        facts = asdict(self) | {"acc_ci95": list(self.acc_ci95)}
        others: Plain = facts.pop("others")
        return facts | others


@dataclass(frozen=True)
class Exported:
    """One exported file and how far its answers are from the network's.

    ``max_abs_diff`` is the largest difference of ``compared`` (logits or probabilities) over
    ``images`` real images at each of ``batches``, at most ``bound``, and ``mean_abs_diff`` the
    mean; ``agree`` the share of images whose top class is the same, ``close`` the number of those
    whose two best classes differ by less than twice the bound. ``acc`` is the file's accuracy,
    ``acc_network`` the network's, ``None`` where labels are not known.
    """

    format: str
    file: str
    bytes: int
    sha256: str
    max_abs_diff: float
    bound: float | None
    agree: float
    images: int
    batches: tuple[int, ...]
    facts: Plain = field(default_factory=dict)
    compared: str = "logits"
    mean_abs_diff: float = 0.0
    close: int = 0
    acc: float | None = None
    acc_network: float | None = None


@dataclass(frozen=True)
class Network:
    """An architecture as its library builds it.

    ``heads`` are the dotted paths of its classifier layers (distilled ViTs have two), ``dropped``
    the prefixes of training-only auxiliary classifiers that are left out, ``input`` the
    architecture's own recipe, ``args`` everything its builder was given beside the classes.
    """

    module: torch.nn.Module
    heads: tuple[str, ...]
    input: InputSpec
    dropped: tuple[str, ...] = ()
    args: Plain = field(default_factory=dict)
