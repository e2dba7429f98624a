"""What training minimises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from xfer.core.errors import ConfigError, LabelsError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy. ``label_smoothing`` spreads that share of each target over all classes;
    ``class_weights``: ``none``, ``balanced`` (inverse to the class's share of the training
    images, mean 1) or one number a class in class order."""

    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """share of each target that is spread over all classes; ``smoothed`` sets 0.1"""
    class_weights: Literal["none", "balanced"] | tuple[Annotated[float, Gt(0)], ...] = "none"
    """``none``; ``balanced``, inverse to the class's share of the training images; or one
    number a class, in class order. The option ``balanced`` sets ``balanced``"""

    @property
    def solvable(self) -> bool:
        """Whether it is what an exact head is solved for; a class derived from this is not."""
        return type(self) is CrossEntropy

    def weights(self, counts: Sequence[int]) -> list[float] | None:
        """One weight a class from the training images ``counts`` a class."""
        if self.class_weights == "none":
            return None
        if self.class_weights == "balanced":
            # A kept head may have classes that the data has not, which no image weighs.
            return [sum(counts) / (len(counts) * n) if n else 0.0 for n in counts]
        if len(self.class_weights) != len(counts):
            what = f"has {len(self.class_weights)} numbers for {len(counts)} classes"
            fix = "give one number a class, or balanced"
            raise ConfigError("loss.class_weights", what, fix, 50)
        return [float(w) for w in self.class_weights]

    def guessing(self, counts: Sequence[int]) -> float:
        """The loss of equal probabilities for every class, over training images ``counts`` a
        class."""
        weights, smoothing = self.weights(counts) or [1.0] * len(counts), self.label_smoothing
        seen = sum(w * n for w, n in zip(weights, counts, strict=True)) / sum(counts)
        # torch weighs what is spread over the classes by each class's weight, the rest by the
        # image's, and divides by the images' alone.
        spread = sum(weights) / len(weights) / seen
        return math.log(len(counts)) * (1 - smoothing + smoothing * spread)

    def build(self, counts: Sequence[int]) -> nn.Module:
        """Takes logits (n, classes) and labels (n,) or class probabilities (n, classes)."""
        import torch

        weights = self.weights(counts)
        return torch.nn.CrossEntropyLoss(
            weight=None if weights is None else torch.tensor(weights),
            label_smoothing=self.label_smoothing,
        )

    def positive_weights(self, has: Sequence[int], lacks: Sequence[int]) -> list[float]:
        """With several labels an image: what one that has the label weighs beside one that has
        not, a class. ``balanced`` is lacks over has, so that both sides weigh the same."""
        if self.class_weights == "none":
            return [1.0] * len(has)
        if self.class_weights == "balanced":
            return [lack / n if n else 0.0 for n, lack in zip(has, lacks, strict=True)]
        return self.weights(has) or []

    def guessing_labels(self, has: Sequence[int], lacks: Sequence[int]) -> float:
        """The loss of the probability 0.5 for every label."""
        weights = self.positive_weights(has, lacks)
        half = self.label_smoothing / 2
        # A smoothed target of 1 has the weight in its larger part, one of 0 in its smaller.
        with_label = [(w * (1 - half) + half) * n for w, n in zip(weights, has, strict=True)]
        without = [(w * half + 1 - half) * n for w, n in zip(weights, lacks, strict=True)]
        return math.log(2) * (sum(with_label) + sum(without)) / (sum(has) + sum(lacks))

    def of_labels(self, has: Sequence[int], lacks: Sequence[int]) -> nn.Module:
        """Binary cross-entropy of logits (n, classes) and labels (n, classes) of 1, 0 and -1 for
        unknown, the mean over the known ones."""
        from xfer.training.multilabel_losses import BinaryCrossEntropy

        return BinaryCrossEntropy(self.positive_weights(has, lacks), self.label_smoothing)


