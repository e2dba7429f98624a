"""Image files: decoded rightly, and scanned before any cost is paid.

The scan reads every file once, hashes it, and finds what is no image or is cut off. Its results
are cached by path, size, mtime and ctime; user files are never modified.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image as PIL
from PIL import ImageOps, UnidentifiedImageError

from xfer.errors import DataError, OutputError, printable
from xfer.files import handle_of, read_json
from xfer.looks import look
from xfer.storage import cache_dir, write_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

_NAMED = "jpg jpeg jpe jfif png bmp gif webp tif tiff ppm pgm pbm avif"
SUFFIXES = frozenset(f".{name}" for name in _NAMED.split())
# Not every format that PIL knows: its EPS plugin starts Ghostscript, whatever the file is called.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 64_000_000
_MAX_BYTES = 1 << 30
_CACHE_VERSION = 3
_BATCH = 32  # files a thread takes at once

_Found = tuple[str, str | None, str]
_Cache = dict[str, list[str]]


@dataclass(frozen=True)
class Files:
    """Image files as a sequence of RGB pictures."""

    paths: tuple[Path, ...]

    def __getitem__(self, index: int) -> Image:
        return decode(self.paths[index])

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


def decode(path: Path) -> Image:
    """Decode one file to RGB: EXIF orientation applied, alpha over white, 16 bit scaled to 8.

    Raises DataError naming the file.
    """
    try:
        with PIL.open(path, formats=_FORMATS) as image:
            _refuse_huge(image)
            return _to_rgb(image)
    except Exception as error:  # PIL's plugins raise struct.error, IndexError and more
        raise _broken(path, _reason(error)) from error


def decode_bytes(data: bytes) -> Image:
    """The same for the bytes of a file that is sound."""
    with PIL.open(io.BytesIO(data), formats=_FORMATS) as image:
        return _to_rgb(image)


def _refuse_huge(image: Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels; more than {MAX_PIXELS}")


def _to_rgb(image: Image) -> Image:
    image.load()
    # Almost every file is an 8-bit RGB photograph: nothing to convert but its orientation.
    image = ImageOps.exif_transpose(image) if image.getexif() else image
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.new("RGBA", image.size, "white")
        return PIL.alpha_composite(white, image).convert("RGB")
    # A copy is a plain image, with no open file behind it.
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _from_16_bit(image: Image) -> Image:
    if image.mode == "F" or image.convert("I").getextrema()[1] > 65535:  # type: ignore[operator]
        raise ValueError("its 32-bit pixels have no known range; save it with 8 or 16 bits")
    return image.convert("I").point(lambda v: v / 257 + 0.5).convert("L").convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is no image"
    return printable(error) or type(error).__name__


def _broken(path: Path, reason: str, more: int = 0) -> DataError:
    others = f"; {more} more files are broken" if more else ""
    return DataError(
        path, f"cannot be read as an image ({reason}){others}", "remove or replace the file", 10
    )


def inspect(path: Path) -> tuple[str, str | None, str]:
    """Read one file: its sha256, what is wrong with it (``None`` for a sound image), its looks.

    A JPEG whose end marker is in place and a PNG whose checksums hold count as whole; anything
    else is decoded.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            return "", "it is no regular file", ""
        if facts.st_size > _MAX_BYTES:
            return "", f"{facts.st_size} bytes; more than {_MAX_BYTES}", ""
        data = path.read_bytes()
    except OSError as error:
        return "", error.strerror or _reason(error), ""
    problem = _problem(data)
    return hashlib.sha256(data).hexdigest(), problem, "" if problem else _look(data)


def _problem(data: bytes) -> str | None:
    if not data:
        return "the file is empty"
    try:
        with PIL.open(io.BytesIO(data), formats=_FORMATS) as image:
            _refuse_huge(image)
            if image.format == "PNG":
                image.verify()
            elif image.format not in ("JPEG", "MPO") or not _has_end(data):
                _to_rgb(image)
    except Exception as error:  # as in decode
        return _reason(error)
    return None


def _look(data: bytes) -> str:
    try:
        with PIL.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.draft("L", (34, 32))  # a JPEG is decoded at an eighth of its size
            return look(ImageOps.exif_transpose(image))
    except Exception:  # as in decode; what only a whole decoding finds, training will name
        return ""


def _has_end(data: bytes) -> bool:
    return data[-64:].rstrip(b"\0").endswith(b"\xff\xd9")


class Facts(NamedTuple):
    """A file as it was read: its sha256, what is wrong with it, and its :func:`look`."""

    path: Path
    sha256: str
    problem: str | None
    look: str


def scan(paths: Sequence[Path], root: Path) -> list[str]:
    """The sha256 of every file, in order. ``root`` names the cache.

    Raises DataError naming the first file that is no sound image and counting the rest.
    """
    found = examine(paths, root)
    if broken := [facts for facts in found if facts.problem]:
        raise broken_files(broken)
    return [facts.sha256 for facts in found]


def broken_files(broken: Sequence[Facts]) -> DataError:
    """The error about files that are no sound images."""
    return _broken(broken[0].path, str(broken[0].problem), more=len(broken) - 1)


_LARGEST_CACHE = 1 << 32
"""Bytes: some 20 million images."""


def sound(paths: Sequence[Path], root: Path) -> tuple[dict[str, str], list[tuple[Path, str]]]:
    """The sha256 of every sound file by its name, and what is wrong with each of the others."""
    found = examine(paths, root)
    good = {str(facts.path): facts.sha256 for facts in found if not facts.problem}
    return good, [(facts.path, facts.problem) for facts in found if facts.problem]


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
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _examine(paths: Sequence[Path], root: Path) -> list[Facts]:
    known = _read_cache(root)
    stamps = [_stamp(path) for path in paths]
    fresh = [i for i, path in enumerate(paths) if known.get(str(path), [""])[0] != stamps[i]]
    broken: dict[int, str] = {}
    for i, found in zip(fresh, _inspect_all([paths[i] for i in fresh]), strict=True):
        digest, problem, looks = found
        if problem is None:
            known[str(paths[i])] = [stamps[i], digest, looks]
        else:
            broken[i] = problem
    if fresh:
        _write_cache(root, known, paths)
    return [
        Facts(path, "", broken[i], "")
        if i in broken
        else Facts(path, known[str(path)][1], None, known[str(path)][2])
        for i, path in enumerate(paths)
    ]


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
    """Whether a row of the cache is a stamp, a hash and looks."""
    return isinstance(row, list) and len(row) == 3 and all(isinstance(cell, str) for cell in row)


def _write_cache(root: Path, known: _Cache, paths: Sequence[Path]) -> None:
    # Other splits of the same root were scanned at other times; files that are gone are dropped.
    listed = {str(path) for path in paths}
    files = {name: row for name, row in known.items() if name in listed or Path(name).exists()}
    try:
        write_text(_cache_file(root), json.dumps({"version": _CACHE_VERSION, "files": files}))
    except OutputError:
        return  # a read-only home costs the next run its scan, nothing else
