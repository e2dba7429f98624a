"""Two sets of answers to the same images, and how far they are from each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.errors import ExportError

if TYPE_CHECKING:
    from xfer.types import Array, Plain

    Answers = dict[int, Array]

_ROUNDING = 16 * float(np.finfo(np.float32).eps)  # of the largest answer, in a deep network

FIX = "choose other formats, export=[...] or export=none; the checkpoint is not affected"


@dataclass(frozen=True)
class Answered:
    """The network's answers and a file's, by batch size, in ``kind`` (logits, probabilities)."""

    path: Path
    name: str
    kind: str
    expected: Answers
    got: Answers

    def within(self, bound: float) -> Plain:
        """The facts of the comparison. Raises ExportError for a difference above ``bound``."""
        facts = self.facts(bound)
        if facts["max_abs_diff"] > bound:
            what = (
                f"{self.name} answers otherwise than the network: {self.kind} differ by up to "
                f"{facts['max_abs_diff']:.3g}, allowed is {bound:.3g}; "
                f"the top class agrees on {facts['agree']:.1%}"
            )
            raise ExportError(self.path, what, FIX, 6)
        self._refuse_undecided(facts, bound)
        return facts

    def _refuse_undecided(self, facts: Plain, bound: float) -> None:
        """A file whose top class counts on no image could have its classes in any order."""
        count = max(len(want) for want in self.expected.values())
        if facts["close"] < count:
            return
        what = (
            f"{self.name} cannot be compared: on none of {count} images are the network's two best "
            f"{self.kind} further apart than {2 * bound:.3g}, twice the difference allowed"
        )
        fix = "train the network for longer, or type export=none"  # a tie has no tolerance
        raise ExportError(self.path, what, fix, 49)

    def facts(self, bound: float) -> Plain:
        """Differences at the worst batch size. Raises ExportError for NaN and a wrong shape."""
        refuse_nan(self.path, self.name, self.got, "the file", FIX)
        pairs = [(want, self.got[size]) for size, want in self.expected.items()]
        for want, got in pairs:
            self._same_shape(want, got)
        far = [np.abs(want.astype(np.float64) - got) for want, got in pairs]
        return {
            "compared": self.kind,
            "bound": bound,
            "max_abs_diff": max(float(d.max()) for d in far),
            "mean_abs_diff": max(float(d.mean()) for d in far),
            "agree": min(float(np.mean(want.argmax(1) == got.argmax(1))) for want, got in pairs),
            "close": max(_close(want, 2 * bound) for want, _ in pairs),
        }

    def _same_shape(self, want: Array, got: Array) -> None:
        if want.shape != got.shape:
            what = f"{self.name} gives {self.kind} of shape {got.shape}, the network {want.shape}"
            raise ExportError(self.path, what, FIX, 5)


def allowed(answers: Array, tolerance: float) -> float:
    """The difference from ``answers`` (n, classes) that a file may have.

    ``tolerance``, times the largest answer where that is above 1, and times the spread of the
    classes where that is below 1: of tiny logits any answer would be near. At most a tenth of how
    much the answers vary between images, so that no file passes that does not look at them; at
    least the rounding of float32.
    """
    z = np.asarray(answers, np.float64)
    largest = float(np.abs(z).max())
    rounding = _ROUNDING * largest
    bound = tolerance * max(1.0, largest)
    if z.shape[1] > 1:
        bound *= min(1.0, float((z.max(axis=1) - z.min(axis=1)).max()))
    varied = float((z.max(axis=0) - z.min(axis=0)).max())
    if varied > 10 * rounding:
        bound = min(bound, varied / 10)
    return max(bound, rounding)


def _close(answers: Array, gap: float) -> int:
    """Images whose two best classes are at most ``gap`` apart: either may come out on top."""
    best = np.sort(answers, axis=1)
    return int((best[:, -1] - best[:, -2] <= gap).sum()) if answers.shape[1] > 1 else 0


def accuracy(answers: Array, labels: Array | None) -> float | None:
    """The share of right top classes; ``None`` where labels are not known."""
    if labels is None or (labels < 0).any():
        return None
    return float(np.mean(answers.argmax(1) == labels))


def refuse_nan(path: Path, name: str, answers: Answers, who: str, fix: str) -> None:
    """Raise ExportError for an answer that is no number."""
    if not all(np.isfinite(found).all() for found in answers.values()):
        raise ExportError(path, f"{name}: {who} answers NaN or Inf on real images", fix, 4)


def softmax(logits: Array) -> Array:
    """float64 (n, classes)."""
    z = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return np.asarray(z / z.sum(1, keepdims=True))
