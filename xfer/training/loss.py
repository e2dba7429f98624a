"""What training minimises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Lt

from xfer.core.errors import ConfigError

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
