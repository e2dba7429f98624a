"""What an image's labels are: one class, or a yes or no of each class.

Whatever differs between the two is asked of these, by the rooms above: how the data is read, what
it is scored by, and which loss a network is trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Gt, Lt

from xfer.core.errors import LabelsError
from xfer.core.protocols import Data, Loss, LossOfLabels, ReadsLabels
from xfer.core.types import Dataset, Plain, Samples
from xfer.evaluation import metrics
from xfer.evaluation.multilabel_metrics import best_thresholds, label_rows, label_values

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from xfer.evaluation.out_of_fold import LabelOutOfFold, OutOfFold

    Labels = npt.NDArray[np.int64]
    Logits = npt.NDArray[np.float32]
    Pooled = OutOfFold | LabelOutOfFold

CHOSEN_ON = {
    "cv": "chosen on held-out training images",
    "val": "chosen on val, which then is no longer unseen",
    "given": "given, and chosen on nothing",
}
"""Where the thresholds of a card come from, in words."""


@dataclass(frozen=True)
class Single:
    """Each image belongs to exactly one class; labels are int64 (n,)."""

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, or none."""
        return False

    @property
    def chooses(self) -> bool:
        """Whether a fit by steps chooses something on val, beside the best epoch."""
        return False

    def read(self, data: Data, training: bool, known: tuple[str, ...] = ()) -> Dataset:
        """The classes and splits of ``data``, as :class:`xfer.core.protocols.Data` has it."""
        return data.dataset(training)

    def rows(self, parts: metrics.Parts) -> tuple[metrics.Metric, ...]:
        """Every metric, those of the user last."""
        return metrics.with_parts(parts)

    def values(
        self, logits: npt.ArrayLike, labels: npt.ArrayLike, parts: metrics.Parts
    ) -> dict[str, float]:
        """Every metric by name; see :func:`xfer.evaluation.metrics.values`."""
        return metrics.values(logits, labels, parts)

    def counts(self, labels: Labels, classes: int) -> list[int]:
        """Images a class, of those that have a label."""
        import numpy as np

        counts: list[int] = np.bincount(labels[labels >= 0], minlength=classes).tolist()
        return counts

    def more_counts(self, labels: Labels) -> Plain:
        """What ``plan.json`` says of a split beside the images a class: nothing."""
        return {}

    def loss(self, spec: Loss, labels: Labels, classes: int) -> nn.Module:
        """What training on images with these ``labels`` minimises."""
        return spec.build(self.counts(labels, classes))

    def guessing(self, spec: Loss, labels: Labels, classes: int) -> tuple[int, float]:
        """Of how many answers guessing chooses, and the training loss of that."""
        return classes, spec.guessing(self.counts(labels, classes))

    def title(self, label: Any, classes: Sequence[str]) -> str:
        """The label of one image in words."""
        return classes[int(label)]

    def card(self, logits: npt.ArrayLike, labels: npt.ArrayLike, chosen_on: str) -> Plain:
        """What a card says of the task: nothing."""
        return {}

    def pooled(self, samples: Samples, logits: Logits, classes: tuple[str, ...]) -> Pooled:
        """The ``logits`` float32 (repeats, n, classes) of a cross-validation of ``samples``, each
        by the fit that had not seen the image."""
        from xfer.evaluation.out_of_fold import OutOfFold

        grouped = bool(samples.groups)
        folds = _folds(samples)
        return OutOfFold(samples.names, logits, samples.labels, folds, classes, grouped)


