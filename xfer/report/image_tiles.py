"""Images with their answers as small pictures inside a page; some have a heat map."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xfer.data.preprocess import fit_to_size

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL.Image import Image

    from xfer.core.types import InputSpec, Predictions, Samples
    from xfer.report.heat import Floats, Heat

MOST, ROOM = 200, 420_000
"""At most so many pictures, and so many characters of them: the card stays below a megabyte."""
SIDE = 160
SURE = 0.9
_QUALITY = 72
INFERNO = bytes.fromhex(
    "0000040403120b0724150b37230c4c310a5c3e09664c0c6b5a116e67166e741a6e801f6c8f24699b2964a82e5f"
    "b43359c13a50cc4248d74b3fe05536e9612bef6e21f57b17f8890cfb9906fca80dfbb81df9c72ff5d949f2e865"
    "f3f586fcffa4"
)
"""Red, green and blue of 32 shades of Matplotlib's map of colours "inferno" (van der Walt and
Smith, 2015). Lightness rises with the value, so that people with any colour vision read it alike.
"""
_SHADES, _OPAQUE = len(INFERNO) // 3, 0.8
_SCALE = 4  # pixels of the picture for one of its heat map, which the browser smooths


@dataclass(frozen=True)
class Shot:
    """One answer, in words and as the names of its classes: ``has`` and ``said``, of which there
    may be ``several``, and then ``unknown`` ones. ``uri`` is its picture as the network saw it,
    ``size`` in pixels; ``kinds`` are words that a filter looks for: ``sure``, ``second`` (the true
    class was the second choice).
    ``heat`` is its heat map, which lies over the picture and is ``hottest`` there; both are empty
    where it has none, and ``of`` the class that map and confidence are of, where an image may have
    several. ``label`` is empty where nobody knows it."""

    number: int
    path: str
    label: str
    prediction: str
    confidence: float
    uri: Markup
    size: tuple[int, int]
    kinds: tuple[str, ...]
    has: tuple[str, ...]
    said: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    of: str = ""
    several: bool = False
    heat: Markup | str = ""
    hottest: str = ""


def shots(
    samples: Samples,
    answers: Predictions,
    shown: Sequence[int],
    spec: InputSpec,
    heat: Heat | None = None,
    room: int = ROOM,
    sure: Mapping[int, tuple[int, float]] | None = None,
) -> list[Shot]:
    """The images at the positions ``shown``, in that order, as many as there is room for; with
    their true classes where ``answers`` have them. How confident each answer is is the largest
    probability, unless ``sure`` has the class in question and its share by position."""
    taken = list[Shot]()
    if not len(samples.images):
        return taken
    confidence = (
        answers.confidence if sure is None else {i: share for i, (_, share) in sure.items()}
    )
    for number, i in enumerate(shown[:MOST], 1):
        image = fit_to_size(samples.images[i], spec)
        image.thumbnail((SIDE, SIDE))
        uri = data_uri(jpeg(image, _QUALITY))
        heats = _heats(heat, i, image.size)
        room -= len(uri) + len(heats[0])
        if room < 0:
            break
        kinds: tuple[str, ...] = ("sure",) if confidence[i] >= SURE else ()
        words = words_of_labels(answers, i) if answers.task else _of_one(answers, i)
        if not answers.task:
            second = answers.classes[int(np.argsort(-answers.logits[i], kind="stable")[1])]
            kinds += ("second",) * (words[2] == (second,))
        of = answers.classes[sure[i][0]] if sure else ""
        shown_as = (number, answers.names[i], *words[:2], float(confidence[i]))
        several = bool(answers.task)
        taken.append(Shot(*shown_as, uri, image.size, kinds, *words[2:], of, several, *heats))
    return taken


_Words = tuple[str, str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""What an image is and what it is said to be, in words; both as names of classes, and those of
which it is unknown."""


def _of_one(answers: Predictions, position: int) -> _Words:
    label = "" if answers.labels is None else answers.classes[answers.labels[position]]
    taken = answers.classes[int(answers.logits[position].argmax())]
    return label, taken, (label,), (taken,), ()


def words_of_labels(answers: Predictions, position: int) -> _Words:
    """What an image with several labels has and is said to have, in words, and as the names of its
    classes, the unknown ones last; in words a question mark is before a label that is unknown."""
    row = answers.at([position])
    said = tuple(name for name, yes in zip(row.classes, row.said[0], strict=True) if yes)
    if row.labels is None:
        return "", ", ".join(said) or "none", (), said, ()
    known = list(zip(row.classes, row.labels[0], strict=True))
    has = tuple(name for name, value in known if value == 1)
    unknown = tuple(name for name, value in known if value < 0)
    marked = [*has, *(f"?{name}" for name in unknown)]
    return ", ".join(marked) or "none", ", ".join(said) or "none", has, said, unknown


def _heats(heat: Heat | None, position: int, size: tuple[int, int]) -> tuple[Markup | str, str]:
    if heat is None or position not in heat.maps:
        return "", ""
    found = heat.maps[position]
    return overlay(found, size), hottest(found)


def overlay(heat: Floats, size: tuple[int, int]) -> Markup:
    """A map as a see-through PNG for a picture of ``size`` (width, height): a data URI.

    From its smallest value, which is transparent, to its largest; a map that is the same
    everywhere is transparent.
    """
    from PIL import Image as PIL

    low, high = float(heat.min()), float(heat.max())
    share = (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    wide, tall = (max(1, round(side / _SCALE)) for side in size)
    smooth = PIL.fromarray(share.astype(np.float32)).resize((wide, tall), PIL.Resampling.BICUBIC)
    places = np.clip(np.asarray(smooth) * (_SHADES - 1), 0, _SHADES - 1).round().astype(np.uint8)
    image = PIL.fromarray(places)
    steps = np.linspace(0, 1, _SHADES)
    image.putpalette(INFERNO)
    alpha = (np.minimum(1, 2 * steps) * _OPAQUE * 255).round().astype(np.uint8).tobytes()
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, transparency=alpha)
    return data_uri(stream.getvalue(), "png")


def hottest(heat: Floats) -> str:
    """Where a map has its largest value, in words: ``in the upper left``."""
    if heat.max() <= heat.min():
        return "nowhere"
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    third = [int(3 * (at + 0.5) / n) for at, n in zip((row, column), heat.shape, strict=True)]
    names = (("upper", "", "lower")[third[0]], ("left", "", "right")[third[1]])
    words = " ".join(filter(None, names))
    return {"": "in the centre", "upper": "at the top", "lower": "at the bottom"}.get(
        words, f"in the {words}" if " " in words else f"on the {words}"
    )


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
