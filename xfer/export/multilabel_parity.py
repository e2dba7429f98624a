"""Whether a file gives the probabilities and labels that a network of several labels gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import ExportError
from xfer.core.types import sigmoid
from xfer.export.parity import FIX, pixels

if TYPE_CHECKING:
    from xfer.core.types import Array, Images, Plain

_ROUNDING = 1e-6  # of a probability in float32


@dataclass(frozen=True)
class LabelledFile:
    """A file ``name`` at ``path``: ``run`` gives its probabilities and labels for an input, or for
    pictures where it ``takes_pictures``. ``bound`` is how far its answers may be from the
    network's: of logits, or of probabilities where it takes pictures."""

    path: Path
    name: str
    run: Callable[[Array], Sequence[Array]]
    takes_pictures: bool
    bound: float

    def check(
        self, logits: Array, thresholds: Sequence[float], inputs: Array, photos: Images | None
    ) -> Plain:
        """The facts of the comparison with the network's ``logits`` (n, classes). Raises
        ExportError for a probability further away than the bound, and for a label that rounding
        does not explain."""
        shares, labels = self._answers(inputs, photos)
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

    def _answers(self, inputs: Array, photos: Images | None) -> Sequence[Array]:
        if not self.takes_pictures:
            return self.run(inputs)
        if photos is None:
            raise ValueError("a file that takes pictures is compared without any")
        each = [self.run(pixels([photos[i]])) for i in range(len(photos))]
        return [np.concatenate(parts) for parts in zip(*each, strict=True)]
