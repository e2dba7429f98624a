"""What each image does to the answers of several labels: one regression a label, on the images of
which it is known.

A label is a yes or no of its own. Those that are known of the same images are fitted together, as
classes are in :mod:`xfer.evaluation.leave_one_out`; those that are known of some images alone have
coordinates of these, worked out when they are asked for and not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xfer.core.live_line import working
from xfer.evaluation.leave_one_out import (
    Coordinates,
    coordinates,
    leave_one_out,
    without_some,
)

if TYPE_CHECKING:
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
        for columns, known in known_alike(self.labels):
            rows = np.flatnonzero(known)
            asked = [i for i, image in enumerate(images) if known[image]]
            inside = np.searchsorted(rows, [images[i] for i in asked]).tolist()
            those = self.labels[np.ix_(rows, columns)]
            part = self.at.features if known.all() else self.at.features[known]
            penalty, shared = self.penalties[columns[0]], self.at.shared
            without = without_some(part, those, penalty, inside, shared)
            otherwise = without.moved(inside, partial(np.less_equal, cuts[columns]))
            for i, others in zip(asked, otherwise, strict=True):
                moved[i, rows] |= others.any(axis=1)
        return [int(others.sum()) for others in moved]


def labels_left_out(at: Coordinates, labels: Labels, groups: Labels | None = None) -> LabelsLeftOut:
    """Fit the regressions and leave every image, or every one of ``groups`` int64 (n,), out in
    turn, exactly; ``labels`` int64 (n, classes) of 1, 0 and -1 for unknown. Each set of labels that
    are known of the same images has the penalty that is best for it."""
    held_out, effects = np.zeros(labels.shape), np.zeros(labels.shape)
    penalties = np.zeros(labels.shape[1])
    alike = known_alike(labels)
    with working("regressions of labels", len(alike)) as advance:
        for columns, known in alike:
            some = np.ix_(known, columns)
            part = at if known.all() else coordinates(at.features[known], at.shared)
            together = None if groups is None else groups[known]
            one = leave_one_out(part, labels[some], len(columns), groups=together)
            held_out[some] = one.held_out(labels[some])
            effects[some] = one.effects
            penalties[columns] = one.penalty
            advance(1)
    return LabelsLeftOut(at, labels, held_out, effects, penalties)


def known_alike(labels: Labels) -> list[tuple[Labels, npt.NDArray[np.bool_]]]:
    """The labels, int64 (m,), that are known of the same images, and those images, bool (n,);
    ``labels`` int64 (n, classes) of 1, 0 and -1 for unknown. None that is known of no image."""
    alike: dict[bytes, list[int]] = {}
    for label, known in enumerate((labels >= 0).T):
        if known.any():
            alike.setdefault(known.tobytes(), []).append(label)
    return [(np.array(some), labels[:, some[0]] >= 0) for some in alike.values()]
