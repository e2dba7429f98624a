"""Image files: decoded rightly, and scanned before any cost is paid.

The scan reads every file once, hashes it, and finds what is no image or is cut off. Its results
are cached by path, size, mtime and ctime; user files are never modified.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image as PIL
from PIL import ImageOps, UnidentifiedImageError

from xfer.bit_depth import Extent, extent, is_deep, numbers, scaled
from xfer.errors import DataError, OutputError, printable
from xfer.files import handle_of, read_json
from xfer.locks import Lock, waits
from xfer.looks import look
from xfer.storage import cache_dir, write_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from xfer.types import PixelRange

_NAMED = "jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm pbm avif"
SUFFIXES = frozenset(f".{name}" for name in _NAMED.split())
# Not every format that PIL knows: its EPS plugin starts Ghostscript, whatever the file is called.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 64_000_000
_MAX_BYTES = 1 << 30
_ORIENTATION = 0x0112  # EXIF's tag
_CACHE_VERSION = 5
_BATCH = 32  # files a thread takes at once

Size = tuple[int, int]
_Found = tuple[str, str | None, str, Extent | None, Size]
_Cache = dict[str, list[Any]]
_TWO_NUMBERS = [[a, b] for a in (int, float) for b in (int, float)]


@dataclass(frozen=True)
class Files:
    """Image files as a sequence of RGB pictures.

    ``range`` is that of files of more than 8 bits. ``scanned`` has the stamp and the sha256 that
    each file had when it was scanned; one that holds something else by now is a DataError.
    ``sizes`` are (width, height) in pixels, as far as they are known.
    """

    paths: tuple[Path, ...]
    range: PixelRange | None = None
    scanned: tuple[tuple[str, str], ...] = ()
    sizes: tuple[Size, ...] = ()

    def __getitem__(self, index: int) -> Image:
        scanned = self.scanned[index] if self.scanned else None
        return decode(self.paths[index], self.range, scanned)

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True, eq=False)
class Arrays:
    """Grey pictures, uint8 of shape (n, height, width), as a sequence of RGB pictures."""

    pixels: npt.NDArray[np.uint8]

    def __getitem__(self, index: int) -> Image:
        return PIL.fromarray(self.pixels[index]).convert("RGB")

    def __len__(self) -> int:
        return len(self.pixels)


def decode(
    path: Path, over: PixelRange | None = None, scanned: tuple[str, str] | None = None
) -> Image:
    """Decode one file to RGB: EXIF orientation applied, alpha over white, more than 8 bits scaled
    to 8 by the range ``over`` (see :func:`xfer.bit_depth.scaled`).

    Raises DataError naming the file, also where it is not the one that was ``scanned``.
    """
    try:
        data, stamp = read_file(path)
        with open_image(data) as image:
            refuse_huge(image)
            decoded = rgb_of(image, data, over)
    except Exception as error:  # PIL's plugins raise struct.error, IndexError and more
        raise broken_image(path, reason_of(error)) from error
    if scanned and stamp != scanned[0] and hashlib.sha256(data).hexdigest() != scanned[1]:
        raise DataError(
            path,
            "has changed since it was scanned, and the plan speaks of what it was",
            "leave the images alone during a run, and start it again",
            73,
        )
    return decoded


def read_file(path: Path) -> tuple[bytes, str]:
    """What is in a regular file, and its stamp when all of it was read."""
    # Opening a pipe would wait for a writer, for ever.
    if not path.is_file() and path.exists():
        raise ValueError("it is no regular file")
    with path.open("rb") as stream:
        facts = os.fstat(stream.fileno())
        if facts.st_size > _MAX_BYTES:
            raise ValueError(f"{facts.st_size} bytes; more than {_MAX_BYTES}")
        data = stream.read()
        after = os.fstat(stream.fileno())
    # A file that was written to meanwhile has no stamp that a scan could have seen.
    return data, stamp_of(after) if stamp_of(after) == stamp_of(facts) else ""


def open_image(data: bytes) -> Image:
    """The image that ``data`` holds, not decoded yet; formats that nobody trains on are refused."""
    return PIL.open(io.BytesIO(data), formats=_FORMATS)


def decode_bytes(data: bytes) -> Image:
    """The same for the bytes of a file that is sound."""
    with open_image(data) as image:
        return rgb_of(image, data)


def refuse_huge(image: Image) -> None:
    """Raise ValueError for an image of more than MAX_PIXELS."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels; more than {MAX_PIXELS}")


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
        found = numbers(image, lambda: open_image(data))
        turned = image.getexif().get(_ORIENTATION)
        image = scaled(found, over)
        if turned:
            image.getexif()[_ORIENTATION] = turned
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


