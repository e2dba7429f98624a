"""What files are tried on beside the network's own inputs."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from xfer.core.types import Array, Images

    Labelled = Iterator[tuple[Array, Array]]

SIZES = (
    *((64, 80), (80, 64), (100, 100), (224, 224), (225, 223), (256, 256)),
    *((255, 400), (333, 257), (640, 480), (500, 750), (1024, 768), (90, 700)),
)
FORMS = (("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "L"), ("WEBP", "RGB"), ("GIF", "P"))
_SHARED = (320, 240)  # (width, height) of pictures in one batch


@dataclass(frozen=True)
class Evidence:
    """What a trial needs beside the network's inputs; a writer that lacks its part is refused.

    ``photos`` are the inputs' pictures as decoded, ``labels`` their classes, int64 (n,);
    ``calibration`` training images, float32 (m, 3, h, w), preprocessed; ``val`` gives the whole
    validation split, (images, labels) a batch; ``max_drop`` the accuracy that an approximate file
    may lose, 0.01 is one point in a hundred.
    """

    photos: Images | None = None
    labels: Array | None = None
    calibration: Array | None = None
    val: Callable[[], Labelled] | None = None
    max_drop: float = 0.01


def recoded(photos: Images) -> Iterator[Image]:
    """Real pictures in every size and format of this module, read back as files are."""
    from xfer.data.image import decode_bytes

    pairs = [(size, form) for size in SIZES for form in FORMS]
    for i, (size, (form, mode)) in enumerate(pairs):
        stream = io.BytesIO()
        photos[i % len(photos)].resize(size).convert(mode).save(stream, form)
        yield decode_bytes(stream.getvalue())


def same_size(photos: Images) -> list[Image]:
    """The pictures squashed to one size, so that they fit into one batch."""
    return [photos[i].resize(_SHARED) for i in range(len(photos))]


def pixels(pictures: Sequence[Image]) -> Array:
    """Equal-sized RGB pictures as uint8 (n, 3, height, width)."""
    return np.stack([np.ascontiguousarray(np.asarray(p).transpose(2, 0, 1)) for p in pictures])
