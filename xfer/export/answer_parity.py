"""Whether a file gives the prediction sets and p-values that the network gives, and with several
labels an image its probabilities and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import ExportError
from xfer.core.probabilities import sigmoid, softmax
from xfer.core.types import Array, Images, Plain
from xfer.evaluation.certificate_answers import distances_at
from xfer.evaluation.conformal import covered
from xfer.export.parity import FIX, Unseen, pixels, run_torch

if TYPE_CHECKING:
    import torch

    from xfer.core.certificate import Certificate

    Runs = Callable[[Array], Sequence[Array]]

_BATCH = 16
_SINGLE = 8  # images that are also asked for one at a time
_FAR = 10.0  # times the tolerance of logits: how far a distance may be from the network's
_FLOAT = 1e-6  # rounding of a p-value


@dataclass(frozen=True)
class Pledge:
    """What the network promises of some images: ``probabilities`` float64 (n, classes) and
    ``distances`` float64 (n,), of which its ``certificate`` makes sets and p-values."""

    certificate: Certificate
    probabilities: Array
    distances: Array


def pledge(net: torch.nn.Module, certificate: Certificate, images: Array) -> Pledge:
    """That of ``net``, on the CPU and in evaluation mode, for inputs (n, 3, h, w)."""
    run = run_torch(net)
    with distances_at(net, certificate) as distances:
        logits = [run(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
    whole = np.concatenate(distances) if distances else np.empty(0)
    answers = np.concatenate(logits).astype(np.float64)
    shares = sigmoid(answers) if certificate.several else softmax(answers)
    return Pledge(certificate, shares, whole)


@dataclass(frozen=True)
class CertifiedFile:
    """A file ``name`` at ``path`` whose certified answers are compared: ``run`` gives them for an
    input, ``takes_pictures`` says which kind of input, ``bound`` is how far its answers may be from
    the network's (of logits, or of probabilities where it takes pictures)."""

    path: Path
    name: str
    run: Runs
    takes_pictures: bool
    bound: float

    def check(self, want: Pledge, inputs: Array, photos: Images | None, tolerance: float) -> Plain:
        """The facts of the comparison on ``inputs``, or their pictures ``photos``. Raises
        ExportError for a set or p-value that rounding does not explain."""
        facts = {"images": len(inputs), "sets_apart": 0, "p_apart": 0.0}
        for some, got in self._answers(inputs, photos):
            sets = want.certificate.sets(want.probabilities[some])
            apart = sets != got[1]
            if (apart & ~self._near(want, some)).any():
                count = int((apart & ~self._near(want, some)).any(axis=1).sum())
                what = f"{self.name} gives other prediction sets than the network for {count} of "
                raise ExportError(self.path, f"{what}{len(inputs)} images", FIX, 8)
            facts["sets_apart"] = max(facts["sets_apart"], int(apart.any(axis=1).sum()))
            if want.certificate.unlike is not None:
                far = self._p_apart(want, some, got[2], _FAR * tolerance)
                facts["p_apart"] = max(facts["p_apart"], far)
        return facts

    def _answers(
        self, inputs: Array, photos: Images | None
    ) -> Iterator[tuple[slice, Sequence[Array]]]:
        """Which images, and what the file answers to them: all of them, and some one at a time."""
        n = len(inputs)
        if self.takes_pictures:
            yield slice(0, n), _of_pictures(self.run, photos)
            return
        yield slice(0, n), self.run(inputs)
        for i in range(min(_SINGLE, n)):
            yield slice(i, i + 1), self.run(inputs[i : i + 1])

    def _near(self, want: Pledge, some: slice) -> Array:
        """Where a probability is so near to that which decides that the file may say either."""
        p = want.probabilities[some]
        cut = want.certificate.cuts(p).astype(np.float64)
        # Logits within the bound leave each logarithm of a probability within twice of it.
        near = self.bound if self.takes_pictures else np.expm1(2 * self.bound) * np.maximum(p, cut)
        return np.asarray(np.abs(p - cut) <= near)

    def _p_apart(self, want: Pledge, some: slice, got: Array, apart: float) -> float:
        """The largest difference of p-values. Raises ExportError for one that distances which are
        ``apart`` by that share of themselves do not explain."""
        unlike, far = want.certificate.unlike, want.distances[some]
        if unlike is None:
            return 0.0
        low, high = (unlike.p_value(far * (1 + side * apart)) for side in (1, -1))
        wrong = (got < low - _FLOAT) | (got > high + _FLOAT)
        difference = float(np.abs(got - unlike.p_value(far)).max(initial=0.0))
        if wrong.any():
            what = f"{self.name} gives other p-values than the network for {int(wrong.sum())} of "
            what += f"{len(got)} images; they differ by up to {difference:.3g}"
            raise ExportError(self.path, what, FIX, 9)
        return difference

    def coverage(self, unseen: Unseen) -> Plain:
        """What the sets cover of ``unseen`` images, as the file has them: see
        :func:`xfer.evaluation.conformal.covered`."""
        n = len(unseen.samples)
        if self.takes_pictures:
            sets = _of_pictures(self.run, unseen.samples.images)[1]
        else:
            starts = range(0, n, _BATCH)
            sets = np.concatenate([self.run(unseen.inputs[i : i + _BATCH])[1] for i in starts])
        return {
            "checked_on": unseen.split,
            "checked": n,
            "covered": covered(sets, unseen.samples.labels),
        }


UNCHECKED: dict[str, int | float | str | None] = {
    "checked_on": None,
    "checked": 0,
    "covered": None,
}
"""What is said where no labelled images are left that nothing was fitted on."""


_ROUNDING = 1e-6  # of a probability in float32


@dataclass(frozen=True)
class LabelledFile:
    """A file ``name`` at ``path``: ``run`` gives its probabilities and labels for an input, or for
    pictures where it ``takes_pictures``. ``bound`` is how far its answers may be from the
    network's: of logits, or of probabilities where it takes pictures."""

    path: Path
    name: str
    run: Runs
    takes_pictures: bool
    bound: float

    def check(
        self, logits: Array, thresholds: Sequence[float], inputs: Array, photos: Images | None
    ) -> Plain:
        """The facts of the comparison with the network's ``logits`` (n, classes). Raises
        ExportError for a probability further away than the bound, and for a label that rounding
        does not explain."""
        given = _of_pictures(self.run, photos) if self.takes_pictures else self.run(inputs)
        shares, labels = given
        want, cuts = sigmoid(logits.astype(np.float64)), np.array(thresholds)
        # The slope of a sigmoid is a quarter at most.
        far = _ROUNDING + (self.bound if self.takes_pictures else self.bound / 4)
        most = float(np.abs(want - shares).max())
        if most > far:
            what = f"{self.name} gives probabilities that differ by up to {most:.3g} from the "
            what += f"network's, but only {far:.3g} is allowed"
            raise ExportError(self.path, what, FIX, 6)
        apart = (want >= cuts) != labels
        wrong = apart & (np.abs(want - cuts) > far)
        if wrong.any():
            what = f"{self.name} gives other labels than the network for "
            what += f"{int(wrong.any(axis=1).sum())} of {len(labels)} images"
            raise ExportError(self.path, what, FIX, 6)
        return {"labels_agree": float(1 - apart.mean()), "probabilities_apart": most}


def _of_pictures(run: Runs, photos: Images | None) -> Sequence[Array]:
    """What a file answers to pictures, one at a time."""
    if photos is None:
        raise ValueError("a file that takes pictures is compared without any")
    each = [run(pixels([photos[i]])) for i in range(len(photos))]
    return [np.concatenate(parts) for parts in zip(*each, strict=True)]
