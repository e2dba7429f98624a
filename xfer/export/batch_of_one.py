"""A file of batch size 1, asked for any number of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xfer.core.protocols import Runner
    from xfer.core.types import Array


def one_at_a_time(run: Runner) -> Runner:
    """A function of (n, 3, h, w) that asks ``run`` for one image after the other."""

    def answers(images: Array) -> Array:
        each = (np.ascontiguousarray(images[i : i + 1]) for i in range(len(images)))
        return np.concatenate([run(image) for image in each])

    return answers