def reason_of(error: Exception) -> str:
    """What is wrong with an image, for people, where decoding it raised ``error``."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image"
    return printable(error) or type(error).__name__


def broken_image(path: Path, reason: str, more: int = 0) -> DataError:
    """The error that names a broken image, and how many ``more`` there are."""
    others = f"; {more} more files are broken" if more else ""
    return DataError(
        path, f"cannot be read as an image ({reason}){others}", "remove or replace the file", 10
    )


def inspect(path: Path) -> _Found:
    """Read one file: its sha256, what is wrong with it (``None`` for a sound image), its looks,
    what its pixels reach where they have more than 8 bits, and its size.

    A JPEG whose end marker is in place and a PNG whose checksums hold count as whole; anything
    else is decoded.
    """
    try:
        data, _ = read_file(path)
        reach, size = _check(data)
    except OSError as error:
        return "", error.strerror or reason_of(error), "", None, (0, 0)
    except Exception as error:  # as in decode
        return "", reason_of(error), "", None, (0, 0)
    return hashlib.sha256(data).hexdigest(), None, _look(data, reach), reach, size


def _check(data: bytes) -> tuple[Extent | None, Size]:
    """What the pixels of a sound image reach, where they have more than 8 bits, and its size;
    raises else."""
    if not data:
        raise ValueError("the file is empty")
    with open_image(data) as image:
        refuse_huge(image)
        size = image.size
        if is_deep(image):
            return extent(numbers(image, lambda: open_image(data))), size
        if image.format == "PNG":
            image.verify()
        elif image.format not in ("JPEG", "MPO") or not _has_end(data):
            rgb_of(image, data)
    return None, size


def _look(data: bytes, reach: Extent | None) -> str:
    try:
        with open_image(data) as image:
            if reach:
                # From its darkest to its brightest: no two dark pictures are alike for being dark.
                over = (reach.low, max(reach.high, reach.low + 1))
                return look(rgb_of(image, data, over))
            image.draft("L", (34, 32))  # a JPEG is decoded at an eighth of its size
            return look(ImageOps.exif_transpose(image))
    except Exception:  # as in decode; what only a whole decoding finds, training will name
        return ""


def _has_end(data: bytes) -> bool:
    return data[-64:].rstrip(b"\0").endswith(b"\xff\xd9")


class Facts(NamedTuple):
    """A file as it was read: its sha256, what is wrong with it, its :func:`look`, what its pixels
    reach where they have more than 8 bits, what an edit of it would change, and its size."""

    path: Path
    sha256: str
    problem: str | None
    look: str
    reach: Extent | None = None
    stamp: str = ""
    size: Size = (0, 0)


def broken_files(broken: Sequence[Facts]) -> DataError:
    """The error about files that are no sound images."""
    return broken_image(broken[0].path, str(broken[0].problem), more=len(broken) - 1)


_LARGEST_CACHE = 1 << 32
"""Bytes: some 20 million images."""


def examine(paths: Sequence[Path], root: Path) -> list[Facts]:
    """Every file as it was read, in order. ``root`` names the cache; while one process scans it,
    others that ask for it wait and find the result."""
    with _alone(root):
        return _examine(paths, root)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    path = cache_dir() / "locks" / _cache_file(root).stem
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = handle_of(path, os.O_RDWR | os.O_CREAT, follow=False)
    except OSError:
        yield  # a read-only home has no result to wait for
        return
    with Lock(handle, waiting=waits(f"reads the images of {printable(root)}")):
        yield


def _examine(paths: Sequence[Path], root: Path) -> list[Facts]:
    known = _read_cache(root)
    stamps = [_stamp(path) for path in paths]
    fresh = [i for i, path in enumerate(paths) if known.get(str(path), [""])[0] != stamps[i]]
    broken: dict[int, str] = {}
    for i, found in zip(fresh, _inspect_all([paths[i] for i in fresh]), strict=True):
        digest, problem, looks, reach, size = found
        if problem is None:
            known[str(paths[i])] = [stamps[i], digest, looks, reach, list(size)]
        else:
            broken[i] = problem
    if fresh:
        _write_cache(root, known, paths)
    return [
        Facts(path, "", broken[i], "") if i in broken else _facts(path, known[str(path)])
        for i, path in enumerate(paths)
    ]


def _facts(path: Path, row: list[Any]) -> Facts:
    stamp, digest, looks, reach, (width, height) = row
    deep = Extent(*reach) if reach else None
    return Facts(path, digest, None, looks, deep, stamp, (width, height))


def _inspect_all(paths: list[Path]) -> Iterator[_Found]:
    from tqdm import tqdm

    # Threads: reading, hashing and decoding release the lock, and processes cost more to start.
    batches = [paths[i : i + _BATCH] for i in range(0, len(paths), _BATCH)]
    with (
        ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool,
        tqdm(total=len(paths), desc="reading images", delay=2, leave=False, disable=None) as bar,
    ):
        for found in pool.map(lambda batch: [inspect(path) for path in batch], batches):
            bar.update(len(found))
            yield from found


def _stamp(path: Path) -> str:
    """Changes with every edit of the file; never what the cache holds when it cannot be read."""
    try:
        facts = path.stat()
    except OSError:
        return "missing"
    return stamp_of(facts)


def stamp_of(facts: os.stat_result) -> str:
    """Size and times of a file: while they are the same, so is its content."""
    return f"{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}"


def _cache_file(root: Path) -> Path:
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
    return cache_dir() / "scan" / f"{name}.json"


def _read_cache(root: Path) -> _Cache:
    try:
        facts = read_json(_cache_file(root), _LARGEST_CACHE)
        rows = dict(facts["files"]) if facts["version"] == _CACHE_VERSION else {}
        return {name: row for name, row in rows.items() if _is_row(row)}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # a cache that cannot be read is made again


def _is_row(row: object) -> bool:
    """Whether a row of the cache is a stamp, a hash, looks, the range of a deep file, a size."""
    if not isinstance(row, list) or len(row) != 5 or not all(isinstance(c, str) for c in row[:3]):
        return False
    reach, size = row[3:]
    if not isinstance(size, list) or [type(n) for n in size] != [int, int]:
        return False
    kinds = [type(cell) for cell in reach] if isinstance(reach, list) else []
    return reach is None or (kinds[:1] == [str] and kinds[1:] in _TWO_NUMBERS)


def _write_cache(root: Path, known: _Cache, paths: Sequence[Path]) -> None:
    # Other splits of the same root were scanned at other times; files that are gone are dropped.
    listed = {str(path) for path in paths}
    files = {name: row for name, row in known.items() if name in listed or Path(name).exists()}
    try:
        write_text(_cache_file(root), json.dumps({"version": _CACHE_VERSION, "files": files}))
    except OutputError:
        return  # a read-only home costs the next run its scan, nothing else
