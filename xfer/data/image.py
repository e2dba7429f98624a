"""Image files and arrays, decoded to upright RGB of 8 bits."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image as PIL
from PIL import ImageOps, UnidentifiedImageError

from xfer.core.errors import DataError, printable
from xfer.data.array_file import Shape, shape_of
from xfer.data.bit_depth import is_deep, numbers, scaled
from xfer.data.image_bytes import ImagePlace, TarMember, read_file, stamp_key

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from xfer.core.types import Images, PixelRange

_NAMED = "jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm pbm avif"
SUFFIXES = frozenset(f".{name}" for name in _NAMED.split())
# Not every format that PIL knows: its EPS plugin starts Ghostscript, whatever the file is called.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 64_000_000
_TOO_LARGE = f"more than {MAX_PIXELS:,} in all"
_POINTER = "it is a git-LFS pointer, not the file itself"
_ORIENTATION = 0x0112  # EXIF's tag
# They name no file. What matters of it is said by name: that one is broken, larger than MAX_PIXELS,
# or damaged before it says how it is turned (`turned_unknown`).
warnings.filterwarnings("ignore", module=r"PIL\.")

Size = tuple[int, int]
Scanned = tuple[int, str]


@dataclass(frozen=True)
class Files:
    """Image files, or parts of files, as a sequence of RGB pictures.

    ``range`` is that of files of more than 8 bits. ``scanned`` has the key of the stamp (see
    :func:`xfer.data.image_bytes.stamp_key`) and the sha256 that each file had when it was scanned;
    one that holds something else by now is a DataError. ``sizes`` are (width, height) in pixels, as
    far as they are known.
    """

    paths: Sequence[ImagePlace]
    range: PixelRange | None = None
    scanned: Sequence[Scanned] = ()
    sizes: Sequence[Size] = ()

    def __getitem__(self, index: int) -> Image:
        scanned = self.scanned[index] if self.scanned else None
        return decode(self.paths[index], self.range, scanned)

    def __len__(self) -> int:
        return len(self.paths)


def are_files(images: Images) -> bool:
    """Whether a CSV file can name the images: each is a file of its own."""
    return isinstance(images, Files) and all(isinstance(path, Path) for path in images.paths)


@dataclass(frozen=True, eq=False)
class Arrays:
    """Grey pictures, uint8 of shape (n, height, width), as a sequence of RGB pictures."""

    pixels: npt.NDArray[np.uint8]

    def __getitem__(self, index: int) -> Image:
        return PIL.fromarray(self.pixels[index]).convert("RGB")

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, eq=False)
class ImagesAt:
    """Some of ``images``: those at the positions ``at``, in that order."""

    images: Images
    at: Sequence[int] | npt.NDArray[np.integer]

    def __getitem__(self, index: int) -> Image:
        return self.images[int(self.at[index])]

    def __len__(self) -> int:
        return len(self.at)


def decode(
    path: ImagePlace, over: PixelRange | None = None, scanned: Scanned | None = None
) -> Image:
    """Decode one file to RGB: EXIF orientation applied, alpha over white, more than 8 bits scaled
    to 8 by the range ``over`` (see :func:`xfer.data.bit_depth.scaled`).

    Raises DataError naming the file, also where it is not the one that was ``scanned``.
    """
    try:
        data, stamp = read_file(path)
        with open_image(data, shape_of(path)) as image:
            refuse_huge(image)
            decoded = rgb_of(image, data, over)
    except Exception as error:  # PIL's plugins raise struct.error, IndexError and more
        raise broken_image(path, reason_of(error)) from error
    same = not scanned or stamp_key(path, stamp) == scanned[0]
    if scanned and not same and hashlib.sha256(data).hexdigest() != scanned[1]:
        what = "has changed since it was scanned, so the plan no longer describes it"
        raise DataError(path, what, "leave the images alone during a run, and start it again", 73)
    return decoded


def open_image(data: bytes, shape: Shape | None = None) -> Image:
    """The image that ``data`` holds, not decoded yet; formats that nobody trains on are refused.

    With a ``shape`` they are pixels, uint8 of (height, width, channels), 1 or 3 of them.
    """
    if shape is not None:
        height, width, channels = shape
        return PIL.frombytes("L" if channels == 1 else "RGB", (width, height), data)
    if data.startswith(b"version https://git-lfs.github.com/spec/"):
        raise ValueError(_POINTER)
    return PIL.open(io.BytesIO(data), formats=_FORMATS)


def decode_bytes(data: bytes) -> Image:
    """Decode the bytes of a file that is known to be sound, to RGB as :func:`decode` does."""
    with open_image(data) as image:
        return rgb_of(image, data)


def refuse_huge(image: Image) -> None:
    """Raise ValueError for an image of more than MAX_PIXELS."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, {_TOO_LARGE}")


def to_rgb(image: Image) -> Image:
    """A picture in memory as it looks, in RGB, as one that was read from a file.

    Raises ValueError for one of more than 8 bits, whose range nobody knows.
    """
    if is_deep(image):
        raise ValueError("it has more than 8 bits; scale it to 8 first")
    return _upright(image)


def rgb_of(image: Image, data: bytes, over: PixelRange | None = None) -> Image:
    """Decode ``image``, opened from ``data``: upright, RGB, deep pixels scaled from ``over``."""
    if is_deep(image):
        # Asking for the orientation decodes a PNG, so that comes second.
        pixels = numbers(image, lambda: open_image(data))
        orientation = image.getexif().get(_ORIENTATION)
        image = scaled(pixels, over)
        if orientation:
            image.getexif()[_ORIENTATION] = orientation
    return _upright(image)


def _upright(image: Image) -> Image:
    image.load()
    # Almost every file is an 8-bit RGB photograph: nothing to convert but its orientation.
    image = ImageOps.exif_transpose(image) if image.getexif() else image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.new("RGBA", image.size, "white")
        return PIL.alpha_composite(white, image).convert("RGB")
    # A copy is a plain image, with no open file behind it.
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def turned_unknown(image: Image) -> bool:
    """Whether the EXIF block of ``image`` ends in its table, before it says how it is turned."""
    block = image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    if not block or _ORIENTATION in image.getexif():
        return False
    order: Literal["little", "big"] = "little" if block[:2] == b"II" else "big"
    table = int.from_bytes(block[4:8], order)
    rows = int.from_bytes(block[table : table + 2], order)
    return len(block) < table + 2 + 12 * rows


def reason_of(error: Exception) -> str:
    """What is wrong with an image, for people, where decoding it raised ``error``."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    if isinstance(error, PIL.DecompressionBombError):  # before its size is known
        return f"its pixels are {_TOO_LARGE}"
    if str(error).startswith("decoder error"):
        return "its pixels cannot be decoded"  # by libtiff, which gives a number alone
    return getattr(error, "strerror", None) or printable(error) or type(error).__name__


def broken_image(path: ImagePlace, reason: str, more: int = 0) -> DataError:
    """The error that names a broken image, and how many ``more`` there are."""
    fix = "run git lfs pull" if reason == _POINTER else "remove or replace the file"
    if isinstance(path, TarMember):
        fix = "write the shard again without it, or type data.on_bad=skip"
    elif not isinstance(path, Path):
        fix = f"write {path.file.name} again without it, or type data.on_bad=skip"
    others = f"; {more} more {'file is' if more == 1 else 'files are'} broken" if more else ""
    what = f"cannot be read as an image ({reason}){others}"
    return DataError(path, what, fix, 10)
