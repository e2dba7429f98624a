"""Heat maps of a few answers: of which images, and how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from xfer.core.errors import printable
from xfer.data.preprocess import prepare

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

    from xfer.core.types import InputSpec, Predictions, Samples

    Floats = npt.NDArray[np.float32]

_BATCH = 8


@dataclass(frozen=True)
class Heat:
    """The maps by the image's position in its split, float32 (rows, columns), each 0 or more, and
    how they were made or why there are none, in words. ``right`` are positions of right answers."""

    said: str
    maps: dict[int, Floats] = field(default_factory=dict)
    right: tuple[int, ...] = ()


def heat_of(
    net: nn.Module, answers: Predictions, samples: Samples, spec: InputSpec, most: int
) -> Heat:
    """The maps of at most ``most`` images for the class that the network took them for: two in
    three are the first mistakes, the others right answers, spread over the split.

    Costs one pass over those images, and the gradient of what follows the map. A network without
    a map has none, and ``said`` names the reason.
    """
    from xfer.evaluation.evaluate import most_wrong

    wrong = most_wrong(answers, most - most // 3)
    right = _spread_right(answers, most // 3)
    return replace(heat_at(net, answers, samples, spec, [*wrong, *right]), right=right)


def heat_at(
    net: nn.Module,
    answers: Predictions,
    samples: Samples,
    spec: InputSpec,
    shown: Sequence[int],
) -> Heat:
    """The maps of the images at the positions ``shown``, which ``answers`` and ``samples`` share,
    for the class that the network took each of them for; costs and refusals as :func:`heat_of`."""
    import torch

    from xfer.evaluation.layer_cam import find_site, heat_maps

    taken = answers.logits.argmax(axis=1)
    device = next(iter(net.parameters())).device

    def batch(positions: Sequence[int]) -> torch.Tensor:
        arrays = np.stack([prepare(samples.images[i], spec) for i in positions])
        return torch.from_numpy(arrays).to(device)

    maps: dict[int, Floats] = {}
    try:
        site = find_site(net, batch(shown[:1])) if shown else None
        if site is None:
            return Heat(_NO_PLACE if shown else "")
        for start in range(0, len(shown), _BATCH):
            part = shown[start : start + _BATCH]
            classes = [int(taken[i]) for i in part]
            maps |= zip(part, heat_maps(net, site, batch(part), classes), strict=True)
    except (RuntimeError, NotImplementedError) as error:  # of a layer that has no gradient
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        return Heat(f"There are no heat maps: {printable(reason)}.")
    return Heat(_MADE.format(site.method, len(shown)), maps)


_NO_PLACE = (
    "There are no heat maps: no layer near the end of this network is laid out over the image."
)
_MADE = (
    "Heat maps show where in an image the network finds what speaks for the class that it "
    "predicts: from clear through violet and red to bright yellow, where it finds most. Each map "
    "has its own scale. {}; {} images have one."
)


def _spread_right(answers: Predictions, count: int) -> tuple[int, ...]:
    """Positions of right answers, evenly over the split, so that each class is seen."""
    right = np.flatnonzero(answers.logits.argmax(axis=1) == answers.labels).tolist()
    n = min(count, len(right))
    return tuple(right[i * len(right) // n] for i in range(n))