@dataclass(frozen=True)
class Multilabel:
    """Each image has several labels, or none; labels are int64 (n, classes) of 1, 0 and, where
    nobody has looked, -1, which counts neither in the loss nor in a score."""

    thresholds: Literal["f1"] | Annotated[float, Gt(0), Lt(1)] = "f1"
    """the probability from which on an image is said to have a label: ``f1`` chooses one a class,
    by the best F1 on training images answered by a fit that had not seen them where the head is
    solved, on ``val`` where it is trained step by step; a number is that of every class"""

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, or none."""
        return True

    @property
    def chooses(self) -> bool:
        """Whether a fit by steps chooses something on val, beside the best epoch."""
        return self.thresholds == "f1"

    def read(self, data: Data, training: bool, known: tuple[str, ...] = ()) -> Dataset:
        """The classes and splits of ``data``; the classes are ``known`` where a network has learned
        them. Raises LabelsError for data that has one label an image."""
        if not isinstance(data, ReadsLabels):
            what = f"has one label an image (data={type(data).__name__.lower()})"
            fix = "type data=csv data.file=FILE with the labels of each image, or task=single"
            raise LabelsError("data", what, fix, 1)
        return data.labelled(training, known)

    def rows(self, parts: metrics.Parts) -> tuple[metrics.Metric, ...]:
        """Every metric, those of the user last."""
        return label_rows(parts)

    def values(
        self, logits: npt.ArrayLike, labels: npt.ArrayLike, parts: metrics.Parts
    ) -> dict[str, float]:
        """Every metric by name, yes from the probability 0.5 on."""
        return label_values(logits, labels, parts)

    def counts(self, labels: Labels, classes: int) -> list[int]:
        """Images that have the label, a class."""
        counts: list[int] = (labels == 1).sum(axis=0).tolist()
        return counts

    def more_counts(self, labels: Labels) -> Plain:
        """What ``plan.json`` says of a split beside the images a class: those without any label,
        and labels that are unknown."""
        none = int((labels == 0).all(axis=1).sum())
        return {"without_labels": none, "unknown": int((labels < 0).sum())}

    def _lacking(self, labels: Labels) -> list[int]:
        counts: list[int] = (labels == 0).sum(axis=0).tolist()
        return counts

    def loss(self, spec: Loss, labels: Labels, classes: int) -> nn.Module:
        """What training on images with these ``labels`` minimises."""
        return self._of_labels(spec).of_labels(self.counts(labels, classes), self._lacking(labels))

    def guessing(self, spec: Loss, labels: Labels, classes: int) -> tuple[int, float]:
        """Of how many answers guessing chooses, and the training loss of that."""
        has, lacks = self.counts(labels, classes), self._lacking(labels)
        return 2, self._of_labels(spec).guessing_labels(has, lacks)

    def positive_weights(self, spec: Loss, labels: Labels) -> list[float]:
        """What an image that has the label weighs beside one that has not, a class."""
        has = (labels == 1).sum(axis=0).tolist()
        return self._of_labels(spec).positive_weights(has, self._lacking(labels))

    def _of_labels(self, spec: Loss) -> LossOfLabels:
        if isinstance(spec, LossOfLabels):
            return spec
        what = f"{type(spec).__name__} is a loss of one label an image"
        fix = "type loss=cross_entropy, balanced, smoothed or asymmetric"
        raise LabelsError("loss", what, fix, 2)

    def title(self, label: Any, classes: Sequence[str]) -> str:
        """The labels of one image in words."""
        names = [name for name, value in zip(classes, label, strict=True) if value == 1]
        return ", ".join(names) or "none"

    def card(self, logits: npt.ArrayLike, labels: npt.ArrayLike, chosen_on: str) -> Plain:
        """What a card says of the task, its thresholds chosen on these answers."""
        import numpy as np

        if self.thresholds == "f1":
            cuts = best_thresholds(logits, labels).tolist()
        else:
            cuts, chosen_on = [self.thresholds] * np.asarray(labels).shape[1], "given"
        return {"kind": "multilabel", "thresholds": cuts, "chosen_on": chosen_on}

    def pooled(self, samples: Samples, logits: Logits, classes: tuple[str, ...]) -> Pooled:
        """The ``logits`` float32 (repeats, n, classes) of a cross-validation of ``samples``, each
        by the fit that had not seen the image."""
        from xfer.evaluation.out_of_fold import LabelOutOfFold

        given = None if self.thresholds == "f1" else self.thresholds
        folds = _folds(samples)
        return LabelOutOfFold(samples.names, logits, samples.labels, folds, classes, given=given)


def _folds(samples: Samples) -> Labels:
    if samples.folds is None:
        raise ValueError("images that are in no folds have no answers of a cross-validation")
    return samples.folds
