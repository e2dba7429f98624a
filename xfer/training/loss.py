"""What training minimises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Lt

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
            return [sum(counts) / (len(counts) * n) for n in counts]
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
            return [lack / n for n, lack in zip(has, lacks, strict=True)]
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
        from xfer.training.label_losses import BinaryCrossEntropy

        return BinaryCrossEntropy(self.positive_weights(has, lacks), self.label_smoothing)


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
        from xfer.training.label_losses import Asymmetric

        return Asymmetric(self.positive, self.negative, self.margin)
