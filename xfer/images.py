"""Image files: decoded rightly, and scanned before any cost is paid.

The scan reads every file once, hashes it, and finds what is no image or is cut off. Its results
are cached by path, size, mtime and ctime; user files are never modified.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image as PIL
from PIL import ImageOps

from xfer.errors import DataError, printable
from xfer.storage import cache_dir, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .avif".split()
)
MAX_PIXELS = 64_000_000
_CACHE_VERSION = 1


@dataclass(frozen=True)
class Files:
    """Image files as a sequence of RGB pictures."""

    paths: tuple[Path, ...]

    def __getitem__(self, index: int) -> Image:
        return decode(self.paths[index])

    def __len__(self) -> int:
        return len(self.paths)


def decode(path: Path) -> Image:
    """Decode one file to RGB: EXIF orientation applied, alpha over white, 16 bit scaled to 8.

    Raises DataError naming the file.
    """
    try:
        with PIL.open(path) as image:
            _refuse_huge(image)
            image.load()
            return _to_rgb(image)
    except (OSError, ValueError, SyntaxError, PIL.DecompressionBombError) as error:
        raise _broken(path, _reason(error)) from error


def _refuse_huge(image: Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels; more than {MAX_PIXELS}")


def _to_rgb(image: Image) -> Image:
    # Almost every file is an 8-bit RGB photograph: nothing to convert but its orientation.
    image = ImageOps.exif_transpose(image) if image.getexif() else image
    if image.mode == "RGB":
        return image if isinstance(image, PIL.Image) and image.__class__ is PIL.Image else image.copy()
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda v: v / 257).convert("L").convert("RGB")
    if image.mode == "I":
        return image.point(lambda v: v / 257).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PIL.new("RGBA", image.size, "white")
        return PIL.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "it is no image"
    return printable(error) or type(error).__name__


def _broken(path: Path, reason: str) -> DataError:
    return DataError(path, f"cannot be read as an image ({reason})", "remove or replace the file", 10)


def inspect(path: Path) -> tuple[str, str | None]:
    """Read one file: its sha256, and what is wrong with it (``None`` for a sound image).

    A JPEG or PNG whose end marker is in place counts as whole; anything else is decoded.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        return "", "it is no regular file"
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if not data:
        return digest, "the file is empty"
    try:
        with PIL.open(io.BytesIO(data)) as image:
            _refuse_huge(image)
            if not _has_end(data, image.format or ""):
                image.load()
    except Exception as error:  # PIL's plugins raise struct.error, IndexError and more
        return digest, _reason(error)
    return digest, None


def _has_end(data: bytes, form: str) -> bool:
    tail = data[-64:].rstrip(b"\0")
    return (form in ("JPEG", "MPO") and tail.endswith(b"\xff\xd9")) or (
        form == "PNG" and b"IEND\xaeB`\x82" in tail
    )


def scan(paths: Sequence[Path], root: Path) -> list[str]:
    """The sha256 of every file, in order.

    Raises DataError naming the first files that are no sound images and counting the rest.
    """
    known = _read_cache(root)
    stats = [_stamp(path) for path in paths]
    fresh = [i for i, path in enumerate(paths) if known.get(str(path), [None])[0] != stats[i]]
    if fresh:
        with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) * 2)) as pool:
            found = pool.map(inspect, [paths[i] for i in fresh], chunksize=64)
            for i, (digest, problem) in zip(fresh, _progress(found, len(fresh)), strict=True):
                known[str(paths[i])] = [stats[i], digest, problem]
        _write_cache(root, {str(path): known[str(path)] for path in paths})
    rows = [known[str(path)] for path in paths]
    broken = [(path, row[2]) for path, row in zip(paths, rows, strict=True) if row[2]]
    if broken:
        path, reason = broken[0]
        more = f" and {len(broken) - 1} more files" if len(broken) > 1 else ""
        raise _broken(path, reason + more)
    return [row[1] for row in rows]


def _progress[T](items: T, total: int) -> T:
    from tqdm import tqdm

    bar: T = tqdm(items, total=total, desc="reading images", unit=" files", delay=2, leave=False)
    return bar


def _stamp(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError as error:
        raise _broken(path, _reason(error)) from error
    return f"{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}"


def _cache_file(root: Path) -> Path:
    name = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return cache_dir() / "scan" / f"{name}.json"


def _read_cache(root: Path) -> dict[str, list]:
    try:
        facts = json.loads(_cache_file(root).read_text())
        return facts["files"] if facts["version"] == _CACHE_VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # a cache that cannot be read is made again


def _write_cache(root: Path, files: dict[str, list]) -> None:
    from xfer.errors import OutputError

    try:
        write_text(_cache_file(root), json.dumps({"version": _CACHE_VERSION, "files": files}))
    except OutputError:
        return  # a read-only home costs the next run its scan, nothing else