@dataclass(frozen=True)
class Distill(CrossEntropy):
    """Cross-entropy with the labels, and with what a ``teacher`` answers, softened by a
    ``temperature`` (Hinton, Vinyals and Dean, 2015).

    With logits z of the network, t of the teacher and labels y, the loss of an image is
    (1 - w) H(y, softmax(z)) + w T^2 H(softmax(t / T), softmax(z / T)), where w is ``weight`` and T
    ``temperature``. The factor T^2 makes up for the 1 / T^2 in the gradient of the second part, so
    that ``weight`` means the same at every temperature. ``label_smoothing`` and ``class_weights``
    are of the first part alone.

    With several labels an image both parts are binary cross-entropies, since each class is a yes or
    no of its own (P. Yang et al., Multi-Label Knowledge Distillation, 2023): the first the mean
    over the known labels, the second over all, with sigmoids in place of the softmax.
    """

    teacher: str = field(kw_only=True)
    """the network to learn from, with the same classes: a run folder, the end of its name, a
    checkpoint, an exported ONNX file, either also as ``hf://owner/repo/file@revision`` from the
    Hugging Face hub, or on the command line ``last``, the run that trained last"""
    temperature: Annotated[float, Ge(0.1), Le(100)] = 2.0
    """what the logits of both networks are divided by in the teacher's part; that part is
    multiplied by its square, so that ``weight`` means the same at every temperature"""
    weight: Annotated[float, Gt(0), Le(1)] = 0.5
    """share of the teacher's part in the loss; the rest is cross-entropy with the labels, ``1``
    is the teacher's part alone"""

    @property
    def solvable(self) -> bool:
        """Whether a head can be solved for it: this too is convex in the logits."""
        return type(self) is Distill

    def guessing(self, counts: Sequence[int]) -> float:
        """As of cross-entropy; whatever the teacher answers, equal probabilities have
        T^2 log(classes) in its part."""
        soft = self.temperature**2 * math.log(len(counts))
        return (1 - self.weight) * super().guessing(counts) + self.weight * soft

    def build(self, counts: Sequence[int]) -> nn.Module:
        """Takes logits (n, classes), labels (n,) and the teacher's logits (n, classes)."""
        from xfer.training.teacher import Softened

        return Softened(super().build(counts), self.temperature, self.weight)

    def guessing_labels(self, has: Sequence[int], lacks: Sequence[int]) -> float:
        """As of cross-entropy; whatever the teacher answers, the probability 0.5 has T^2 log(2) in
        its part."""
        soft = self.temperature**2 * math.log(2)
        return (1 - self.weight) * super().guessing_labels(has, lacks) + self.weight * soft

    def of_labels(self, has: Sequence[int], lacks: Sequence[int]) -> nn.Module:
        """Takes logits (n, classes), labels (n, classes) of 1, 0 and -1 for unknown, and the
        teacher's logits (n, classes), which count where a label is unknown as well."""
        from xfer.training.teacher import SoftenedLabels

        return SoftenedLabels(super().of_labels(has, lacks), self.temperature, self.weight)


@dataclass(frozen=True)
class AsymmetricLoss:
    """The asymmetric loss, for several labels an image of which most are absent (E. Ben-Baruch et
    al., 2021): what is easily said to be absent counts next to nothing."""

    positive: Annotated[float, Ge(0)] = 0.0
    """power of the probability that an image's label is missed by; 0 is plain cross-entropy of
    the labels that images have"""
    negative: Annotated[float, Ge(0)] = 4.0
    """power of the probability that is wrongly given to a label that an image has not"""
    margin: Annotated[float, Ge(0), Lt(1)] = 0.05
    """probability up to which a label that an image has not costs nothing"""

    @property
    def solvable(self) -> bool:
        """Whether it is what an exact head is solved for: it is not convex."""
        return False

    def weights(self, counts: Sequence[int]) -> list[float] | None:
        """No weights of classes."""
        return None

    def guessing(self, counts: Sequence[int]) -> float:
        """As :meth:`build`."""
        raise self._one_label()

    def build(self, counts: Sequence[int]) -> nn.Module:
        """Raises LabelsError: there is no such loss of one label an image."""
        raise self._one_label()

    def _one_label(self) -> LabelsError:
        what = "asymmetric is for several labels an image, and task=single has one"
        return LabelsError("loss", what, "type loss=cross_entropy, or task=multilabel", 2)

    def positive_weights(self, has: Sequence[int], lacks: Sequence[int]) -> list[float]:
        """No weights beside the powers."""
        return [1.0] * len(has)

    def guessing_labels(self, has: Sequence[int], lacks: Sequence[int]) -> float:
        """The loss of the probability 0.5 for every label."""
        q = max(0.5 - self.margin, 0.0)
        one = math.pow(0.5, self.positive) * math.log(2)
        other = -math.pow(q, self.negative) * math.log(1 - q)
        return (one * sum(has) + other * sum(lacks)) / (sum(has) + sum(lacks))

    def of_labels(self, has: Sequence[int], lacks: Sequence[int]) -> nn.Module:
        """Takes logits (n, classes) and labels (n, classes) of 1, 0 and -1 for unknown."""
        from xfer.training.multilabel_losses import Asymmetric

        return Asymmetric(self.positive, self.negative, self.margin)
