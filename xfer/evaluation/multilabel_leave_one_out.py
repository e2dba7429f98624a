"""What each image does to the answers of several labels: one regression a label, on the images of
which it is known.

A label is a yes or no of its own. Those that are known of the same images are fitted together, as
classes are in :mod:`xfer.evaluation.leave_one_out`; those that are known of some images alone have
coordinates of these, worked out when they are asked for and not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from xfer.evaluation.leave_one_out import Coordinates, LeftOut, coordinates, leave_one_out

if TYPE_CHECKING:
    import numpy.typing as npt

    from xfer.evaluation.leave_one_out import Floats

    Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelsLeftOut:
    """The regressions on all images, and what they would be without each.

    ``labels`` int64 (n, classes) of 1, 0 and -1 for unknown; ``held_out`` float64 (n, classes) the
    answer to each image of the fit without it; ``effects`` float64 (n, classes) the root mean
    square, over the images whose label is known, of how far the answers for it move when the image
    is left out, both 0 where the label is unknown; ``penalties`` float64 (classes,) the strengths
    that were chosen. ``at`` are all images.
    """

    at: Coordinates
    labels: Labels
    held_out: Floats
    effects: Floats
    penalties: Floats

    @cached_property
    def effect(self) -> Floats:
        """How far the answers for all labels move when an image is left out, float64 (n,)."""
        return np.asarray(np.sqrt((self.effects**2).sum(axis=1)))

    def changed(self, images: Sequence[int], cuts: Floats) -> list[int]:
        """For each of some images: of how many others something else is said without it, where a
        label is said to be there from its answer in ``cuts``, (classes,), on."""
        moved = np.zeros((len(images), len(self.labels)), bool)
        for columns, known, one in _fits(self.at, self.labels):
            rows = np.flatnonzero(known)
            asked = [i for i, image in enumerate(images) if known[image]]
            inside = np.searchsorted(rows, [images[i] for i in asked]).tolist()
            otherwise = one.moved(inside, partial(np.less_equal, cuts[columns]))
            for i, others in zip(asked, otherwise, strict=True):
                moved[i, rows] |= others.any(axis=1)
        return [int(others.sum()) for others in moved]


def labels_left_out(at: Coordinates, labels: Labels, groups: Labels | None = None) -> LabelsLeftOut:
    """Fit the regressions and leave every image, or every one of ``groups`` int64 (n,), out in
    turn, exactly; ``labels`` int64 (n, classes) of 1, 0 and -1 for unknown. Each set of labels that
    are known of the same images has the penalty that is best for it."""
    held_out, effects = np.zeros(labels.shape), np.zeros(labels.shape)
    penalties = np.zeros(labels.shape[1])
    for columns, known, one in _fits(at, labels, groups):
        some = np.ix_(known, columns)
        held_out[some] = one.held_out(labels[some])
        effects[some] = one.effects
        penalties[columns] = one.penalty
    return LabelsLeftOut(at, labels, held_out, effects, penalties)


def _fits(
    at: Coordinates, labels: Labels, groups: Labels | None = None
) -> Iterator[tuple[Labels, npt.NDArray[np.bool_], LeftOut]]:
    """The labels that are known of the same images, int64 (m,), those images, bool (n,), and the
    regressions on them."""
    alike: dict[bytes, list[int]] = {}
    for label, known in enumerate((labels >= 0).T):
        alike.setdefault(known.tobytes(), []).append(label)
    for columns in map(np.array, alike.values()):
        known = labels[:, columns[0]] >= 0
        if known.any():
            part = at if known.all() else coordinates(at.features[known])
            those = labels[np.ix_(known, columns)]
            together = None if groups is None else groups[known]
            yield columns, known, leave_one_out(part, those, len(columns), groups=together)
