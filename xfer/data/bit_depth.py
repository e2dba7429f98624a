"""Pixels of more than 8 bits: read whole, their range decided over the data set, scaled to 8 bits.

Cameras of microscopes and X-ray detectors give 10, 12 or 14 bits in files of 16, and CT gives
negative numbers: what is black and what is white does not follow from the file's type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from xfer.core.errors import DataError, plural, printable

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    from xfer.core.types import PixelRange
    from xfer.data.image_bytes import ImagePlace

_FULL = (0.0, 65535.0)
_BITS = (8, 10, 12, 14, 16)
# PIL keeps the high byte of 16-bit colours. Told the other byte order, it keeps the low one.
_OTHER = {"16B": "16L", "16L": "16B", "16N": "16B"}
_COLOURS = ("RGB;", "RGBA;")


class Extent(NamedTuple):
    """The smallest and the largest number in a file of more than 8 bits; ``kind`` is ``16-bit``,
    ``32-bit`` or ``float``."""

    kind: str
    low: float
    high: float

    @property
    def in_16_bits(self) -> bool:
        """Whether these are numbers of 16 bits without a sign."""
        return self.kind != "float" and self.low >= 0 and self.high <= _FULL[1]


def is_deep(image: Image) -> bool:
    """Whether a file, opened and not decoded yet, holds numbers of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I") or bool(_raw_colours(image))


def _raw_colours(image: Image) -> str:
    """PIL's name for how 16-bit colours lie in the file; empty for anything else."""
    args = [tile.args for tile in getattr(image, "tile", [])]
    names = {str(arg[0] if isinstance(arg, tuple) else arg) for arg in args}
    name = names.pop() if len(names) == 1 else ""
    return name if name.startswith(_COLOURS) and name.partition(";")[2] in _OTHER else ""


def numbers(image: Image, again: Callable[[], Image]) -> npt.NDArray[Any]:
    """The numbers of a deep file as they are, (h, w) or (h, w, 3 or 4): uint16, int32 or float32.

    ``image`` is opened and not decoded, ``again`` opens the same file once more. Raises
    ValueError for numbers that are not finite, or too large for PIL.
    """
    import numpy as np

    if name := _raw_colours(image):
        order = name.partition(";")[2]
        other = name.replace(order, _OTHER[order])
        low: Any = again()
        low.tile = [
            tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
            for tile in low.tile
        ]
        whole: npt.NDArray[Any] = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
        return whole
    unsigned = getattr(image, "tag_v2", {}).get(339, (1,)) == (1,)
    pixels = np.asarray(image)
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ValueError("it holds NaN or Inf")
    if pixels.dtype.kind == "i" and unsigned and pixels.min() < 0:
        raise ValueError("its unsigned 32-bit pixels are over 2147483647")
    return pixels.astype(np.uint16) if pixels.dtype.kind == "u" else pixels


def extent(pixels: npt.NDArray[Any]) -> Extent:
    """What lies in ``pixels``, which :func:`numbers` has read. Alpha does not count."""
    colours = pixels[..., :3] if pixels.ndim == 3 else pixels
    kind = {"u": "16-bit", "i": "32-bit", "f": "float"}[pixels.dtype.kind]
    return Extent(kind, float(colours.min()), float(colours.max()))


def scaled(pixels: npt.NDArray[Any], over: PixelRange | None) -> Image:
    """The numbers as 8 bits: the lower end of ``over`` is black, the upper one white, and what is
    beyond them is cut off. ``None`` is the full range of 16 bits.

    Raises ValueError where the numbers have no range of 16 bits and none is given.
    """
    import numpy as np
    from PIL import Image as PIL

    reach = extent(pixels)
    if over is None and not reach.in_16_bits:
        raise ValueError(f"its {reach.kind} pixels have no known range; save it with 8 or 16 bits")
    low, high = over or _FULL
    grey = np.clip((pixels.astype(np.float64) - low) * (255 / (high - low)), 0, 255)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        grey[..., 3] = pixels[..., 3] / 257
    return PIL.fromarray(np.floor(grey + 0.5).astype(np.uint8))


def decide(
    asked: PixelRange | Literal["auto"] | None,
    deep: Sequence[tuple[ImagePlace, Extent]],
    where: object,
) -> tuple[PixelRange | None, list[str]]:
    """The range of a data set with the files ``deep``, and what is said about it.

    ``auto`` is the smallest of 8, 10, 12, 14 and 16 bits that holds every number of 16-bit files.
    Raises DataError where no range follows from the files.
    """
    if not deep:
        typed = asked not in ("auto", None)
        return None, ["data.range changes nothing: no image has more than 8 bits"] * typed
    if asked != "auto":
        return asked, range_remarks(deep, asked)
    low, high = min(e.low for _, e in deep), max(e.high for _, e in deep)
    if odd := [(path, e) for path, e in deep if not e.in_16_bits]:
        path, first = odd[0]
        raise DataError(
            where,
            f"{plural(len(odd), 'image')} with {first.kind} pixels, of which nothing says what is "
            f"black and what is white, such as '{printable(path.name)}'; they go from {low:g} to "
            f"{high:g}",
            f"type 'data.range=[{low:g},{high:g}]', or the numbers that are to be black and white",
            70,
        )
    bits = next(bits for bits in _BITS if high < 2**bits)
    line = (
        f"{plural(len(deep), 'image')} of more than 8 bits: pixels reach {high:g}, so the range "
        f"is taken to be {bits} bits (data.range=[0,{2**bits - 1}])"
    )
    return (0.0, float(2**bits - 1)), [line]


def range_remarks(deep: Sequence[tuple[ImagePlace, Extent]], over: PixelRange | None) -> list[str]:
    """What is to be said of deep files that are read with a range decided elsewhere."""
    if not deep:
        return []
    low, high = over or _FULL
    ends = f"{low:g} to {high:g}"
    many = plural(len(deep), "image")
    lines = [
        f"{many} of more than 8 bits {'is' if len(deep) == 1 else 'are'} read with the range {ends}"
    ]
    if outside := [path for path, e in deep if e.low < low or e.high > high]:
        lines.append(
            f"cut off at {ends}: {plural(len(outside), 'image')}, such as '{outside[0].name}'"
        )
    most = max(e.high for _, e in deep)
    if over is None and most < 2**14:
        what = f"pixels of more than 8 bits reach only {most:g} of {high:g}"
        lines.append(f"{what}: the pictures are dark, unless they are saved with 8 bits")
    return [printable(line) for line in lines]
