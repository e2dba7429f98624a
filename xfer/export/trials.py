"""How a written file is tried: on logits, on pictures as they are, or on its accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.errors import ExportError
from xfer.export.compare import FIX, Answered, accuracy, allowed, softmax
from xfer.export.evidence import Evidence, pixels, recoded, same_size
from xfer.preprocess import prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from xfer.types import Array, Card, Plain, Runner

    Answers = dict[int, Array]

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
