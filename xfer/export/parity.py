"""How an exported file is compared with the network: on logits, on pictures, or on accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import ExportError
from xfer.data.preprocess import prepare
from xfer.export.evidence import Evidence, pixels, recoded, same_size

if TYPE_CHECKING:
    import torch

    from xfer.core.types import Array, Plain

    Answers = dict[int, Array]
    from collections.abc import Sequence

    from PIL.Image import Image

    from xfer.core.protocols import Runner
    from xfer.core.types import Array, Card

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


def run_torch(net: torch.nn.Module) -> Runner:
    """``net`` as a runner: float32 (n, 3, h, w) in, float32 logits (n, classes) out."""

    def run(images: Array) -> Array:
        import torch

        with torch.inference_mode():
            logits: Array = net(torch.from_numpy(images)).numpy()
            return logits

    return run


_STEP = 16  # pictures of different sizes that the network answers at once


def answers(run: Runner, images: Array) -> Answers:
    """Answers by batch size: 1 on the first 8 images, 2 on the first 16, n on all n."""
    n = len(images)
    counts = {size: min(count, n) for size, count in {1: 8, 2: 16, n: n}.items() if size <= n}
    return {size: _batched(run, images[:count], size) for size, count in counts.items()}


def _batched(run: Runner, images: Array, size: int) -> Array:
    return np.concatenate([run(images[i : i + size]) for i in range(0, len(images), size)])


@dataclass(frozen=True)
class Trials:
    """The network ``run``, its inputs, and its answers ``expected``, which files must repeat."""

    run: Runner
    images: Array
    expected: Answers
    card: Card
    tolerance: float
    evidence: Evidence

    def logits(self, path: Path, name: str, file: Runner) -> Plain:
        """The same logits for the same inputs, as near as :func:`allowed` says."""
        found = Answered(path, name, "logits", self.expected, answers(file, self.images))
        bound = allowed(self.expected[max(self.expected)], self.tolerance)
        return found.within(bound) | self._accuracies(found.got)

    def pictures(self, path: Path, name: str, file: Runner) -> Plain:
        """The same probabilities for the same pictures, as near as :func:`allowed` says with
        ten times ``tolerance``.

        Each picture as it is; in every size and format of :mod:`xfer.export.evidence`; and
        squashed to one size, in batches of 1, 2 and all.
        """
        photos = self.evidence.photos
        if photos is None or not len(photos):
            raise ExportError(path, f"{name}: there is no picture to try it on", FIX, 43)
        n = len(photos)
        own = np.concatenate([file(pixels([photos[i]])) for i in range(n)])
        others = list(recoded(photos))
        shaped = same_size(photos)
        want = {n: softmax(self.expected[max(self.expected)])}
        parts = [
            Answered(path, name, "probabilities", want, {n: own}),
            Answered(path, name, "probabilities", *self._pair(file, others, (1,))),
            Answered(path, name, "probabilities", *self._pair(file, shaped, (1, 2, n))),
        ]
        bound = allowed(want[n], 10 * self.tolerance)
        facts = [part.within(bound) for part in parts]
        merged = {key: max(f[key] for f in facts) for key in ("max_abs_diff", "mean_abs_diff")}
        merged |= {"agree": min(f["agree"] for f in facts), "close": sum(f["close"] for f in facts)}
        return {**facts[0], **merged, **self._accuracies({n: own}), "pictures": n + len(others)}

    def _pair(
        self, file: Runner, pictures: Sequence[Image], sizes: tuple[int, ...]
    ) -> tuple[Answers, Answers]:
        """Probabilities of the network, through the recipe, and of the file."""
        ready = (prepare(picture, self.card.input) for picture in pictures)
        inputs = np.stack(list(ready))
        steps = range(0, len(inputs), _STEP)
        want = softmax(np.concatenate([self.run(inputs[i : i + _STEP]) for i in steps]))
        found = {}
        for size in sorted({size for size in sizes if size <= len(pictures)}):
            starts = range(0, len(pictures), size)
            found[size] = np.concatenate([file(pixels(pictures[i : i + size])) for i in starts])
        return dict.fromkeys(found, want), found

    def score(self, path: Path, name: str, file: Runner) -> Plain:
        """The accuracy on the validation split, which may drop by ``max_drop`` at most."""
        facts = Answered(path, name, "logits", self.expected, answers(file, self.images)).facts(0.0)
        if self.evidence.val is None:
            raise ExportError(path, f"{name}: there is no labelled split to score it on", FIX, 44)
        right = np.zeros(2)
        count = 0
        for images, labels in self.evidence.val():
            right += [(run(images).argmax(1) == labels).sum() for run in (file, self.run)]
            count += len(labels)
        mine, network = (right / count).tolist()
        if network - mine > self.evidence.max_drop:
            what = (
                f"{name} costs {network - mine:.4f} of accuracy ({mine:.4f} against "
                f"{network:.4f} on {count} images), allowed is {self.evidence.max_drop}"
            )
            raise ExportError(path, what, "raise export.max_drop, or leave the format out", 45)
        # No bound holds for a format that rounds every weight; its accuracy is what is checked.
        return {**facts, "bound": None, "close": 0, "acc": mine, "acc_network": network}

    def _accuracies(self, got: Answers) -> Plain:
        labels, whole = self.evidence.labels, max(got)
        return {
            "acc": accuracy(got[whole], labels),
            "acc_network": accuracy(self.expected[max(self.expected)], labels),
        }
