"""The mistakes as small pictures inside the page, the most confident first."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xfer.data.preprocess import fit_to_size

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL.Image import Image

    from xfer.core.types import InputSpec, Predictions, Samples

MOST, ROOM = 200, 420_000
"""At most so many pictures, and so many characters of them: the card stays below a megabyte."""
SIDE = 160
SURE = 0.9
_QUALITY = 72


@dataclass(frozen=True)
class Shot:
    """One mistake. ``uri`` is its picture as the network saw it, ``size`` in pixels; ``kinds`` are
    words that a filter looks for: ``sure``, ``second`` (the true class was the second choice)."""

    number: int
    path: str
    label: str
    prediction: str
    confidence: float
    uri: Markup
    size: tuple[int, int]
    kinds: tuple[str, ...]


def shots(
    samples: Samples, answers: Predictions, wrong: Sequence[int], spec: InputSpec
) -> list[Shot]:
    """The images at the positions ``wrong``, in that order, as many as there is room for."""
    taken, room = list[Shot](), ROOM
    if answers.labels is None:
        return taken
    confidence = answers.confidence
    for number, i in enumerate(wrong[:MOST], 1):
        image = fit_to_size(samples.images[i], spec)
        image.thumbnail((SIDE, SIDE))
        uri = data_uri(jpeg(image, _QUALITY))
        room -= len(uri)
        if room < 0:
            break
        label, logits = int(answers.labels[i]), answers.logits[i]
        kinds: tuple[str, ...] = ("sure",) if confidence[i] >= SURE else ()
        if label == int(np.argsort(-logits, kind="stable")[1]):
            kinds += ("second",)
        names = (answers.classes[label], answers.classes[int(logits.argmax())])
        shot = Shot(number, answers.names[i], *names, float(confidence[i]), uri, image.size, kinds)
        taken.append(shot)
    return taken


def jpeg(image: Image, quality: int) -> bytes:
    """An RGB image as the bytes of a JPEG file."""
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def data_uri(data: bytes, kind: str = "jpeg") -> Markup:
    """A picture as the address that an ``img`` shows without a request."""
    from markupsafe import Markup

    # Base 64 has nothing to escape.
    return Markup(f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii"))
